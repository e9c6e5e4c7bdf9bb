"""Small objects of one name, such as nuclei: looked at again in four enlarged parts.

An object smaller than about one patch of the encoder is hardly seen, and there may be more of them
than the detector has queries. Where a phrase is answered with no instance but with many small spots
on the semantic map, four overlapping quarters of the image are asked as images of their own, and
their maps are put together.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, isqrt, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3_model.types import (
    PRESENCE_THRESHOLD,
    Detections,
    EncodeWindow,
    ImageEmbedding,
    TextEmbedding,
)

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3

_MANY = 5
# Spots are small below so many patches' sides. Half of the spots' area is in smaller ones.
_SMALL = 1.5
# Share of a quarter's side that it has in common with its neighbour.
_OVERLAP = 0.15
# Pixels from a quarter's border at which it counts in full; nearer to it it counts less.
_FADE = 20


def look_at_quarters(
    model: "MedSAM3",
    image: ImageEmbedding,
    text: TextEmbedding,
    detections: Sequence[Detections],
    encode_window: EncodeWindow,
) -> list[Detections]:
    """The same detections, with better semantic maps of what is small and many.

    Args:
        model: who gave the answers.
        image: the encoded image.
        text: the phrases that were asked for.
        detections: the answer to each of them.
        encode_window: encodes a quarter of the image.

    Returns:
        One per phrase. Presence, and whatever was found as instances, stay as they were.
    """
    answers = list(detections)
    small = [index for index, answer in enumerate(answers) if _many_and_small(answer, image)]
    if not small:
        return answers
    asked = TextEmbedding.concatenate([text[index] for index in small])
    height, width = answers[0].semantic.shape
    sums = np.zeros((len(small), height, width), np.float32)
    weights = np.zeros((height, width), np.float32)
    for top, bottom in _halves(height):
        for left, right in _halves(width):
            quarter = model.detect_all(encode_window((left, top, right, bottom)), asked)
            # Near its border a quarter sees half objects: there its neighbour counts more.
            weight = np.minimum.outer(_fading(bottom - top), _fading(right - left))
            weights[top:bottom, left:right] += weight
            for row, answer in enumerate(quarter):
                sums[row, top:bottom, left:right] += weight * answer.semantic
    for row, index in enumerate(small):
        answers[index] = replace(answers[index], semantic=sums[row] / weights)
    return answers


def _many_and_small(detections: Detections, image: ImageEmbedding) -> bool:
    """Whether no instance was found, but the semantic map shows many spots of a patch's size."""
    if len(detections) or detections.presence < PRESENCE_THRESHOLD:
        return False
    spots, count = ndimage.label(detections.semantic > 0.5)
    if count < _MANY:
        return False
    areas = np.sort(np.bincount(spots.ravel())[1:])
    # The spot's area at which half of all the spots' area is reached: specks of noise hardly count.
    middle = areas[np.searchsorted(np.cumsum(areas), areas.sum() / 2)]
    height, width = detections.semantic.shape
    patch = sqrt(height * width) / isqrt(image.last_hidden_state.shape[1])
    return sqrt(middle) < _SMALL * patch


def _halves(length: int) -> list[tuple[int, int]]:
    """Two spans that cover `length` and overlap."""
    side = min(ceil(length / (2 - _OVERLAP)), length)
    return [(0, side), (length - side, length)]


def _fading(length: int) -> NDArray[np.float32]:
    """Distance to the nearer end in pixels, 1 at the ends and `_FADE` at most."""
    place = np.arange(length)
    return np.minimum(np.minimum(place + 1, length - place), _FADE).astype(np.float32)
