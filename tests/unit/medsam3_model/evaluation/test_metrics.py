"""Metrics against shapes whose figures follow from geometry, and against MONAI."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medsam3_model.evaluation import metrics

H, W = 128, 160


def disk(row: float, column: float, radius: float, shape: tuple[int, int] = (H, W)) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def square(top: int, left: int, side: int, shape: tuple[int, int] = (H, W)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize("shift", [0, 1, 3, 10, 39])
def test_overlap_of_a_shifted_square(shift: int) -> None:
    side = 40
    truth, predicted = square(20, 20, side), square(20, 20 + shift, side)
    common = side * (side - shift)
    assert metrics.dice(predicted, truth) == pytest.approx(common / side**2)
    assert metrics.iou(predicted, truth) == pytest.approx(common / (2 * side**2 - common))


@pytest.mark.parametrize("shift", [1, 2, 5])
def test_surface_of_a_square_that_grew_evenly(shift: int) -> None:
    """Straight sides are `shift` apart; only the larger square's corners are farther."""
    truth, predicted = square(40, 40, 40), square(40 - shift, 40 - shift, 40 + 2 * shift)
    scores = metrics.score_mask(predicted, truth, tolerance=shift)
    inner, outer = 4 * 39, 4 * (39 + 2 * shift)
    # On each of 8 half corners the `shift` outermost pixels, the corner itself shared by two.
    far = 4 * (2 * shift - 1)
    assert scores.surface_dice == pytest.approx((inner + outer - far) / (inner + outer))
    assert metrics.score_mask(predicted, truth, tolerance=shift - 0.5).surface_dice == 0.0
    assert scores.added_path_length == inner


@pytest.mark.parametrize(("small", "large"), [(20, 23), (30, 45)])
def test_hausdorff_of_concentric_disks_is_the_difference_of_the_radii(small: int, large: int):
    scores = metrics.score_mask(disk(64, 80, small), disk(64, 80, large))
    assert scores.hd95 == pytest.approx(large - small, abs=0.75)


def test_dice_of_disks_follows_the_lens_formula() -> None:
    radius, distance = 50.0, 30.0
    lens = 2 * radius**2 * np.arccos(distance / (2 * radius)) - distance / 2 * np.sqrt(
        4 * radius**2 - distance**2
    )
    truth, predicted = disk(64, 60, radius), disk(64, 90, radius)
    assert metrics.dice(predicted, truth) == pytest.approx(lens / (np.pi * radius**2), abs=0.005)


def test_hd95_forgives_a_twentieth_of_the_boundary() -> None:
    truth = square(20, 20, 60)
    spiked = truth.copy()
    spiked[50, 80:86] = True  # a spike of 6 px on a boundary of 236
    assert metrics.score_mask(spiked, truth).hd95 == 0.0
    assert metrics.score_mask(spiked, truth).surface_dice < 1.0


def test_empty_masks() -> None:
    nothing, something = np.zeros((30, 40), bool), square(5, 5, 10, (30, 40))
    assert metrics.score_mask(nothing, nothing) == metrics.MaskScores(1.0, 1.0, 1.0, 0.0, 0.0)
    missed = metrics.score_mask(nothing, something)
    assert missed == metrics.MaskScores(0.0, 0.0, 0.0, 50.0, 36.0)
    invented = metrics.score_mask(something, nothing)
    assert invented == metrics.MaskScores(0.0, 0.0, 0.0, 50.0, 0.0)


def test_added_path_length_counts_only_what_has_to_be_redrawn() -> None:
    truth = square(10, 10, 20)
    half = truth.copy()
    half[10:30, 20:30] = False  # the right half is missing
    # Left half of the outline is shared: 20 on the side, 10 above, 10 below, corners counted once.
    assert metrics.score_mask(half, truth).added_path_length == 4 * 19 - (20 + 9 + 9)


@given(
    hnp.arrays(bool, (24, 31), elements=st.booleans(), fill=st.just(False)),
    hnp.arrays(bool, (24, 31), elements=st.booleans(), fill=st.just(False)),
)
@settings(max_examples=60, deadline=None)
def test_bounds_symmetry_and_identity(first: np.ndarray, second: np.ndarray) -> None:
    there, back = metrics.score_mask(first, second), metrics.score_mask(second, first)
    assert (there.dice, there.iou, there.surface_dice, there.hd95) == (
        back.dice,
        back.iou,
        back.surface_dice,
        back.hd95,
    )
    assert 0 <= there.iou <= there.dice <= 1
    assert there.dice == pytest.approx(2 * there.iou / (1 + there.iou))
    assert 0 <= there.surface_dice <= 1
    assert there.hd95 <= np.hypot(24, 31)
    same = metrics.score_mask(first, first)
    assert same == metrics.MaskScores(1.0, 1.0, 1.0, 0.0, 0.0)


def _blobs(seed: int, smoothness: float) -> np.ndarray:
    from scipy import ndimage

    noise = np.random.default_rng(seed).normal(size=(96, 120))
    return ndimage.gaussian_filter(noise, smoothness) > 0.3 * 0.28 / smoothness


@pytest.mark.filterwarnings("ignore::FutureWarning:monai")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("smoothness", [0.7, 2.0, 8.0])  # from noise to a few large blobs
def test_figures_are_those_of_monai(smoothness: float) -> None:
    import torch
    from monai.metrics import (
        compute_dice,
        compute_hausdorff_distance,
        compute_iou,
        compute_surface_dice,
    )

    predicted, truth = _blobs(1, smoothness), _blobs(2, smoothness)
    ours = metrics.score_mask(predicted, truth, tolerance=2.0)
    first, second = (torch.from_numpy(m)[None, None] for m in (predicted, truth))
    assert ours.dice == pytest.approx(compute_dice(first, second).item())
    assert ours.iou == pytest.approx(compute_iou(first, second).item())
    theirs = compute_surface_dice(first, second, [2.0], include_background=True).item()
    assert ours.surface_dice == pytest.approx(theirs, abs=1e-6)
    theirs = compute_hausdorff_distance(first, second, include_background=True, percentile=95)
    assert ours.hd95 == pytest.approx(theirs.item(), rel=1e-6)


def test_tree_and_distance_transform_agree() -> None:
    """Both ways of measuring, on the same boundary: embedded in a large image the tree is taken."""
    noise, other = _blobs(3, 0.7), _blobs(4, 0.7)
    wide = [np.pad(mask, 300) for mask in (noise, other)]
    small, large = metrics.score_mask(noise, other), metrics.score_mask(*wide)
    assert small == large


def test_masks_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        metrics.dice(np.zeros((4, 5), bool), np.zeros((5, 4), bool))


@pytest.mark.parametrize(
    ("happened", "images", "low", "high"),  # Newcombe 1998, table I: Wilson's score interval
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_proportion_gives_the_published_intervals(
    happened: int, images: int, low: float, high: float
) -> None:
    found = metrics.proportion([i < happened for i in range(images)])
    assert found.mean == pytest.approx(happened / images)
    assert (found.low, found.high) == (
        pytest.approx(low, abs=6e-5),
        pytest.approx(high, abs=6e-5),
    )


def test_a_proportion_over_groups_counts_them_as_the_witnesses() -> None:
    outcomes = [True] * 10 + [False] * 30
    alone = metrics.proportion([True, False, False, False])
    grouped = metrics.proportion(outcomes, [str(i // 10) for i in range(40)])
    assert (grouped.mean, grouped.low, grouped.high) == (alone.mean, alone.low, alone.high)
    assert (grouped.count, grouped.groups) == (40, 4)


def test_interval_covers_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 500)
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        interval = metrics.bootstrap_mean(rng.normal(0.5, 0.1, 40), seed=trial)
        covered += interval.low <= 0.5 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_interval_is_the_textbook_one_for_many_values() -> None:
    values = np.random.default_rng(1).normal(0, 1, 4000)
    interval = metrics.bootstrap_mean(values)
    assert interval.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.1)
    assert interval == metrics.bootstrap_mean(values)
    assert interval != metrics.bootstrap_mean(values, seed=1)


def test_groups_are_drawn_whole() -> None:
    """Ten copies of each image add nothing: the interval is that of the images alone."""
    values = np.random.default_rng(2).random(30)
    names = [f"patient{i}" for i in range(30)]
    alone = metrics.bootstrap_mean(values, sorted(names))
    order = np.argsort(names)
    copied = metrics.bootstrap_mean(np.repeat(values[order], 10), np.repeat(sorted(names), 10))
    naive = metrics.bootstrap_mean(np.repeat(values, 10))
    assert (copied.count, copied.groups) == (300, 30)
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert naive.high - naive.low < 0.5 * (copied.high - copied.low)


def test_paired_difference_sees_a_small_steady_gain() -> None:
    rng = np.random.default_rng(3)
    incumbent = rng.uniform(0.3, 0.9, 50)  # images differ much
    candidate = incumbent + rng.normal(0.02, 0.01, 50)  # the gain hardly does
    gain = metrics.paired_bootstrap(candidate, incumbent)
    assert 0.01 < gain.low < gain.mean < gain.high < 0.03
    assert gain.probability_better == 1.0
    back = metrics.paired_bootstrap(incumbent, candidate)
    assert back.probability_better == 0.0
    assert back.mean == pytest.approx(-gain.mean)


def test_a_tie_proves_nothing() -> None:
    same = metrics.paired_bootstrap([0.5, 0.6], [0.5, 0.6])
    assert (same.mean, same.low, same.high, same.probability_better) == (0, 0, 0, 0.5)


@pytest.mark.parametrize("values", [[], [float("nan")], [0.5, float("inf")]])
def test_bootstrap_refuses_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        metrics.bootstrap_mean(values)


def test_bootstrap_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="groups for"):
        metrics.bootstrap_mean([0.1, 0.2], ["a"])
    with pytest.raises(ValueError, match="paired"):
        metrics.paired_bootstrap([0.1, 0.2], [0.1])
