"""From which score on an instance is worth showing: what the spared images say."""

import numpy as np
import pytest

from medsam3_model.training.thresholds import CANDIDATES, agreement, agreements, calibrated
from medsam3_model.types import Detections

SIZE = (20, 40)
LEFT, RIGHT = np.zeros(SIZE, np.bool_), np.zeros(SIZE, np.bool_)
LEFT[5:15, 2:12] = True
RIGHT[5:15, 28:38] = True
BOTH = LEFT.astype(np.int32) + 2 * RIGHT


def found(*instances: tuple[np.ndarray, float], presence: float = 0.9) -> Detections:
    masks = [mask for mask, _ in instances]
    return Detections(
        masks=np.stack(masks) if masks else np.zeros((0, *SIZE), np.bool_),
        boxes=np.zeros((len(masks), 4), np.float32),
        scores=np.array([score for _, score in instances], np.float32),
        presence=presence,
        semantic=(LEFT | RIGHT).astype(np.float32),
    )


def test_objects_that_are_told_apart_agree_better_than_one_blot() -> None:
    assert agreement(found((LEFT, 0.9), (RIGHT, 0.8)), BOTH) == 1
    # The semantic map has the same pixels: Dice 1, and one object that matches none by half.
    assert agreement(found(), BOTH) == pytest.approx(0.5)
    assert agreement(found((LEFT, 0.9)), BOTH) == pytest.approx((2 / 3 + 1 / 1.5) / 2)


def test_what_is_made_up_or_shown_twice_counts_against() -> None:
    once = agreement(found((LEFT, 0.9)), LEFT.astype(np.int32))
    twice = agreement(found((LEFT, 0.9), (LEFT, 0.8)), LEFT.astype(np.int32))
    more = agreement(found((LEFT, 0.9), (RIGHT, 0.8)), LEFT.astype(np.int32))
    assert once == 1 > twice > more


def test_nothing_where_nothing_is_agrees() -> None:
    nothing = np.zeros(SIZE, np.int32)
    assert agreement(found(presence=0.1), nothing) == 1
    assert agreement(found(presence=0.9), nothing) == 0


def test_the_threshold_that_shows_the_second_lung_is_chosen() -> None:
    row = agreements(found((LEFT, 0.9), (RIGHT, 0.35)), BOTH, 0.5)
    assert set(CANDIDATES) <= set(row)
    assert row[0.3] == 1 > row[0.5]
    assert calibrated([("lungs", row)] * 4, 0.5) == {"lungs": 0.3}


def test_too_few_images_or_nothing_gained_keep_the_models_own() -> None:
    row = agreements(found((LEFT, 0.9), (RIGHT, 0.35)), BOTH, 0.5)
    even = agreements(found((LEFT, 0.9), (RIGHT, 0.8)), BOTH, 0.5)
    assert calibrated([("lungs", row)] * 3, 0.5) == {}
    assert calibrated([("lungs", even)] * 9, 0.5) == {}
    assert calibrated([], 0.5) == {}


def test_an_own_threshold_that_is_no_candidate_is_tried_too() -> None:
    row = agreements(found((LEFT, 0.9), (RIGHT, 0.35)), BOTH, 0.34)
    assert row[0.34] == 1
    assert calibrated([("lungs", row)] * 4, 0.34) == {}
