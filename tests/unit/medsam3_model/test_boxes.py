"""Boxes of masks, their disturbance, and the shapes that a box alone gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsam3_model import boxes
from medsam3_model.errors import PromptError
from medsam3_model.evaluation import metrics


def test_tight_box_is_measured_at_pixel_edges() -> None:
    mask = np.zeros((20, 30), bool)
    mask[4:9, 7:12] = True
    box = boxes.tight_box(mask)
    assert box.dtype == np.float32
    assert box.tolist() == [7, 4, 12, 9]
    mask[:] = False
    mask[19, 29] = True
    assert boxes.tight_box(mask).tolist() == [29, 19, 30, 20]


def test_an_empty_mask_has_no_box() -> None:
    with pytest.raises(PromptError, match="empty"):
        boxes.tight_box(np.zeros((4, 4), bool))
    assert boxes.instance_boxes(np.zeros((4, 4), np.int32)).shape == (0, 4)


def test_pixels_that_touch_by_a_corner_are_two_instances() -> None:
    mask = np.zeros((12, 12), bool)
    mask[0:4, 0:4] = mask[4:8, 4:8] = True
    labels = boxes.connected_instances(mask)
    assert labels.max() == 2
    assert boxes.instance_boxes(labels).tolist() == [[0, 0, 4, 4], [4, 4, 8, 8]]


def test_instances_that_touch_keep_their_own_boxes_and_gaps_in_the_numbers_do_no_harm() -> None:
    labels = np.zeros((10, 20), np.uint16)
    labels[2:6, 0:5] = 7
    labels[2:6, 5:10] = 300
    assert boxes.instance_boxes(labels).tolist() == [[0, 2, 5, 6], [5, 2, 10, 6]]


def test_specks_get_no_box_unless_there_is_nothing_else() -> None:
    labels = np.zeros((20, 20), np.int32)
    labels[0, 0] = 1
    labels[5:10, 5:10] = 2
    assert boxes.instance_boxes(labels).tolist() == [[5, 5, 10, 10]]
    assert len(boxes.instance_boxes(labels, minimum_area=1)) == 2
    labels[labels == 2] = 0
    labels[3, 3:6] = 5
    assert boxes.instance_boxes(labels).tolist() == [[3, 3, 6, 4]]


def test_a_mask_of_bools_is_one_instance() -> None:
    mask = np.zeros((20, 20), bool)
    mask[0:5, 0:5] = mask[10:15, 10:18] = True
    assert boxes.instance_boxes(mask).tolist() == [[0, 0, 18, 15]]


def test_error_of_a_disturbed_box_is_the_documented_one() -> None:
    rng = np.random.default_rng(0)
    box = np.array([400, 300, 600, 700], np.float32)
    moved = np.array([boxes.disturbed_box(box, 1000, 1000, rng) for _ in range(4000)]) - box
    assert moved.mean(0) == pytest.approx(np.zeros(4), abs=1.5)
    assert moved.std(0) == pytest.approx([16, 32, 16, 32], rel=0.05)


@given(
    st.floats(0, 60),
    st.floats(0, 40),
    st.floats(0.5, 64),
    st.floats(0.5, 48),
    st.floats(0, 3),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_a_disturbed_box_is_always_a_box_of_the_image(
    x: float, y: float, width: float, height: float, error: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    given_box = [x, y, min(x + width, 64), min(y + height, 48)]
    x0, y0, x1, y1 = boxes.disturbed_box(given_box, 48, 64, rng, error=error)
    assert 0 <= x0 < x1 <= 64
    assert 0 <= y0 < y1 <= 48
    assert x1 - x0 >= 1 - 1e-5
    assert y1 - y0 >= 1 - 1e-5


def test_the_same_image_gets_the_same_boxes() -> None:
    given_boxes = [[10, 10, 50, 50], [60, 20, 90, 45]]
    first = boxes.disturbed_boxes(given_boxes, 100, 100, key="a/polyp")
    assert first.tolist() == boxes.disturbed_boxes(given_boxes, 100, 100, key="a/polyp").tolist()
    assert first.tolist() != boxes.disturbed_boxes(given_boxes, 100, 100, key="b/polyp").tolist()
    other_seed = boxes.disturbed_boxes(given_boxes, 100, 100, key="a/polyp", seed=1)
    assert first.tolist() != other_seed.tolist()
    assert boxes.disturbed_boxes(np.zeros((0, 4)), 100, 100, key="a").shape == (0, 4)


def test_filled_box_gives_back_a_rectangle() -> None:
    mask = np.zeros((40, 60), bool)
    mask[3:17, 20:59] = True
    box = boxes.tight_box(mask)
    assert np.array_equal(boxes.filled_boxes_mask(box, 40, 60), mask)


def test_pixels_count_by_their_centres() -> None:
    mask = boxes.filled_boxes_mask([1.4, 0.6, 3.6, 2.4], 4, 6)
    assert np.argwhere(mask).tolist() == [[1, 1], [1, 2], [1, 3]]
    outside = boxes.filled_boxes_mask([-5, -5, 99, 99], 4, 6)
    assert outside.all()


def test_ellipse_in_a_box_has_its_area_and_touches_its_sides() -> None:
    box = [30, 20, 230, 120]
    mask = boxes.inscribed_ellipses_mask(box, 150, 260)
    assert np.count_nonzero(mask) == pytest.approx(np.pi * 100 * 50, rel=0.001)
    assert boxes.tight_box(mask).tolist() == box
    assert not (mask & ~boxes.filled_boxes_mask(box, 150, 260)).any()


def test_ellipse_gives_back_a_disk_and_is_pi_over_four_of_a_square() -> None:
    y, x = np.mgrid[:200, :200] + 0.5
    disk = (y - 100) ** 2 + (x - 90) ** 2 <= 60**2
    ellipse = boxes.inscribed_ellipses_mask(boxes.tight_box(disk), 200, 200)
    assert metrics.dice(ellipse, disk) == pytest.approx(1.0, abs=0.002)
    square = boxes.filled_boxes_mask([20, 20, 180, 180], 200, 200)
    in_square = boxes.inscribed_ellipses_mask([20, 20, 180, 180], 200, 200)
    share = np.pi / 4
    assert metrics.dice(in_square, square) == pytest.approx(2 * share / (1 + share), abs=0.002)


def test_several_boxes_give_the_union() -> None:
    two = [[0, 0, 20, 20], [15, 15, 40, 30]]
    for shape in (boxes.filled_boxes_mask, boxes.inscribed_ellipses_mask):
        union = shape(two[0], 50, 50) | shape(two[1], 50, 50)
        assert np.array_equal(shape(two, 50, 50), union)
    assert not boxes.filled_boxes_mask(np.zeros((0, 4)), 5, 5).any()
