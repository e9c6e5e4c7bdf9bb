"""Fine-tuning in a process of its own: `python -m tests.support.fine_tune_discs FOLDER STEPS`.

Keeps its state and at the end its detector in FOLDER; says each step on standard output.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from medsam3_model.training import processes
from medsam3_model.training.fine_tuning import fine_tune
from medsam3_model.training.settings import TrainingSettings
from tests.support.discs import cache_in, disc_image, small_model


def train(folder: Path, steps: int, say: Callable[[int], None]) -> None:
    """Train for `steps` steps, alone or as one of torchrun's processes; `say` hears each step."""
    torch.set_num_threads(1)
    settings = TrainingSettings(
        steps=steps,
        views=1,
        images_per_step=2,
        learning_rate=1e-3,
        warm_up=2,
        save_every=2,
        validate_every=4,
        unjudged_steps=4,
    )
    with processes.join():
        tuned = fine_tune(
            small_model(),
            [disc_image(seed) for seed in range(12)],
            name="s",
            base="b",
            cache=cache_in(folder / "embeddings"),
            replay=[disc_image(seed) for seed in range(100, 103)],
            settings=settings,
            state=folder / "state.pt",
            on_progress=lambda progress: say(progress.step),
        )
        if processes.joined().first:
            tuned.model.save_detector(folder / "detector.safetensors", base="b", name="s")


def say_aloud(step: int) -> None:
    sys.stdout.write(f"{step}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), say_aloud)
