"""What a drawn box is answered with, on images whose answer is known."""

from typing import Any

import numpy as np
import pytest

from medsam3_model.box_answers import answer_in_box, box_log_odds, enlarged
from medsam3_model.boxes import disturbed_box, inscribed_ellipses_mask, tight_box
from medsam3_model.errors import PromptError
from medsam3_model.prompting import SpatialPrompt, segment_prompted
from medsam3_model.types import Detections
from tests.support.colour_model import ColourModel
from tests.support.masks import dice

H, W = 120, 160
Y, X = np.mgrid[:H, :W] + 0.5


def disk(x: float, y: float, radius: float) -> np.ndarray:
    return (X - x) ** 2 + (Y - y) ** 2 <= radius**2


def diamond(x: float, y: float, radius: float) -> np.ndarray:
    return np.abs(X - x) + np.abs(Y - y) <= radius


def picture(red: np.ndarray) -> np.ndarray:
    image = np.zeros((*red.shape, 3), np.uint8)
    image[red, 0] = 255
    return image


def answered(
    model: ColourModel, image: np.ndarray, boxes: Any, labels: Any = None, closer: bool = False
) -> Detections:
    drawn = np.array(boxes, np.float32).reshape(-1, 4)
    prompt = SpatialPrompt(drawn, labels or [1] * len(drawn), np.zeros((0, 2), np.float32), [])

    def encode_window(window: Any) -> Any:
        x0, y0, x1, y1 = window
        return model.encode_image(image[y0:y1, x0:x1])

    return segment_prompted(
        model,  # type: ignore[arg-type]
        model.encode_image(image),
        model.encode_text(["red"]),
        prompt,
        encode_window if closer else None,
    )


def jittered(mask: np.ndarray, seed: int) -> np.ndarray:
    return disturbed_box(tight_box(mask), H, W, np.random.default_rng(seed))


# --- the box alone


def test_the_box_says_what_training_images_say() -> None:
    box = np.array([40, 30, 120, 90], np.float32)
    odds = box_log_odds(box, (0, 0, W, H))
    ellipse = inscribed_ellipses_mask(box, H, W)
    assert dice(odds > 0, ellipse) > 0.96
    assert (odds.min(), odds.max()) == (-3.0, 3.0)
    assert odds[60, 80] == 3.0
    assert odds[60, 118] == pytest.approx(8 * (0.98 - 38.5 / 40), abs=2e-3)
    part = box_log_odds(box, (100, 50, 110, 80))
    assert np.array_equal(part, odds[50:80, 100:110])


def test_a_model_that_knows_nothing_leaves_the_ellipse() -> None:
    box = [40, 30, 120, 90]
    for offset in (0.0, -9.0, 9.0):
        model = ColourModel(certainty=0.0, offset=offset)
        found = answered(model, picture(disk(80, 60, 30)), box)
        assert dice(found.union(), inscribed_ellipses_mask(box, H, W)) > 0.96


# --- the model in the box


@pytest.mark.parametrize("seed", range(6))
def test_a_sure_model_is_followed_although_the_box_is_off(seed: int) -> None:
    truth = diamond(80, 60, 40)
    box = jittered(truth, seed)
    found = answered(ColourModel(), picture(truth), box)
    assert len(found) == 1
    assert dice(found.masks[0], truth) > 0.95
    assert dice(found.masks[0], truth) > dice(inscribed_ellipses_mask(box, H, W), truth) + 0.05


def test_a_sure_model_keeps_a_hole() -> None:
    ring = disk(80, 60, 40) & ~disk(80, 60, 20)
    found = answered(ColourModel(), picture(ring), tight_box(ring))
    assert dice(found.union(), ring) > 0.97
    assert not found.union()[55:65, 75:85].any()


def test_a_model_that_is_off_by_a_constant_is_balanced_by_the_box() -> None:
    """It calls everything background; only what it says of one pixel beside another counts."""
    truth = diamond(80, 60, 40)
    found = answered(ColourModel(certainty=2.0, offset=-5.0), picture(truth), tight_box(truth))
    assert dice(found.union(), truth) > 0.95


def test_a_model_that_contradicts_the_box_is_not_believed() -> None:
    box = [40, 30, 120, 90]
    ellipse = inscribed_ellipses_mask(box, H, W)
    elsewhere = picture(disk(30, 20, 25))  # reaches into a corner of the box's surroundings
    found = answered(ColourModel(certainty=3.0), elsewhere, box)
    assert dice(found.union(), ellipse) > 0.95


def test_nothing_beyond_the_surroundings_of_the_box() -> None:
    red = disk(50, 60, 20) | disk(120, 60, 20)
    found = answered(ColourModel(), picture(red), [30, 40, 70, 80])
    assert dice(found.union(), disk(50, 60, 20)) > 0.97
    assert not found.union()[:, 90:].any()
    assert found.semantic[60, 120] == 0.0


# --- several boxes


def test_every_box_is_asked_for_on_its_own() -> None:
    model = ColourModel()
    left, right = disk(40, 60, 20), disk(115, 60, 25)
    boxes = [tight_box(right), tight_box(left)]
    found = answered(model, picture(left | right), boxes)
    assert [len(asked) for asked in model.prompted] == [1, 1]
    assert [dice(*pair) > 0.97 for pair in zip(found.masks, (right, left), strict=True)] == [
        True,
        True,
    ]
    assert found.presence == pytest.approx(0.982, abs=1e-3)
    assert ((found.scores > 0.9) & (found.scores < 1)).all()
    assert np.array_equal(found.semantic > 0.5, found.union())


def test_unwanted_boxes_go_with_each() -> None:
    model = ColourModel()
    boxes = [[20, 40, 60, 80], [0, 0, 10, 10], [90, 35, 140, 85]]
    found = answered(model, picture(disk(40, 60, 20)), boxes, [1, 0, 1])
    assert [asked.tolist() for asked in model.prompted] == [
        [boxes[0], boxes[1]],
        [boxes[2], boxes[1]],
    ]
    assert len(found) == 2


def test_boxes_that_reach_beyond_the_image_are_cut_and_others_have_no_object() -> None:
    truth = disk(10, 60, 30)
    inside = answered(ColourModel(), picture(truth), [-25, 30, 40, 90])
    assert dice(inside.union(), truth) > 0.95
    outside = answered(ColourModel(), picture(truth), [W + 5, 5, W + 20, 20])
    assert (len(outside), outside.presence) == (0, 0.0)
    with pytest.raises(PromptError, match="empty"):
        answered(ColourModel(), picture(truth), [20, 20, 20, 40])


# --- points, for a model without a tracker


def clicked(model: ColourModel, image: np.ndarray, point: tuple[float, float]) -> Detections:
    points = np.array([point], np.float32)
    return segment_prompted(
        model,  # type: ignore[arg-type]
        model.encode_image(image),
        model.encode_text(["red"]),
        SpatialPrompt(np.zeros((0, 4), np.float32), [], points, [1]),
    )


def test_a_point_chooses_the_instance_under_it_else_a_box_around_it_is_asked_for() -> None:
    model, truth = ColourModel(), disk(50, 60, 30)
    found = clicked(model, picture(truth), (40.0, 60.0))
    assert np.array_equal(found.masks[0], truth)
    assert model.prompted == []
    found = clicked(model, picture(truth), (130.0, 60.0))
    assert [asked.tolist() for asked in model.prompted] == [[[115.0, 45.0, 145.0, 75.0]]]
    assert found.masks[0][60, 130]


# --- a closer look


def test_small_objects_are_looked_at_enlarged() -> None:
    """With 16 patches along a side, 8 of them are 80 columns."""
    model = ColourModel(patches=16)
    small, large = disk(120, 40, 12.5), disk(45, 70, 42)
    image = picture(small | large)
    found = answered(model, image, [tight_box(small), tight_box(large)], closer=True)
    assert model.encoded == [(H, W), (40, 40)]  # 1.6 times 25 pixels, rounded outwards
    assert dice(found.masks[0], small) > 0.95
    assert dice(found.masks[1], large) > 0.95
    given = [asked[0] for asked in model.prompted]
    assert np.array_equal(given[0], tight_box(small) - [100, 20, 100, 20])
    assert np.array_equal(given[1], tight_box(large))


def test_without_an_encoder_there_is_no_closer_look() -> None:
    model = ColourModel(patches=16)
    small = disk(120, 40, 12.5)
    found = answered(model, picture(small), tight_box(small))
    assert model.encoded == [(H, W)]
    assert dice(found.union(), small) > 0.95


def test_the_window_of_a_closer_look_stays_in_the_image() -> None:
    box = np.array([150, 0, 160, 20], np.float32)
    assert enlarged(box, (H, W), 2.0) == (120, 0, 160, 40)
    assert enlarged(box, (H, W), 50.0) == (0, 0, W, H)
    middle = np.array([70, 50, 90, 60], np.float32)
    assert enlarged(middle, (H, W), 2.0) == (60, 35, 100, 75)


def test_log_odds_of_any_resolution_are_read_at_the_right_place() -> None:
    """A map of a part of the image at a quarter of its resolution, against all of it in full."""
    box = np.array([60, 40, 100, 80], np.float32)
    slope = (X - 80 + 0.5 * (Y - 60)).astype(np.float32) / 20
    seen = (40, 20, 120, 100)
    part = slope[20:100, 40:120].reshape(20, 4, 20, 4).mean((1, 3))
    one = answer_in_box(part, seen, box, (H, W))
    other = answer_in_box(slope, (0, 0, W, H), box, (H, W))
    assert one.window == other.window == (48, 28, 112, 92)
    assert np.allclose(one.log_odds, other.log_odds, atol=1e-3)
    assert 0 < one.probability.min() < one.probability.max() < 1
