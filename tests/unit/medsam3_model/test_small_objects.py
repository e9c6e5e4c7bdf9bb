"""Quarters of an image, put together again."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medsam3_model.small_objects import look_at_quarters
from medsam3_model.types import Detections, ImageEmbedding, TextEmbedding

SIDE, PATCHES = 120, 10  # a patch is 12 pixels wide


@dataclass
class Looker:
    """Finds what is bright; the coarser it looks, the less of it."""

    parts: int = 0
    version: str = "looker"

    def detect_all(self, image: NDArray[np.uint8], text: TextEmbedding) -> list[Detections]:
        self.parts += 1
        return [_detections(image[..., 0] / 255.0, phrase) for phrase in text.phrases]


def _detections(semantic: NDArray[np.float64], phrase: str, presence: float = 0.9) -> Detections:
    height, width = semantic.shape
    return Detections(
        masks=np.zeros((0, height, width), bool),
        boxes=np.zeros((0, 4), np.float32),
        scores=np.zeros(0, np.float32),
        presence=presence,
        semantic=semantic.astype(np.float32),
        phrase=phrase,
    )


def _text(*phrases: str) -> TextEmbedding:
    count = len(phrases)
    return TextEmbedding(phrases, torch.zeros(count, 3, 4), torch.ones(count, 3), "hash")


def _embedding() -> ImageEmbedding:
    return ImageEmbedding((), torch.zeros(1, PATCHES**2, 4), (SIDE, SIDE), "hash", "hash")


def _spots(side: int, apart: int = 30) -> NDArray[np.uint8]:
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    for row in range(5, SIDE - side, apart):
        for column in range(5, SIDE - side, apart):
            image[row : row + side, column : column + side] = 255
    return image


def _ask(image: NDArray[np.uint8], *first: Detections) -> tuple[Looker, list[Detections]]:
    looker = Looker()
    text = _text(*(one.phrase for one in first))

    def part(window: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        x0, y0, x1, y1 = window
        assert (x1 - x0) < 0.6 * SIDE > (y1 - y0)
        return image[y0:y1, x0:x1]

    answers = look_at_quarters(looker, _embedding(), text, first, part)  # type: ignore[arg-type]
    return looker, answers


def test_small_spots_are_asked_for_again_and_put_together_without_a_seam() -> None:
    image = _spots(4)
    rough = _detections(np.roll(image[..., 0], 3) / 255.0, "nuclei")
    large = _detections(np.pad(np.ones((60, 60)), 30), "tissue")
    looker, (small, same) = _ask(image, rough, large)
    assert looker.parts == 4
    assert np.allclose(small.semantic, image[..., 0] / 255.0)
    assert small.presence == rough.presence
    assert same is large


@pytest.mark.parametrize(
    "first",
    [
        _detections(_spots(22)[..., 0] / 255.0, "large ones"),
        _detections(_spots(4, apart=60)[..., 0] / 255.0, "few"),
        _detections(_spots(4)[..., 0] / 255.0, "absent", presence=0.4),
        _detections(np.zeros((SIDE, SIDE)), "nothing"),
    ],
    ids=lambda one: one.phrase,
)
def test_one_look_is_enough_for_anything_else(first: Detections) -> None:
    looker, answers = _ask(_spots(4), first)
    assert looker.parts == 0
    assert answers == [first]


def test_instances_are_not_thrown_away() -> None:
    semantic = _spots(4)[..., 0] / 255.0
    first = _detections(semantic, "nuclei")
    found = Detections(
        masks=semantic[None] > 0.5,
        boxes=np.array([[0, 0, SIDE, SIDE]], np.float32),
        scores=np.ones(1, np.float32),
        presence=0.9,
        semantic=first.semantic,
        phrase="nuclei",
    )
    looker, answers = _ask(_spots(4), found)
    assert looker.parts == 0
    assert answers == [found]
