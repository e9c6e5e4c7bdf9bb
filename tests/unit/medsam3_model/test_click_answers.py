"""Clicks, boxes and strokes answered by the bundled model's tracker."""

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3_model import MedSAM3
from medsam3_model.box_answers import BoxAnswer, refined
from medsam3_model.boxes import tight_box
from medsam3_model.click_answers import (
    MOST_CLICKS,
    ObjectPrompt,
    answer_object,
    changed_around,
    heeded,
    spread_points,
)
from medsam3_model.errors import PromptError
from medsam3_model.evaluation.clicks import next_click
from medsam3_model.pretraining.phantoms.phantoms import phantom
from medsam3_model.prompting import SpatialPrompt, segment_prompted
from medsam3_model.types import ImageEmbedding, Window
from tests.support.masks import dice

LESION = phantom("dermoscopy", 300)
TRUTH = LESION.layers["skin lesion"] > 0
H, W = TRUTH.shape
(Y, X) = (float(np.mean(places)) for places in np.nonzero(TRUTH))
NO_STROKE: NDArray[np.bool_] = np.zeros((0, H, W), np.bool_)


@pytest.fixture(scope="module")
def model() -> MedSAM3:
    return MedSAM3.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def image(model: MedSAM3) -> ImageEmbedding:
    return model.encode_image(LESION.image)


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


def test_clicks_are_answered_with_the_object_and_mend_it(
    model: MedSAM3, image: ImageEmbedding
) -> None:
    clicks: list[tuple[float, float, int]] = []
    mask, scores = None, []
    for _ in range(4):
        click = next_click(TRUTH, mask)
        assert click is not None
        clicks.append((click.x, click.y, int(click.inside)))
        answer = answer_object(model.tracker, image, prompt(*clicks))
        mask = answer.union()
        scores.append(dice(mask, TRUTH))
        assert mask[int(click.y), int(click.x)] == click.inside
    assert 0 < answer.scores[0] <= 1
    assert answer.presence > 0.5
    assert scores[0] > 0.8
    assert scores[-1] > max(scores[0], 0.9)


def test_kept_answers_save_work_and_change_nothing(model: MedSAM3, image: ImageEmbedding) -> None:
    clicks = ((X, Y, 1), (X, Y + 8, 1), (5.0, 5.0, 0))
    kept = Kept()
    for count in (1, 2, 3):
        answer = answer_object(model.tracker, image, prompt(*clicks[:count]), kept=kept)
    assert kept.found == 2
    without = answer_object(model.tracker, image, prompt(*clicks))
    np.testing.assert_allclose(answer.semantic, without.semantic, atol=1e-5)
    # Another click has other answers before it.
    answer_object(model.tracker, image, prompt((X + 1, Y, 1), clicks[1]), kept=kept)
    assert kept.found == 2


def test_a_click_is_never_ignored() -> None:
    logits = np.full((40, 40), -5, np.float32)
    logits[10:20, 10:20] = 5
    added = heeded(logits, np.array([[25.0, 15.0]]), [1]) > 0
    assert added[15, 25]
    assert added[15, 21]  # up to the mask's edge
    assert not added[15, 33]
    taken = heeded(logits, np.array([[12.5, 15.5]]), [0]) > 0
    assert not taken[15, 12]
    assert taken[15, 17]
    np.testing.assert_array_equal(heeded(logits, np.array([[15.0, 15.0]]), [1]), logits)
    empty = np.full((40, 40), -5, np.float32)
    assert 0 < (heeded(empty, np.array([[15.0, 15.0]]), [1]) > 0).mean() < 0.2


def test_a_stroke_means_the_object_that_it_is_in(model: MedSAM3, image: ImageEmbedding) -> None:
    stroke = np.zeros((1, H, W), np.bool_)
    stroke[0, int(Y) - 1 : int(Y) + 2, int(X) - 10 : int(X) + 11] = True
    found = answer_object(model.tracker, image, prompt(strokes=stroke & TRUTH))
    assert dice(found.union(), TRUTH) > 0.75
    mended = answer_object(model.tracker, image, prompt((X, Y, 1), strokes=stroke & TRUTH))
    assert len(mended) == 1


def test_small_objects_are_looked_at_enlarged(model: MedSAM3) -> None:
    scores: list[float] = []
    windows: list[Window] = []
    for seed in range(300, 304):
        nuclei = phantom("microscopy", seed)
        layer = nuclei.layers["cell nucleus"]
        truth = layer == np.bincount(layer[layer > 0]).argmax()
        click = next_click(truth)
        assert click is not None
        image = model.encode_image(nuclei.image)
        windows.clear()

        def encode(window: Window, picture: NDArray[np.uint8] = nuclei.image) -> ImageEmbedding:
            windows.append(window)
            x0, y0, x1, y1 = window
            return model.encode_image(picture[y0:y1, x0:x1])

        found = answer_object(model.tracker, image, prompt((click.x, click.y, 1)), encode)
        ((left, _, right, _),) = windows
        assert right - left < W
        scores.append(dice(found.union(), truth))
        # A click outside of what would be seen keeps the whole image in view.
        far = (1.0 if click.x > W / 2 else W - 1.0, click.y, 0)
        answer_object(model.tracker, image, prompt((click.x, click.y, 1), far), encode)
        assert len(windows) == 1
    assert np.mean(scores) > 0.8


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (prompt((X, Y, 0)), "no click is in the object"),
        (prompt(*[(X, Y, 1)] * (MOST_CLICKS + 1)), "101 clicks on one object"),
        (prompt((-1, Y, 1)), "outside of the image"),
        (prompt((X, float("nan"), 1)), "not a finite number"),
        (prompt((X, Y, 1), strokes=np.zeros((0, 3, 3), np.bool_)), "as large as the image"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    model: MedSAM3, image: ImageEmbedding, bad: ObjectPrompt, message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        answer_object(model.tracker, image, bad)


def test_a_hundred_clicks_are_answered(model: MedSAM3, image: ImageEmbedding) -> None:
    inside = np.argwhere(TRUTH)[:: len(np.argwhere(TRUTH)) // MOST_CLICKS][:MOST_CLICKS]
    clicks = [(column + 0.5, row + 0.5, 1) for row, column in inside.tolist()]
    assert answer_object(model.tracker, image, prompt(*clicks)).union()[TRUTH].mean() > 0.5


def test_clicks_mend_the_box_that_they_are_in(model: MedSAM3, image: ImageEmbedding) -> None:
    text = model.encode_text(["skin lesion"])
    boxes = np.array([tight_box(TRUTH), [2, 2, 40, 30]], np.float32)

    def ask(points: list[tuple[float, float]], labels: list[int]) -> NDArray[np.bool_]:
        where = np.array(points, np.float32).reshape(-1, 2)
        drawn = SpatialPrompt(boxes, [1, 1], where, labels)
        return segment_prompted(model, image, text, drawn).masks

    plain = ask([], [])
    clicked = ask([(X, Y)], [1])
    assert len(plain) == len(clicked) == 2
    # The second box has no click and is answered as before; it now comes first.
    np.testing.assert_array_equal(clicked[0], plain[1])
    assert dice(clicked[1], TRUTH) > 0.8
    apart = ask([(W - 3.0, H - 3.0)], [1])
    np.testing.assert_array_equal(apart[:2], plain)


def test_points_spread_over_a_stroke() -> None:
    line = np.zeros((9, 30), np.bool_)
    line[4, 2:28] = True
    points = spread_points(line, 4)
    assert {2.5, 27.5} <= set(points[:, 0].tolist())
    assert (points[:, 1] == 4.5).all()
    assert spread_points(line[:, :3], 4).tolist() == [[2.5, 4.5]] * 4


def test_of_what_changes_the_piece_counts_in_which_the_click_lies() -> None:
    before, after = np.full((8, 8), -1, np.float32), np.full((8, 8), -1, np.float32)
    before[2:4, 2:4] = 1
    after[2:4, 2:6] = 2
    after[6:, 6:] = 2
    mended = changed_around(before, after, np.array([4.5, 2.5]), True)
    expected = before.copy()
    expected[2:4, 4:6] = 2
    np.testing.assert_array_equal(mended, expected)
    unchanged = changed_around(before, after, np.array([0.5, 0.5]), True)
    np.testing.assert_array_equal(unchanged, before)


def test_a_click_takes_in_or_away_and_nowhere_deeper_than_it_lies_itself() -> None:
    side = 30
    before, after = (np.full((side, side), -1, np.float32) for _ in range(2))
    before[10:20, 10:20] = 1
    # More on the right, a whole arm of it, and less on the left.
    after[10:20, 12:28] = 1
    added = changed_around(before, after, np.array([21.5, 15.5]), True) > 0
    assert added[:, 10:20].sum() == 100, "who clicks on what is missing takes nothing away"
    assert added[15, 23]
    assert not added[15, 26], "two cells under the edge, four at most are wrong"
    less = changed_around(before, after, np.array([10.5, 15.5]), False) > 0
    assert less.sum() == 80
    assert not less[:, 20:].any()


def test_the_part_that_is_looked_at_stays_when_more_clicks_come(model: MedSAM3) -> None:
    picture = np.full((240, 320, 3), 120, np.uint8)
    rows, columns = np.mgrid[:240, :320]
    picture[np.hypot(rows - 100, columns - 150) < 16] = 30
    windows: list[Window] = []

    def encode_window(window: Window) -> ImageEmbedding:
        windows.append(window)
        x0, y0, x1, y1 = window
        return model.encode_image(picture[y0:y1, x0:x1])

    whole, kept = model.encode_image(picture), Kept()
    # The second and third say that the object is larger than the answer to the first.
    clicks = [(150.5, 100.5), (172.5, 104.5), (145.5, 78.5), (150.5, 124.5)]
    for count in range(1, len(clicks) + 1):
        drawn = ObjectPrompt(
            np.array(clicks[:count], np.float32),
            [1, 1, 1, 0][:count],
            None,
            np.zeros((0, 240, 320), np.bool_),
        )
        answer_object(model.tracker, whole, drawn, encode_window, kept)
    assert len(windows) == len(clicks)
    assert len(set(windows)) == 1


def test_clicks_after_a_box_mend_the_boxs_answer(model: MedSAM3) -> None:
    text = model.encode_text(["skin lesion"])
    rows: list[list[float]] = []
    for seed in range(300, 306):
        picture = phantom("dermoscopy", seed)
        truth = picture.layers["skin lesion"] > 0
        image = model.encode_image(picture.image)
        x0, y0, x1, y1 = tight_box(truth)
        off = 0.12 * np.array([x1 - x0, y1 - y0, x1 - x0, y0 - y1], np.float32)
        box = np.array([[x0, y0, x1, y1]], np.float32) + off
        clicks: list[tuple[float, float]] = []
        inside: list[int] = []
        rows.append([])
        for _ in range(3):
            points = np.array(clicks, np.float32).reshape(-1, 2)
            answer = segment_prompted(model, image, text, SpatialPrompt(box, [1], points, inside))
            (mask,) = answer.masks
            rows[-1].append(dice(mask, truth))
            click = next_click(truth, mask)
            assert click is not None
            clicks.append((click.x, click.y))
            inside.append(int(click.inside))
    boxed, once, twice = np.mean(rows, axis=0)
    assert boxed < once < twice


def test_the_tracker_refines_a_boxs_answer_and_leaves_what_it_takes_for_something_else(
    model: MedSAM3, image: ImageEmbedding
) -> None:
    box, seen = tight_box(TRUTH).astype(np.float32), (0, 0, W, H)
    rows, columns = np.mgrid[:H, :W]
    # About right, with a straight edge where the lesion's is not.
    rough = (rows >= box[1]) & (rows < box[3]) & (columns >= box[0]) & (columns < box[2])
    rough &= np.hypot(rows - Y, columns - X) < 0.55 * max(box[2:] - box[:2])
    stripes = TRUTH & (columns % 24 < 8)
    for drawn, changes in ((rough, True), (stripes, False)):
        given = BoxAnswer(seen, np.where(drawn, 3, -3).astype(np.float32))
        answer = refined(given, model.tracker, image, seen, box)
        assert answer.window == seen
        assert (not np.array_equal(answer.log_odds, given.log_odds)) == changes
    better = refined(
        BoxAnswer(seen, np.where(rough, 0.5, -0.5).astype(np.float32)),
        model.tracker,
        image,
        seen,
        box,
    )
    assert dice(better.log_odds > 0, TRUTH) > dice(rough, TRUTH)
