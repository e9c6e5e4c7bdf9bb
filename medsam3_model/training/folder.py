"""Fine-tune the detector on a folder of images and masks, without Label Studio.

```
python -m medsam3_model.training.folder --data FOLDER --out new.safetensors
torchrun --nproc-per-node 4 -m medsam3_model.training.folder --data FOLDER --out new.safetensors
```

The second line shares the work of each step among four GPUs of one machine. FOLDER is what
`datasets.load_dataset` reads; groups that `datasets.split_of_group` keeps for judging are left out.
A run that was killed goes on when it is started again.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam3_model.checkpoints.presets import PRESETS
from medsam3_model.data.datasets import load_dataset
from medsam3_model.data.samples import Dataset, Sample
from medsam3_model.embeddings.embedding_cache import EmbeddingCache
from medsam3_model.evaluation.evaluation import parse_prompts
from medsam3_model.predictor import MedSAM3
from medsam3_model.training import processes
from medsam3_model.training.data import TrainingImage
from medsam3_model.training.endings import ENDINGS
from medsam3_model.training.fine_tuning import (
    TrainingProgress,
    fine_tune,
)
from medsam3_model.training.replay import bundled_replay
from medsam3_model.training.settings import TrainingSettings

_MEMORY_BYTES = 2 * 2**30
_DISK_BYTES = 100 * 2**30


def training_images(dataset: Dataset, prompts: Mapping[str, str]) -> list[TrainingImage]:
    """The training part of a data set; `prompts` says by which phrase a concept is asked for.

    A concept without a mask is absent from the image.
    """
    return [
        TrainingImage(
            f"{dataset.root.resolve()}/{sample.name}",
            sample.image,
            partial(_layers, sample, dict(prompts)),
            sample.group,
        )
        for sample in dataset.split("train")
    ]


def _layers(sample: Sample, prompts: Mapping[str, str]) -> dict[str, NDArray[np.int32]]:
    truths = {phrase: sample.read(concept) for concept, phrase in prompts.items()}
    shapes = [truth.labels.shape for truth in truths.values() if truth is not None]
    size = shapes[0] if shapes else sample.image().shape[:2]
    return {
        phrase: np.zeros(size, np.int32) if truth is None else truth.labels
        for phrase, truth in truths.items()
    }


def train(options: argparse.Namespace, device: str) -> None:
    """Train as the command line says, on `device`."""
    out: Path = options.out
    dataset = load_dataset(options.data)
    model = MedSAM3.from_pretrained(options.checkpoint, device=device)
    settings = TrainingSettings(
        steps=options.steps,
        minutes=options.minutes,
        learning_rate=options.learning_rate,
        seed=options.seed,
        adapter=options.adapter,
    )
    known = bundled_replay() if model.name in PRESETS else ()
    tuned = fine_tune(
        model,
        training_images(dataset, parse_prompts(options.prompt, dataset)),
        name=options.name,
        base=options.checkpoint,
        cache=EmbeddingCache(
            out.with_suffix(".embeddings"), memory_bytes=_MEMORY_BYTES, disk_bytes=_DISK_BYTES
        ),
        replay=known,
        settings=settings,
        state=out.with_suffix(".state"),
        on_progress=say if options.verbose else lambda progress: None,
    )
    if processes.joined().first:
        tuned.model.save_detector(out, base=options.checkpoint, name=options.name)
        sys.stdout.write(
            f"{out}: version {tuned.model.version}, {tuned.steps} steps; {ENDINGS[tuned.stopped]}\n"
        )


def say(progress: TrainingProgress) -> None:
    """One line for a step."""
    judged = progress.validation_dice
    sys.stderr.write(
        f"step {progress.step}/{progress.steps} loss {progress.loss:.2f} "
        f"Dice {'-' if judged is None else f'{judged:.3f}'} {progress.eta_s:.0f} s left\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tune the detector on a folder of images and masks."""
    defaults = TrainingSettings()
    parser = argparse.ArgumentParser(
        prog="python -m medsam3_model.training.folder", description=main.__doc__
    )
    add: Callable[..., object] = parser.add_argument
    add("--data", type=Path, required=True, help="images/ and masks/, or a COCO file")
    add("--out", type=Path, required=True, help="the detector's safetensors file")
    add("--checkpoint", default="tiny", help="the model to start from (default %(default)s)")
    add("--prompt", action="append", default=[], metavar="[CONCEPT=]PHRASE")
    add("--name", default="folder", help="first part of the version (default %(default)s)")
    add("--steps", type=int, default=defaults.steps)
    add("--learning-rate", type=float, help="(default: what suits the model's width)")
    add("--minutes", type=float, default=defaults.minutes, help="ceiling (default %(default)s)")
    add("--seed", type=int, default=defaults.seed)
    add("--adapter", action="store_true", help="train an adapter of the encoder, too")
    add("--verbose", action="store_true", help="say every step on standard error")
    options = parser.parse_args(arguments)
    with processes.join() as device:
        train(options, device)


if __name__ == "__main__":
    main()
