"""Metrics of masks against the truth, and intervals of their means over images.

Every function takes two masks of one image as bool arrays (H, W); lengths and distances are in
pixels. The definitions are those of `monai.metrics` (a boundary is what a 4-neighbour erosion
takes away), and the tests hold them equal to MONAI's results. They are computed here, with NumPy
and a k-d tree, because the same figures are needed for every correction in processes that do not
load torch, and because comparing boundaries instead of whole distance maps is several times
faster.

An empty mask is a finding, not an error. Where both masks are empty they agree perfectly; where
one is, nothing of it was found: Dice, IoU and surface Dice are 0 and the Hausdorff distance is
the image's diagonal, so that an empty answer never improves a mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BoolMask = NDArray[np.bool_]

# Two pixels at 512 px is about the width of the line that an annotator draws.
SURFACE_TOLERANCE = 2.0

# Resamples of a bootstrap: the 2.5 % quantile then rests on 50 of them.
RESAMPLES = 2000
_LEVEL = 0.95  # of all intervals


@dataclass(frozen=True)
class MaskScores:
    """All figures of one predicted mask against the true one.

    Attributes:
        dice: Dice coefficient, 0 to 1.
        iou: intersection over union, 0 to 1.
        surface_dice: share of both boundaries that is within the tolerance of the other one
            (normalised surface Dice of Nikolov et al. 2018, arXiv 1809.04430, boundary pixels
            unweighted as in `monai.metrics.compute_surface_dice`), 0 to 1.
        hd95: 95 % Hausdorff distance in pixels, the larger of the two directed 95th percentiles,
            as `monai.metrics.compute_hausdorff_distance(percentile=95)`.
        added_path_length: pixels of the true boundary that are not on the predicted one and would
            have to be drawn again (Vaassen et al. 2020, doi:10.1016/j.phro.2019.12.001).
    """

    dice: float
    iou: float
    surface_dice: float
    hd95: float
    added_path_length: float


@dataclass(frozen=True)
class Interval:
    """A mean over images with its 95 % interval; `count` images in `groups` groups."""

    mean: float
    low: float
    high: float
    count: int
    groups: int


@dataclass(frozen=True)
class PairedDifference:
    """Mean of (candidate − incumbent) over the same images, with its bootstrap interval.

    `probability_better` is the share of the resamples in which the candidate's mean is higher.
    """

    mean: float
    low: float
    high: float
    probability_better: float
    count: int
    groups: int


def dice(predicted: BoolMask, truth: BoolMask) -> float:
    """Dice coefficient 2·|A∩B| / (|A|+|B|); 1 where both masks are empty."""
    predicted, truth = _pair(predicted, truth)
    total = np.count_nonzero(predicted) + np.count_nonzero(truth)
    return 2.0 * np.count_nonzero(predicted & truth) / total if total else 1.0


def iou(predicted: BoolMask, truth: BoolMask) -> float:
    """Intersection over union |A∩B| / |A∪B|; 1 where both masks are empty."""
    predicted, truth = _pair(predicted, truth)
    union = np.count_nonzero(predicted | truth)
    return np.count_nonzero(predicted & truth) / union if union else 1.0


def score_mask(
    predicted: BoolMask, truth: BoolMask, *, tolerance: float = SURFACE_TOLERANCE
) -> MaskScores:
    """Every figure of `predicted` against `truth`; the boundaries are compared once.

    Args:
        predicted: bool (H, W).
        truth: bool (H, W).
        tolerance: of the surface Dice, in pixels.

    Raises:
        ValueError: the two shapes differ or are not two-dimensional.
    """
    predicted, truth = _pair(predicted, truth)
    overlap = (dice(predicted, truth), iou(predicted, truth))
    drawn, true = boundary(predicted), boundary(truth)
    n_drawn, n_true = np.count_nonzero(drawn), np.count_nonzero(true)
    if n_drawn == 0 and n_true == 0:
        return MaskScores(*overlap, surface_dice=1.0, hd95=0.0, added_path_length=0.0)
    if n_drawn == 0 or n_true == 0:
        return MaskScores(
            *overlap,
            surface_dice=0.0,
            hd95=math.hypot(*truth.shape),
            added_path_length=float(n_true),
        )
    from_drawn, from_true = _directed_distances(drawn, true)
    near = np.count_nonzero(from_drawn <= tolerance) + np.count_nonzero(from_true <= tolerance)
    return MaskScores(
        *overlap,
        surface_dice=near / (n_drawn + n_true),
        hd95=float(max(np.percentile(from_drawn, 95), np.percentile(from_true, 95))),
        added_path_length=float(np.count_nonzero(from_true > 0)),
    )


def boundary(mask: BoolMask) -> BoolMask:
    """Pixels of `mask` with a 4-neighbour outside it; beyond the image counts as outside."""
    # Four shifted copies: a pixel is inner where all its neighbours are in the mask.
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def bootstrap_mean(
    values: Sequence[float] | NDArray[np.floating],
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """Mean of one figure per image, with the percentile bootstrap's 95 % interval.

    With `groups` (one per value) whole groups are drawn, because two images of one patient are
    not two independent witnesses (cluster bootstrap, Field and Welsh 2007). Same input and seed,
    same interval. One group gives the mean as both ends. Raises `ValueError` without values, or
    where a value is not finite.
    """
    return _bootstrap(values, groups, seed)[0]


def proportion(
    outcomes: Sequence[bool], groups: Sequence[str] | None = None, *, z: float = 1.959964
) -> Interval:
    """Share of the images on which something happened, with Wilson's interval (95 % for this z).

    Where it never happened a bootstrap would be certain that it never does; Wilson's interval
    (1927, doi:10.1080/01621459.1927.10502953) is not. With `groups` as many witnesses are counted
    as there are groups, which errs towards the wider interval. Raises `ValueError` without images.
    """
    sums, counts = _by_group(np.asarray(outcomes, np.float64), groups)
    share, n = float(sums.sum() / counts.sum()), len(counts)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(share, max(centre - half, 0.0), min(centre + half, 1.0), int(counts.sum()), n)


def paired_bootstrap(
    candidate: Sequence[float] | NDArray[np.floating],
    incumbent: Sequence[float] | NDArray[np.floating],
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> PairedDifference:
    """By how much `candidate` is better than `incumbent` on the same images, in the same order.

    The differences of the pairs are resampled, by whole groups where `groups` are given, so what
    makes an image hard for both cancels out. A tie counts half towards `probability_better`.
    Raises `ValueError` where the two differ in length, are empty or not finite.
    """
    first, second = np.asarray(candidate, np.float64), np.asarray(incumbent, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"{first.size} and {second.size} figures cannot be paired.")
    interval, means = _bootstrap(first - second, groups, seed)
    better = float(np.mean(means > 0) + np.mean(means == 0) / 2)
    return PairedDifference(
        interval.mean, interval.low, interval.high, better, interval.count, interval.groups
    )


def _bootstrap(
    values: Sequence[float] | NDArray[np.floating], groups: Sequence[str] | None, seed: int
) -> tuple[Interval, NDArray[np.float64]]:
    """The mean with its interval, and the `RESAMPLES` means that the interval comes from."""
    sums, counts = _by_group(values, groups)
    rng = np.random.default_rng(seed)
    # How often each group is drawn is all that a mean needs: one multinomial row a resample.
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    mean, count = float(sums.sum() / counts.sum()), int(counts.sum())
    return Interval(mean, float(low), float(high), count, len(counts)), means


def _pair(predicted: BoolMask, truth: BoolMask) -> tuple[BoolMask, BoolMask]:
    predicted, truth = np.asarray(predicted, bool), np.asarray(truth, bool)
    if predicted.shape != truth.shape or truth.ndim != 2:
        raise ValueError(
            f"Masks of one image have one shape (H, W), not {predicted.shape} and {truth.shape}."
        )
    return predicted, truth


def _directed_distances(
    first: BoolMask, second: BoolMask
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance of every boundary pixel of each mask to the other's nearest boundary pixel."""
    from scipy import ndimage
    from scipy.spatial import cKDTree

    first_points, second_points = np.argwhere(first), np.argwhere(second)
    # A tree pays while the boundaries are lines; where they fill the image (noise, hundreds of
    # specks) one pass of the distance transform over all pixels is the cheaper way.
    if 6 * (len(first_points) + len(second_points)) < first.size:
        return (
            cKDTree(second_points).query(first_points)[0],
            cKDTree(first_points).query(second_points)[0],
        )
    to_second: Any = ndimage.distance_transform_edt(~second)
    to_first: Any = ndimage.distance_transform_edt(~first)
    return to_second[first], to_first[second]


def _by_group(
    values: Sequence[float] | NDArray[np.floating], groups: Sequence[str] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each group, groups in sorted order."""
    figures = np.asarray(values, np.float64).ravel()
    if figures.size == 0 or not np.isfinite(figures).all():
        raise ValueError("A mean needs at least one value, and finite ones only.")
    if groups is None:
        return figures, np.ones_like(figures)
    if len(groups) != figures.size:
        raise ValueError(f"{len(groups)} groups for {figures.size} values.")
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums = np.bincount(index, weights=figures).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)
