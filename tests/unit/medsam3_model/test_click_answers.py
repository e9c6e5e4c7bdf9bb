"""Clicks, boxes and strokes answered by the bundled model's tracker."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3_model import MedSAM3
from medsam3_model.click_answers import MOST_CLICKS, ObjectPrompt, answer_object, spread_points
from medsam3_model.errors import PromptError
from medsam3_model.evaluation.clicks import next_click
from medsam3_model.prompting import SpatialPrompt, segment_prompted
from medsam3_model.types import ImageEmbedding, Window
from tests.support.masks import dice

H, W = 160, 200
NO_BOX: NDArray[np.float32] = np.zeros((0, 4), np.float32)
NO_STROKE: NDArray[np.bool_] = np.zeros((0, H, W), np.bool_)


def ellipse(x: float, y: float, across: float, down: float) -> NDArray[np.bool_]:
    row, column = np.mgrid[:H, :W] + 0.5
    return np.asarray(((column - x) / across) ** 2 + ((row - y) / down) ** 2 <= 1)


LARGE, SMALL = ellipse(60, 80, 40, 50), ellipse(150, 60, 14, 12)


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).normal(0, 6, (H, W, 1))
    grey = np.where(LARGE | SMALL, 170.0, 70.0)[..., None] + noise
    return np.repeat(grey.clip(0, 255), 3, axis=2).astype(np.uint8)


@pytest.fixture(scope="module")
def model() -> Iterator[MedSAM3]:
    return MedSAM3.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def image(model: MedSAM3, picture: NDArray[np.uint8]) -> ImageEmbedding:
    return model.encode_image(picture)


class Kept(dict[str, NDArray[np.float32]]):
    """Answers in a dict; `asked` counts how often one was looked for and found."""

    found = 0

    def get(self, key: str) -> NDArray[np.float32] | None:  # type: ignore[override]
        self.found += key in self
        return super().get(key)

    def put(self, key: str, logits: NDArray[np.float32]) -> None:
        self[key] = logits


def prompt(
    *clicks: tuple[float, float, int],
    box: tuple[float, ...] | None = None,
    strokes: NDArray[np.bool_] = NO_STROKE,
) -> ObjectPrompt:
    points = np.array([click[:2] for click in clicks], np.float32).reshape(-1, 2)
    drawn = None if box is None else np.array(box, np.float32)
    return ObjectPrompt(points, [click[2] for click in clicks], drawn, strokes)


def test_a_click_is_answered_with_the_object_under_it(
    model: MedSAM3, image: ImageEmbedding
) -> None:
    for truth, (x, y) in ((LARGE, (60, 80)), (SMALL, (150, 60))):
        found = answer_object(model.tracker, image, prompt((x, y, 1)))
        assert dice(found.union(), truth) > 0.7
        assert 0 < found.scores[0] <= 1
        assert found.presence > 0.5


def test_further_clicks_mend_the_answer(model: MedSAM3, image: ImageEmbedding) -> None:
    clicks: list[tuple[float, float, int]] = []
    mask, scores = None, []
    for _ in range(4):
        click = next_click(LARGE, mask)
        assert click is not None
        clicks.append((click.x, click.y, int(click.inside)))
        mask = answer_object(model.tracker, image, prompt(*clicks)).union()
        scores.append(dice(mask, LARGE))
    assert scores[-1] > 0.85
    assert scores[-1] >= scores[0]


def test_kept_answers_save_work_and_change_nothing(model: MedSAM3, image: ImageEmbedding) -> None:
    clicks = ((60.0, 80.0, 1), (60.0, 40.0, 1), (150.0, 60.0, 0))
    kept = Kept()
    for count in (1, 2, 3):
        answer = answer_object(model.tracker, image, prompt(*clicks[:count]), kept=kept)
    assert kept.found == 2
    without = answer_object(model.tracker, image, prompt(*clicks))
    np.testing.assert_allclose(answer.semantic, without.semantic, atol=1e-5)
    # Another click has other answers before it.
    answer_object(model.tracker, image, prompt((61.0, 80.0, 1), clicks[1]), kept=kept)
    assert kept.found == 2


def test_a_negative_click_takes_away(model: MedSAM3, image: ImageEmbedding) -> None:
    both = (60.0, 80.0, 1), (150.0, 60.0, 1)
    joined = answer_object(model.tracker, image, prompt(*both)).union()
    parted = answer_object(model.tracker, image, prompt(both[0], (150.0, 60.0, 0))).union()
    assert parted[SMALL].mean() < 0.2
    assert joined[SMALL].mean() >= parted[SMALL].mean()


def test_a_stroke_means_the_object_that_it_is_in(model: MedSAM3, image: ImageEmbedding) -> None:
    stroke = ellipse(60, 80, 3, 25)
    found = answer_object(model.tracker, image, prompt(strokes=stroke[None]))
    assert dice(found.union(), LARGE) > 0.75
    mended = answer_object(model.tracker, image, prompt((60, 120, 1), strokes=stroke[None]))
    assert len(mended) == 1


def test_a_small_object_is_looked_at_enlarged(
    model: MedSAM3, image: ImageEmbedding, picture: NDArray[np.uint8]
) -> None:
    windows: list[Window] = []

    def encode(window: Window) -> ImageEmbedding:
        windows.append(window)
        x0, y0, x1, y1 = window
        return model.encode_image(picture[y0:y1, x0:x1])

    found = answer_object(model.tracker, image, prompt((150, 60, 1)), encode)
    ((left, _, right, _),) = windows
    assert right - left < W
    assert dice(found.union(), SMALL) > 0.8
    # A click outside of what would be seen keeps the whole image in view.
    answer_object(model.tracker, image, prompt((150, 60, 1), (5, 150, 0)), encode)
    assert len(windows) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (prompt((60, 80, 0)), "no click is in the object"),
        (prompt(*[(60.0, 80.0, 1)] * (MOST_CLICKS + 1)), "101 clicks on one object"),
        (prompt((-1, 80, 1)), "outside of the image"),
        (prompt((60, float("nan"), 1)), "not a finite number"),
        (prompt((60, 80, 1), strokes=np.zeros((0, 3, 3), np.bool_)), "as large as the image"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    model: MedSAM3, image: ImageEmbedding, bad: ObjectPrompt, message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        answer_object(model.tracker, image, bad)


def test_a_hundred_clicks_are_answered(model: MedSAM3, image: ImageEmbedding) -> None:
    inside = np.argwhere(LARGE)[:: len(np.argwhere(LARGE)) // MOST_CLICKS][:MOST_CLICKS]
    clicks = [(column + 0.5, row + 0.5, 1) for row, column in inside.tolist()]
    assert answer_object(model.tracker, image, prompt(*clicks)).union()[LARGE].mean() > 0.5


def test_clicks_mend_the_box_that_they_are_in(model: MedSAM3, image: ImageEmbedding) -> None:
    text = model.encode_text(["polyp"])
    boxes = np.array([[20, 30, 100, 130], [136, 48, 164, 72]], np.float32)

    def ask(points: list[tuple[float, float]], labels: list[int]) -> NDArray[np.bool_]:
        where = np.array(points, np.float32).reshape(-1, 2)
        drawn = SpatialPrompt(boxes, [1, 1], where, labels)
        return segment_prompted(model, image, text, drawn).masks

    plain = ask([], [])
    clicked = ask([(60, 80)], [1])
    assert len(plain) == len(clicked) == 2
    # The second box has no click and is answered as before; it now comes first.
    np.testing.assert_array_equal(clicked[0], plain[1])
    assert dice(clicked[1], LARGE) > 0.8
    apart = ask([(110, 20)], [1])
    assert len(apart) <= 3
    np.testing.assert_array_equal(apart[:2], plain)


def test_points_spread_over_a_stroke() -> None:
    line = np.zeros((9, 30), np.bool_)
    line[4, 2:28] = True
    points = spread_points(line, 4)
    assert {2.5, 27.5} <= set(points[:, 0].tolist())
    assert (points[:, 1] == 4.5).all()
    assert spread_points(line[:, :3], 4).tolist() == [[2.5, 4.5]] * 4
