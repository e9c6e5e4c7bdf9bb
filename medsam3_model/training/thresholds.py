"""Calibrated thresholds: from which score on an instance of a phrase is worth showing.

One threshold for all names fits none: a detector that was tuned on fifty lungs scores them higher
than the vessels that it saw five times. What the spared images show decides, phrase by phrase.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medsam3_model.evaluation.metrics import dice
from medsam3_model.types import Detections

CANDIDATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""The thresholds that are tried."""
# A phrase keeps the model's own threshold with fewer images that hold it, and where another one is
# no better than by so much.
LEAST_IMAGES, _LEAST_GAIN = 4, 0.005
# Masks that overlap by more are the same object (Kirillov et al. 2019, arXiv 1801.00868).
_SAME_OBJECT_IOU = 0.5


def agreement(detections: Detections, truth: NDArray[np.integer]) -> float:
    """How well an answer agrees with what annotators drew, 0 to 1.

    The mean of two: Dice of all objects together, and panoptic quality (Kirillov et al. 2019), for
    which objects have to be told apart, too. Where nothing is there, an empty answer is 1.

    Args:
        detections: the instances that are shown; without any the semantic map counts as one.
        truth: instance numbers (H, W), 0 outside.
    """
    mask, source = detections.concept_mask()
    shown = [mask] if source == "semantic" else list(detections.masks)
    return (dice(mask, truth > 0) + _panoptic_quality(shown, truth)) / 2


def _panoptic_quality(shown: Sequence[NDArray[np.bool_]], truth: NDArray[np.integer]) -> float:
    areas = np.bincount(truth.ravel())
    areas[0] = 0
    shown = [mask for mask in shown if mask.any()]
    count = int((areas > 0).sum()) + len(shown)
    if count == 0:
        return 1.0
    best: dict[int, float] = {}
    for mask in shown:
        shared = np.bincount(truth[mask], minlength=len(areas))
        shared[0] = 0
        ious = shared / np.maximum(areas + int(mask.sum()) - shared, 1)
        number = int(ious.argmax())
        if ious[number] > _SAME_OBJECT_IOU:
            best[number] = max(best.get(number, 0.0), float(ious[number]))
    # The sum of the overlaps over matched pairs and half of what was missed or made up.
    return sum(best.values()) / (len(best) + (count - 2 * len(best)) / 2)


def agreements(
    detections: Detections, truth: NDArray[np.integer], own: float
) -> dict[float, float]:
    """The agreement with each candidate and with the model's own threshold.

    Args:
        detections: with the lowest of them.
        truth: as in `agreement`.
        own: the model's threshold.
    """
    return {
        threshold: agreement(detections.above(threshold), truth)
        for threshold in sorted({*CANDIDATES, own})
    }


def calibrated(scored: Iterable[tuple[str, Mapping[float, float]]], own: float) -> dict[str, float]:
    """The thresholds by phrase that agree best, where they are better than the model's own.

    Args:
        scored: phrase and `agreements` of each spared image.
        own: the model's threshold.
    """
    by_phrase: dict[str, list[Mapping[float, float]]] = {}
    for phrase, row in scored:
        by_phrase.setdefault(phrase, []).append(row)
    found: dict[str, float] = {}
    for phrase, rows in sorted(by_phrase.items()):
        means = {one: float(np.mean([row[one] for row in rows])) for one in rows[0]}
        # Of equals the one nearest to the model's own.
        best = max(means, key=lambda one: (round(means[one], 6), -abs(one - own)))
        if len(rows) >= LEAST_IMAGES and means[best] > means[own] + _LEAST_GAIN:
            found[phrase] = best
    return found
