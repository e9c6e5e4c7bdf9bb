"""What a step of a pre-training sees of an image: a random part of it, in random light."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from medsam3_model.pretraining.data import SourceImage, how_often_asked
from medsam3_model.training.augmentation import (
    View,
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
    view: the part of the image that it shows.
    """

    sample: SourceImage
    pixels: Tensor
    layers: dict[str, Tensor]
    view: View

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
    return DrawnView(sample, pixels, dict(zip(sample.layers, labels, strict=True)), view)


class Mixture:
    """Sources that views are drawn from.

    Attributes:
        asked: concept -> share of the drawn images that hold it.
    """

    def __init__(
        self, sources: Mapping[str, Sequence[SourceImage]], shares: Mapping[str, float]
    ) -> None:
        """Of the sources that hold something; `shares`: how often each is drawn."""
        names = [name for name in shares if sources.get(name)]
        weights = np.array([shares[name] for name in names])
        self._sources = [sources[name] for name in names]
        self._shares = weights / weights.sum()
        self.asked = how_often_asked(sources, dict(zip(names, self._shares, strict=True)))

    def view(self, side: int, rng: np.random.Generator) -> DrawnView:
        """A view of one of their images; see `draw_view`."""
        return draw_view(self._sources[rng.choice(len(self._shares), p=self._shares)], side, rng)
