"""Hand-made cases of what an annotator does to a suggestion."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from backend.corrections.comparison import ComparedRegion, SuggestedRegion, compare
from backend.corrections.cropped_mask import CroppedMask, iou, overlap, union
from backend.corrections.submissions import SubmittedRegion
from medsam3_model.evaluation.metrics import score_mask

Box = tuple[int, int, int, int]
SIZE = (64, 96)


def mask(*boxes: Box) -> np.ndarray:
    """Rectangles as (top, left, bottom, right) on an empty image."""
    drawn = np.zeros(SIZE, bool)
    for top, left, bottom, right in boxes:
        drawn[top:bottom, left:right] = True
    return drawn


def suggested(id_: str, *boxes: Box, label: str = "tumor", **fields: object) -> SuggestedRegion:
    values = {"item_index": 0, "suggestion_id": "s", "model_version": "tiny-1", **fields}
    return SuggestedRegion(id=id_, label=label, mask=CroppedMask.of(mask(*boxes)), **values)


def final(id_: str, *boxes: Box, label: str = "tumor", **fields: object) -> SubmittedRegion:
    values = {"control": "brush", "item_index": 0, "shape": "brushlabels", **fields}
    return SubmittedRegion(id=id_, labels=(label,), mask=CroppedMask.of(mask(*boxes)), **values)


def told(outcomes: Sequence[ComparedRegion]) -> list[tuple[str, str, str | None, tuple[str, ...]]]:
    return [(one.outcome, one.relation, one.region_id, one.final_ids) for one in outcomes]


LEFT, RIGHT, WHOLE = (10, 10, 30, 30), (10, 30, 30, 50), (10, 10, 30, 50)
ELSEWHERE = (40, 60, 60, 90)

CASES = {
    "untouched": (
        [suggested("a", LEFT)],
        [final("a", LEFT)],
        [("accepted", "one", "a", ("a",))],
    ),
    "brushed over": (
        [suggested("a", LEFT)],
        [final("a", (10, 10, 34, 30))],
        [("edited", "one", "a", ("a",))],
    ),
    "one pixel brushed": (
        [suggested("a", LEFT)],
        [final("a", LEFT, (30, 10, 31, 11))],
        [("edited", "one", "a", ("a",))],
    ),
    "polygon rounded by the editor": (
        [suggested("a", (0, 0, 60, 90))],
        [final("a", (0, 0, 60, 90), (60, 0, 61, 2), shape="polygonlabels")],
        [("accepted", "one", "a", ("a",))],
    ),
    "deleted": ([suggested("a", LEFT)], [], [("rejected", "none", "a", ())]),
    "drawn by hand": ([], [final("m", LEFT)], [("added", "none", None, ("m",))]),
    "deleted, another drawn elsewhere": (
        [suggested("a", LEFT)],
        [final("m", ELSEWHERE)],
        [("rejected", "none", "a", ()), ("added", "none", None, ("m",))],
    ),
    "deleted and drawn again in the same place": (
        [suggested("a", LEFT)],
        [final("m", (11, 10, 31, 30))],
        [("edited", "one", "a", ("m",))],
    ),
    "new ids, same pixels (imported or pasted)": (
        [suggested("a", LEFT), suggested("b", ELSEWHERE)],
        [final("x", ELSEWHERE), final("y", LEFT)],
        [("accepted", "one", "a", ("y",)), ("accepted", "one", "b", ("x",))],
    ),
    "label changed only": (
        [suggested("a", LEFT)],
        [final("a", LEFT, label="cyst")],
        [("edited", "one", "a", ("a",))],
    ),
    "split, the first half keeps the id": (
        [suggested("a", WHOLE)],
        [final("a", LEFT), final("m", RIGHT)],
        [("edited", "split", "a", ("a", "m"))],
    ),
    "split, both halves new": (
        [suggested("a", WHOLE)],
        [final("m", LEFT), final("n", RIGHT)],
        [("edited", "split", "a", ("m", "n"))],
    ),
    "split in three, all new": (
        [suggested("a", (10, 10, 30, 70))],
        [final("m", LEFT), final("n", RIGHT), final("o", (10, 50, 30, 70))],
        [("edited", "split", "a", ("m", "n", "o"))],
    ),
    "merged into the first": (
        [suggested("a", LEFT), suggested("b", RIGHT)],
        [final("a", WHOLE)],
        [("edited", "merged", "a", ("a",)), ("edited", "merged", "b", ("a",))],
    ),
    "merged into a new one": (
        [suggested("a", LEFT), suggested("b", RIGHT)],
        [final("m", WHOLE)],
        [("edited", "merged", "a", ("m",)), ("edited", "merged", "b", ("m",))],
    ),
    "a duplicate deleted is no merge": (
        [suggested("a", LEFT), suggested("b", (11, 11, 30, 30))],
        [final("a", LEFT)],
        [("accepted", "one", "a", ("a",)), ("rejected", "none", "b", ())],
    ),
    "an addition inside an accepted region is no split": (
        [suggested("a", WHOLE)],
        [final("a", WHOLE), final("m", LEFT)],
        [("accepted", "one", "a", ("a",)), ("added", "none", None, ("m",))],
    ),
    "another label inside what was cut away is no split": (
        [suggested("a", WHOLE)],
        [final("a", LEFT), final("m", RIGHT, label="cyst")],
        [("edited", "one", "a", ("a",)), ("added", "none", None, ("m",))],
    ),
    "a small spot where a large one was rejected": (
        [suggested("a", WHOLE)],
        [final("m", (12, 12, 16, 16))],
        [("rejected", "none", "a", ()), ("added", "none", None, ("m",))],
    ),
    "accepted from a smart tool": (
        [suggested("i", LEFT, interactive=True)],
        [final("i", LEFT)],
        [("accepted", "one", "i", ("i",))],
    ),
    "smart tool in place of a deleted suggestion": (
        [suggested("a", LEFT), suggested("i", (10, 10, 32, 30), interactive=True)],
        [final("i", (10, 10, 32, 30))],
        [("accepted", "one", "i", ("i",)), ("rejected", "none", "a", ())],
    ),
    "same place on another page is another thing": (
        [suggested("a", LEFT, item_index=1)],
        [final("m", LEFT, item_index=2)],
        [("rejected", "none", "a", ()), ("added", "none", None, ("m",))],
    ),
    "emptied with the eraser": (
        [suggested("a", LEFT)],
        [final("a")],
        [("edited", "one", "a", ("a",))],
    ),
    "nothing suggested, nothing drawn": ([], [], []),
}


@pytest.mark.parametrize("name", CASES)
def test_hand_made_case(name: str) -> None:
    suggestions, finals, expected = CASES[name]
    assert told(compare(suggestions, finals)) == expected


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_regions_does_not_matter(name: str) -> None:
    suggestions, finals, _ = CASES[name]
    rng = random.Random(name)
    expected = compare(suggestions, finals)
    for _ in range(5):
        shuffled = rng.sample(suggestions, len(suggestions)), rng.sample(finals, len(finals))
        assert compare(*shuffled) == expected


def test_accepted_region_has_perfect_scores() -> None:
    (outcome,) = compare([suggested("a", LEFT)], [final("a", LEFT)])
    assert (outcome.dice, outcome.surface_dice, outcome.hd95) == (1.0, 1.0, 0.0)
    assert outcome.added_path_length == 0.0


def test_scores_are_those_of_whole_images() -> None:
    before, after = (10, 12, 40, 50), (13, 10, 44, 47)
    (outcome,) = compare([suggested("a", before)], [final("a", after)])
    whole = score_mask(mask(before), mask(after))
    assert outcome.dice == whole.dice
    assert outcome.surface_dice == whole.surface_dice
    assert outcome.hd95 == whole.hd95
    assert outcome.added_path_length == whole.added_path_length


def test_scores_at_the_image_border_are_those_of_whole_images() -> None:
    before, after = (0, 0, 20, 96), (0, 4, 24, 96)
    (outcome,) = compare([suggested("a", before)], [final("a", after)])
    whole = score_mask(mask(before), mask(after))
    assert outcome.added_path_length == whole.added_path_length
    assert outcome.hd95 == whole.hd95


def test_emptied_region_is_an_image_away() -> None:
    (outcome,) = compare([suggested("a", LEFT)], [final("a")])
    assert (outcome.dice, outcome.surface_dice) == (0.0, 0.0)
    assert outcome.hd95 == pytest.approx(np.hypot(*SIZE))


def test_changed_label_is_told_apart_from_a_changed_shape() -> None:
    (outcome,) = compare([suggested("a", LEFT)], [final("a", LEFT, label="cyst")])
    assert outcome.label_changed
    assert (outcome.label, outcome.dice) == ("cyst", 1.0)


def test_split_compares_all_parts_with_the_suggestion() -> None:
    (outcome,) = compare([suggested("a", WHOLE)], [final("a", LEFT), final("m", RIGHT)])
    assert outcome.dice == 1.0
    assert not outcome.label_changed


def test_merge_counts_the_drawn_contour_once() -> None:
    first, second = compare(
        [suggested("a", LEFT), suggested("b", RIGHT)], [final("a", (8, 10, 30, 50))]
    )
    assert first.dice == second.dice
    assert first.dice is not None
    assert 0.9 < first.dice < 1.0
    assert first.added_path_length == pytest.approx(42 + 1 + 1, abs=4)
    assert second.added_path_length == 0.0


def test_added_region_costs_its_contour() -> None:
    (outcome,) = compare([], [final("m", (10, 10, 20, 30))])
    assert outcome.dice is None
    assert outcome.added_path_length == 2 * 10 + 2 * 20 - 4


def test_outcome_names_the_suggestion_and_its_version() -> None:
    (outcome,) = compare(
        [suggested("a", LEFT, suggestion_id="s7", model_version="tiny-7", interactive=True)],
        [final("a", LEFT)],
    )
    assert (outcome.suggestion_id, outcome.model_version) == ("s7", "tiny-7")
    assert outcome.interactive


def test_cropped_mask_gives_the_mask_back() -> None:
    for drawn in (mask(LEFT), mask(LEFT, ELSEWHERE), mask(), np.ones(SIZE, bool)):
        cropped = CroppedMask.of(drawn)
        assert np.array_equal(cropped.full(), drawn)
        assert cropped.area == drawn.sum()


def test_cropped_masks_compare_like_whole_ones() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        tops, lefts = rng.integers(0, 40, 3), rng.integers(0, 60, 3)
        whole = [
            mask((t, left, t + h, left + w))
            for t, left, h, w in zip(
                tops, lefts, rng.integers(1, 24, 3), rng.integers(1, 36, 3), strict=True
            )
        ]
        one, two, three = map(CroppedMask.of, whole)
        assert overlap(one, two) == (whole[0] & whole[1]).sum()
        assert overlap(one, two, without=[three]) == (whole[0] & whole[1] & ~whole[2]).sum()
        assert iou(one, two) == (whole[0] & whole[1]).sum() / (whole[0] | whole[1]).sum()
        assert np.array_equal(union([one, two, three]).full(), whole[0] | whole[1] | whole[2])
