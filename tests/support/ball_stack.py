"""A synthetic stack: a bright ball moves through dark grain and ends before the stack does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


class Ball:
    """The stack with its true masks.

    Attributes:
        pages: uint8 (count, H, W).
        masks: bool (count, H, W).
    """

    count = 13
    size = (80, 100)

    def __init__(self) -> None:
        random = np.random.default_rng(5)
        grain = random.normal(60, 12, (self.count, *self.size))
        rows, columns = np.mgrid[: self.size[0], : self.size[1]]
        self.masks = np.zeros((self.count, *self.size), np.bool_)
        for place in range(2, 11):
            radius = 4 + 13 * np.sqrt(1 - ((place - 6) / 5) ** 2)
            middle = 30 + 2.5 * place, 34 + 1.5 * place
            self.masks[place] = np.hypot(columns - middle[0], rows - middle[1]) < radius
        self.pages = np.where(self.masks, grain + 110, grain).clip(0, 255).astype(np.uint8)

    def dice(self, masks: Mapping[int, NDArray[np.bool_]]) -> float:
        """3D Dice of masks by place."""
        together = np.stack(
            [
                masks[place] if place in masks else np.zeros(self.size, np.bool_)
                for place in range(self.count)
            ]
        )
        return float(2 * (together & self.masks).sum() / (together.sum() + self.masks.sum()))
