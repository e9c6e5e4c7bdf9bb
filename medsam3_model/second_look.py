"""A second look: the one object that a phrase was answered with is asked for again, enlarged.

A name does not say where its object is, so the image is looked at as a whole first, where a small
object is seen by a few of the encoder's patches only. How much around it has to be seen to know it
differs: a polyp is told by itself, a ventricle by the heart around it, and some things by the whole
image alone. So each phrase has its own size of square, or none, which is found out on images with
masks (`thresholds.calibrated`).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3_model.box_answers import closer_look
from medsam3_model.boxes import tight_box
from medsam3_model.small_objects import look_at_quarters
from medsam3_model.types import Detections, EncodeWindow, ImageEmbedding, TextEmbedding

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3

ROOMS = (1.6, 2.5, 4.0)
"""Sides of the square that are tried, as multiples of the object's longer side."""
SMALL_PATCHES = 14
"""An object is looked at again where its longer side has fewer of the encoder's patches."""
# A pixel's probability is never surer than this in one look.
_SURE = 1e-4


def look_closer(
    model: "MedSAM3",
    image: ImageEmbedding,
    text: TextEmbedding,
    detections: Sequence[Detections],
    encode_window: EncodeWindow,
) -> list[Detections]:
    """The same detections, with better masks of what is small.

    First as `look_at_quarters`, with the same arguments; then each phrase's single object again.
    Presence, scores, and which instances there are, stay as they were.
    """
    answers = look_at_quarters(model, image, text, detections, encode_window)
    for index, answer in enumerate(answers):
        room = model.second_look_of(text.phrases[index])
        if room is not None:
            answers[index] = look_again(model, image, text[index], answer, room, encode_window)
    return answers


def look_again(
    model: "MedSAM3",
    image: ImageEmbedding,
    text: TextEmbedding,
    answer: Detections,
    room: float,
    encode_window: EncodeWindow,
) -> Detections:
    """An answer about a single object, weighed with what is seen in a square around it.

    Args:
        model, image, encode_window: as in `look_at_quarters`.
        text: the phrase that was asked for.
        answer: to it; with several instances, with none, or with a large one, it stays as it is.
        room: side of the square as a multiple of the object's longer side.
    """
    mask, _ = answer.concept_mask()
    if len(answer) > 1 or not mask.any():
        return answer
    height, width = image.original_size
    window = closer_look(image, tight_box(mask), room, SMALL_PATCHES)
    if window == (0, 0, width, height):
        return answer
    (again,) = model.detect_all(encode_window(window), text)
    x0, y0, x1, y1 = window
    # Log-odds of two witnesses add up; which side of 0 they are on decides.
    evidence = (_log_odds(answer.semantic[y0:y1, x0:x1]) + _log_odds(again.semantic)) / 2
    found = np.zeros_like(mask)
    found[y0:y1, x0:x1] = evidence > 0
    if len(answer):
        # What lies beside the instance is another one, which the thresholds left out.
        pieces, _ = ndimage.label(found)
        found &= np.isin(pieces, pieces[mask & found])
    if not found.any():
        return answer
    semantic = answer.semantic.copy()
    semantic[y0:y1, x0:x1] = 1 / (1 + np.exp(-evidence))
    if not len(answer):
        return replace(answer, semantic=semantic)
    box = tight_box(found).astype(np.float32)
    return replace(answer, semantic=semantic, masks=found[None], boxes=box[None])


def _log_odds(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    bounded = probability.clip(_SURE, 1 - _SURE)
    return np.asarray(np.log(bounded / (1 - bounded)), np.float32)
