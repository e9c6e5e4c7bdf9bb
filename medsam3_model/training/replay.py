"""Replay: images of the bundled model's concepts, mixed into fine-tuning so that it keeps them.

Photographs and template slices are in `weights/replay`, in the layout of `datasets.load_dataset`
(sources and terms: README.md there); phantoms are drawn when they are asked for. All are images
that the model was trained on, none that it is judged with. The folder is made with
`python -m medsam3_model.training.replay --data isic2017=FOLDER --data kvasir_seg=FOLDER ...`.
"""

import argparse
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsam3_model.checkpoints.presets import WEIGHTS_FOLDER
from medsam3_model.data.datasets import load_dataset
from medsam3_model.data.samples import Sample
from medsam3_model.pretraining.derived import all_sources
from medsam3_model.pretraining.phantoms.phantoms import PHANTOMS, phantom
from medsam3_model.training.data import TrainingImage

REPLAY_FOLDER = WEIGHTS_FOLDER / "replay"

_PHANTOMS_PER_KIND = 6
_NAMELESS = "shapes"  # only a box can ask for what they show
# Concepts that are never seen together, so those of the other groups are absent from an image.
_APART = (
    frozenset({"brain", "grey matter", "white matter"}),
    frozenset({"skin lesion"}),
    frozenset({"polyp"}),
    frozenset({"cell nucleus"}),
    frozenset({"breast tumor"}),
    frozenset({"optic disc", "optic cup", "hard exudates", "soft exudates", "haemorrhages"}),
    frozenset({"left ventricle cavity", "myocardium", "right ventricle", "left atrium",
               "right atrium", "aorta", "pulmonary artery"}),
)  # fmt: skip
_MOST_PER_SOURCE = {
    "template": 20, "isic2017": 28, "kvasir_seg": 36, "healthy_colon": 12, "dsb2018_nuclei": 28,
    "bus_uclm": 16, "normal_breast": 12, "idrid": 12, "hvsmr": 12, "sunnybrook_ed": 10,
    "sunnybrook_es": 6,
}  # fmt: skip
_LONGEST_SIDE = 320  # the bundled model looks at 216 pixels, at times at a part of the image


def bundled_replay() -> tuple[TrainingImage, ...]:
    """All images that are replayed for the bundled model; nothing is read or drawn yet."""
    stored = load_dataset(REPLAY_FOLDER)
    photographs = [
        TrainingImage(f"replay-{sample.name}", sample.image, partial(_stored_layers, sample))
        for sample in stored
    ]
    return (*photographs, *_phantoms())


def _stored_layers(sample: Sample) -> dict[str, NDArray[np.int32]]:
    """Instance numbers by concept; an empty map says that it was looked for in vain."""
    layers = {
        folder.name: np.asarray(Image.open(file)).astype(np.int32)
        for folder in sorted((REPLAY_FOLDER / "instances").iterdir())
        if (file := folder / f"{sample.name}.png").is_file()
    }
    # One concept that cannot be in this image, always the same: presence learns from it.
    others = [group for group in _APART if not group & layers.keys()]
    chosen = others[zlib.crc32(sample.name.encode()) % len(others)]
    nothing = np.zeros_like(next(iter(layers.values())))
    return {**layers, min(chosen): nothing}


def _phantoms() -> Iterator[TrainingImage]:
    for kind in PHANTOMS:
        if kind == _NAMELESS:
            continue
        for seed in range(_PHANTOMS_PER_KIND):
            yield TrainingImage(
                f"replay-{kind}-{seed}",
                partial(_phantom_image, kind, seed),
                partial(phantom_layers, kind, seed),
            )


def _phantom_image(kind: str, seed: int) -> NDArray[np.uint8]:
    return phantom(kind, seed).image


def phantom_layers(kind: str, seed: int) -> dict[str, NDArray[np.int32]]:
    """Instance numbers by concept of a phantom, int32 (size, size); all 0: it is absent."""
    return {name: layer.astype(np.int32) for name, layer in phantom(kind, seed).layers.items()}


def write_replay(folders: Mapping[str, Path], out: Path) -> int:
    """Write the folder from training images of the sources; returns the number of images."""
    count = 0
    for source, samples in all_sources(dict(folders), 0, seed=0).items():
        most = _MOST_PER_SOURCE.get(source, 0)
        for sample in samples[:: max(1, len(samples) // max(most, 1))][:most]:
            height, width = sample.image.shape[:2]
            scale = min(1.0, _LONGEST_SIDE / max(height, width))
            size = (round(width * scale), round(height * scale))
            name = f"{source}-{sample.name}"
            picture = Image.fromarray(sample.image).resize(size, Image.Resampling.BOX)
            _save(out / "images" / f"{name}.jpg", partial(picture.save, quality=90))
            for concept, layer in sample.layers.items():
                numbers = Image.fromarray(np.minimum(layer, 255).astype(np.uint8))
                numbers = numbers.resize(size, Image.Resampling.NEAREST)
                path = out / "instances" / concept / f"{name}.png"
                _save(path, partial(numbers.save, optimize=True))
            count += 1
    return count


def _save(path: Path, save: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the bundled folder of replay images again, from training images of their sources."""
    parser = argparse.ArgumentParser(
        prog="python -m medsam3_model.training.replay", description=main.__doc__
    )
    parser.add_argument("--data", action="append", default=[], metavar="SOURCE=FOLDER")
    parser.add_argument("--out", type=Path, default=REPLAY_FOLDER)
    options = parser.parse_args(arguments)
    folders = {
        name: Path(folder) for name, _, folder in (entry.partition("=") for entry in options.data)
    }
    write_replay(folders, options.out)


if __name__ == "__main__":
    main()
