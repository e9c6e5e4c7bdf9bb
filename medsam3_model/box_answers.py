"""Box answers: what a drawn box says about each pixel, weighed with what the model says.

A box alone is worth a lot: most objects fill the ellipse inscribed in it. Over 3,857 boxes of 8 %
error around objects in training images of ISIC 2017, Kvasir-SEG and the 2018 Data Science Bowl, the
log-odds that a pixel belongs to the object are, in each of the sets and in every direction from the
centre, close to a straight line: 8 · (0.96 − r), with r = 1 on the ellipse. Added to the model's
log-odds, as the evidence of two witnesses adds up, this decides where the model is unsure and gives
way where it is sure.
"""

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from medsam3_model.boxes import tight_box
from medsam3_model.types import ImageEmbedding, Window

if TYPE_CHECKING:
    from medsam3_model.tracker import Tracker

_STEEPNESS = 8.0
# At .96 inside and outside are equally likely. Dice counts the object's pixels only, so it is best
# with a slightly larger mask.
_EDGE = 0.98
# Largest log-odds of a box. A model that is surer may cut a hole, or reach a little beyond the box.
_PRIOR_LIMIT = 3.0
# The object may reach this share of the box's size beyond it: three standard deviations of a
# person's error and a bit.
_REACH = 0.3
# Larger log-odds of the model count as this when the evidence is balanced: the certain pixels of a
# good mask should not move its border.
_BALANCE_LIMIT = 4.0
# The weight of the model grows from 0 to 1 while its mask's overlap (IoU) with the drawn box grows
# from the first to the second figure.
_UNFIT_IOU, _FIT_IOU = 0.7, 0.85
# An object is looked at enlarged where its longer side has fewer of the encoder's patches.
FEW_PATCHES = 8
# Side of the square that is looked at then, as a multiple of a drawn box's longer side.
ENLARGED = 1.6
# Largest log-odds that the tracker is told, and that count where its answer is weighed.
_SURE = 7.0
# What the tracker is told is made so much steeper: it learned from answers of its own.
_STEEPER = 2.0
# The tracker's answer counts half where its mask overlaps (IoU) the one that it began with by the
# second figure, not at all below the first: then it is about something else, such as what a ring
# surrounds. Chosen on validation groups of ISIC 2017, Kvasir-SEG, BUS-UCLM and
# Sunnybrook, and with a look at BUSI, ACDC and chest X-rays.
_DIFFERENT_IOU, _SAME_IOU = 0.8, 0.95
# Smallest side of that square in pixels: something around the object has to be seen.
_SMALLEST_WINDOW = 24


@dataclass(frozen=True, eq=False)
class BoxAnswer:
    """The object in a box.

    Attributes:
        window: the part of the image that was looked at; nothing outside belongs to the object.
        log_odds: float32 (height, width) of the window; the object is where they are positive.
    """

    window: Window
    log_odds: NDArray[np.float32]

    @property
    def probability(self) -> NDArray[np.float32]:
        """Of each pixel of the window."""
        return _sigmoid(self.log_odds)


def box_log_odds(box: NDArray[np.float32], window: Window) -> NDArray[np.float32]:
    """Log-odds that a pixel belongs to the object in a box, by its place alone; see the module.

    Args:
        box: x0, y0, x1, y1 in pixels.
        window: where to compute them.

    Returns:
        float32 (height, width) of the window, within ±3 in the ellipse's surroundings and in it.
    """
    (x0, y0, x1, y1), (left, top, right, bottom) = box, window
    x = (np.arange(left, right) + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)
    y = (np.arange(top, bottom) + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2)
    radius = np.sqrt(x[None, :] ** 2 + y[:, None] ** 2)
    limited = np.clip(_STEEPNESS * (_EDGE - radius), -_PRIOR_LIMIT, _PRIOR_LIMIT)
    return limited.astype(np.float32)


def answer_in_box(
    logits: NDArray[np.float32], seen: Window, box: NDArray[np.float32], size: tuple[int, int]
) -> BoxAnswer:
    """Weigh the model's evidence with the box's.

    The model's evidence is *balanced* first: where the box leaves open what a pixel is, on a band
    around the ellipse, half of the pixels are in the object, so a model that calls (nearly) all of
    them background, or object, is off by a constant. Then it counts as much as it agrees with the
    box: by its squared correlation with what the box says, and in full where the mask that it draws
    has the drawn box. A model that sees nothing in the box leaves the ellipse.

    Args:
        logits: float (h, w), the model's log-odds, of any resolution.
        seen: the part of the image that `logits` covers.
        box: x0, y0, x1, y1 in pixels of the image.
        size: (height, width) of the image.
    """
    window = _around(box, size)
    prior = box_log_odds(box, window)
    evidence = _resample(logits, seen, window)
    belief = _sigmoid(prior)
    # Balance: where the box leaves open what a pixel is, the evidence should be 0 on average.
    open_to_doubt = belief * (1 - belief)
    limited = np.clip(evidence, -_BALANCE_LIMIT, _BALANCE_LIMIT)
    evidence = evidence - np.float32(np.average(limited, weights=open_to_doubt))
    # How much the model counts: by agreement of the two maps, or because its mask fits the box.
    fit = (_mask_iou(evidence > 0, window, box) - _UNFIT_IOU) / (_FIT_IOU - _UNFIT_IOU)
    weight = max(_correlation(_sigmoid(evidence), belief) ** 2, min(max(fit, 0.0), 1.0))
    # Log-odds of independent witnesses add up.
    return BoxAnswer(window, (np.float32(weight) * evidence + prior).astype(np.float32))


def refined(
    answer: BoxAnswer,
    tracker: "Tracker",
    image: ImageEmbedding,
    seen: Window,
    box: NDArray[np.float32],
) -> BoxAnswer:
    """The mean of an answer and of what the tracker makes of it, as far as they agree.

    Args:
        answer: of `answer_in_box`.
        tracker: of the model that encoded the image.
        image: what was looked at.
        seen: the part of the whole image that it shows.
        box: x0, y0, x1, y1 in pixels of the whole image.
    """
    given = answer.log_odds.clip(-_SURE, _SURE)
    left, top, right, bottom = seen
    told = np.full((bottom - top, right - left), -_SURE, np.float32)
    x0, y0, x1, y1 = answer.window
    cut = max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)
    told[cut[1] - top : cut[3] - top, cut[0] - left : cut[2] - left] = given[
        cut[1] - y0 : cut[3] - y0, cut[0] - x0 : cut[2] - x0
    ]
    within = (box - [left, top, left, top]).clip(0, [right - left, bottom - top] * 2)
    mask = _STEEPER * in_cells(told, tracker.mask_side)
    made = tracker.ask(image, box=within.astype(np.float32), mask=mask)
    best = made.logits[int(made.iou.argmax())]
    other = _resample(best, seen, answer.window).clip(-_SURE, _SURE)
    union = ((given > 0) | (other > 0)).sum()
    iou = float(((given > 0) & (other > 0)).sum() / union) if union else 0.0
    same = (iou - _DIFFERENT_IOU) / (_SAME_IOU - _DIFFERENT_IOU)
    weight = np.float32(0.5 * min(max(same, 0.0), 1.0))
    return BoxAnswer(answer.window, ((1 - weight) * given + weight * other).astype(np.float32))


def in_cells(log_odds: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """A map (H, W) as a mask prompt (side, side)."""
    given = torch.from_numpy(np.ascontiguousarray(log_odds, np.float32))[None, None]
    return F.interpolate(given, (side, side), mode="bilinear", antialias=True)[0, 0].numpy()


def closer_look(
    image: ImageEmbedding,
    box: NDArray[np.float32],
    room: float = ENLARGED,
    few_patches: int = FEW_PATCHES,
) -> Window:
    """The part of the image to look at for an object: a square around a small one, else all of it.

    Args:
        image: the encoded image.
        box: x0, y0, x1, y1 around the object, in pixels.
        room: side of the square as a multiple of the box's longer side.
        few_patches: an object is small whose longer side has fewer of the encoder's patches.
    """
    height, width = image.original_size
    patches = isqrt(image.last_hidden_state.shape[1])
    box_width, box_height = (float(side) for side in box[2:] - box[:2])
    if patches * max(box_width / width, box_height / height) >= few_patches:
        return 0, 0, width, height
    factor = max(room, _SMALLEST_WINDOW / max(box_width, box_height))
    return enlarged(box, image.original_size, factor)


def enlarged(box: NDArray[np.float32], size: tuple[int, int], factor: float) -> Window:
    """The square around a box, `factor` times its longer side, moved and cut to fit the image."""
    side = factor * float(max(box[2] - box[0], box[3] - box[1]))
    (left, right), (top, bottom) = (
        _span(float(box[axis] + box[axis + 2]) / 2, side, length)
        for axis, length in ((0, size[1]), (1, size[0]))
    )
    return left, top, right, bottom


def _span(centre: float, side: float, length: int) -> tuple[int, int]:
    """Where `side` pixels around `centre` begin and end, moved into 0..length."""
    side = min(side, length)
    low = min(max(centre - side / 2, 0.0), length - side)
    return int(np.floor(low)), min(int(np.ceil(low + side)), length)


def _around(box: NDArray[np.float32], size: tuple[int, int]) -> Window:
    """The part of the image that the object in a box may reach."""
    reach = _REACH * (box[2:] - box[:2])
    low = np.floor(np.maximum(box[:2] - reach, 0)).astype(int)
    high = np.ceil(np.minimum(box[2:] + reach, size[::-1])).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _resample(logits: NDArray[np.float32], seen: Window, window: Window) -> NDArray[np.float32]:
    """Bilinear, at the centres of the window's pixels; beyond `seen` the nearest value."""
    columns = _weights(logits.shape[1], seen[0], seen[2], window[0], window[2])
    rows = _weights(logits.shape[0], seen[1], seen[3], window[1], window[3])
    # Not numpy's product: the threads of its BLAS spin on for a while, and slow torch's down.
    tall = torch.from_numpy(rows) @ torch.from_numpy(logits.astype(np.float32))
    return np.asarray((tall @ torch.from_numpy(columns).T).numpy(), np.float32)


def _weights(cells: int, low: int, high: int, start: int, stop: int) -> NDArray[np.float32]:
    """(stop - start, cells): how much each cell between low and high counts at each pixel."""
    place = (np.arange(start, stop) + 0.5 - low) / (high - low) * cells - 0.5
    distance = np.abs(np.clip(place, 0, cells - 1)[:, None] - np.arange(cells))
    return np.maximum(1 - distance, 0).astype(np.float32)


def _mask_iou(mask: NDArray[np.bool_], window: Window, box: NDArray[np.float32]) -> float:
    """IoU of a box with the tight box of a mask in a window; 0 for an empty mask."""
    if not mask.any():
        return 0.0
    tight = tight_box(mask).astype(np.float64)
    low, high = tight[:2] + window[:2], tight[2:] + window[:2]
    shared = np.clip(np.minimum(high, box[2:]) - np.maximum(low, box[:2]), 0, None).prod()
    return float(shared / ((high - low).prod() + (box[2:] - box[:2]).prod() - shared))


def _correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Pearson's, not below 0; 0 where one of them is constant."""
    first, second = first - first.mean(), second - second.mean()
    length = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return max(float((first * second).sum()) / length, 0.0) if length > 0 else 0.0


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -60, 60))), np.float32)
