"""What a step of a pre-training sees of an image: a random part of it, in random light."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from medsam3_model.pretraining.data import SourceImage
from medsam3_model.training.augmentation import (
    random_look,
    random_view,
    sample_image,
    sample_labels,
)


@dataclass(frozen=True)
class DrawnView:
    """What a step sees of an image.

    pixels: float32 (3, S, S) in 0..1. layers: concept -> labels int64 (2c, 2c), where the masks
    that are learned have c × c cells. healthy: nothing of what was looked for is in the image.
    """

    sample: SourceImage
    pixels: Tensor
    layers: dict[str, Tensor]

    @property
    def healthy(self) -> bool:
        return not any(layer.any() for layer in self.sample.layers.values())


def draw_view(source: Sequence[SourceImage], side: int, rng: np.random.Generator) -> DrawnView:
    """A random view of a random image, `side` pixels wide, in random light."""
    sample = source[int(rng.integers(len(source)))]
    view = random_view(rng, sample.family, sample.aspect)
    cells = side // 3  # four mask cells for each token of 12 pixels
    labels = sample_labels(np.stack(list(sample.layers.values())), view, 2 * cells)
    pixels = random_look(sample_image(sample.image, view, side), rng)
    return DrawnView(sample, pixels, dict(zip(sample.layers, labels, strict=True)))
