"""Stacks: corrected slices stay, the others are drawn from them, and an object has an end."""

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medsam3_model import MedSAM3
from medsam3_model.errors import PromptError
from medsam3_model.types import ImageEmbedding
from medsam3_model.video.shapes import interpolated, nearest_copy
from medsam3_model.video.slices import CorrectedSlice, Estimate
from medsam3_model.video.stacks import SliceMask, StopRule, _mixed, propagate_stack
from tests.support import sam3_reference
from tests.support.ball_stack import Ball
from tests.support.discs import small_model

COUNT = 7
# Not square, so that rows and columns are told apart.
SIZE = (224, 160)


@pytest.fixture(scope="module")
def images(video_model: MedSAM3) -> list[ImageEmbedding]:
    frames = sam3_reference.tracker_golden()["frames"][:COUNT, :, : SIZE[1]]
    return video_model.encode_images(list(np.ascontiguousarray(frames)))


def block(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE, np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def drawn(
    model: MedSAM3, images: list[ImageEmbedding], corrected: list[CorrectedSlice], **options: Any
) -> dict[tuple[int, int], SliceMask]:
    answers = list(propagate_stack(model, images.__getitem__, len(images), corrected, **options))
    by_place = {(one.place, one.object_id): one for one in answers}
    assert len(by_place) == len(answers), "a slice came twice"
    for one in answers:
        assert one.mask.shape == SIZE
        assert one.mask.dtype == np.bool_
        assert 0 <= one.score <= 1
    return by_place


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_corrected_slices_never_change(
    video_model: MedSAM3, images: list[ImageEmbedding], data: st.DataObject
) -> None:
    places = st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=2, unique=True)
    seeds = st.integers(0, 2**32 - 1)
    corrected = []
    for object_id in (1, 2):
        for place in data.draw(places):
            random = np.random.default_rng(data.draw(seeds))
            # From no pixel to nearly all of them.
            mask = random.random(SIZE) < random.choice([0, 0.001, 0.5, 0.99])
            corrected.append(CorrectedSlice(place, object_id, mask))
    answers = drawn(video_model, images, corrected)
    for one in corrected:
        answer = answers[one.place, one.object_id]
        np.testing.assert_array_equal(answer.mask, one.mask)
        assert (answer.origin, answer.score) == ("corrected", 1.0)
    origins = Counter(answer.origin for answer in answers.values())
    assert origins["corrected"] == len(corrected)
    assert origins["detector"] == 0


def test_an_object_is_drawn_on_both_sides_and_between(
    video_model: MedSAM3, images: list[ImageEmbedding]
) -> None:
    golden = sam3_reference.tracker_golden()
    clicks = CorrectedSlice(2, 5, points=golden["image/points"][0][:1])
    box = CorrectedSlice(5, 5, box=golden["image/box"][0])
    places = [one.place for one in drawn(video_model, images, [clicks, box]).values()]
    assert places[:2] == [2, 5]
    # What lies between comes first, then the nearest outside.
    assert sorted(places[2:4]) == [3, 4]
    assert places[4:] == [6, 1, 0]


def test_what_the_user_says_and_what_has_gone_ends_an_object(
    video_model: MedSAM3, images: list[ImageEmbedding]
) -> None:
    here = CorrectedSlice(3, 1, block(40, 60, 120, 160))

    def places(**rule: Any) -> list[int]:
        return sorted(
            place for place, _ in drawn(video_model, images, [here], rule=StopRule(**rule))
        )

    assert places() == list(range(COUNT))
    assert places(first=2, last=4) == [2, 3, 4]
    assert places(first=3, last=3) == [3]
    assert places(least_presence=0.999) == [3]
    assert places(least_area=10.0) == [3]
    nowhere = CorrectedSlice(3, 1, np.zeros(SIZE, np.bool_))
    assert [place for place, _ in drawn(video_model, images, [nowhere])] == [3]


def test_without_a_memory_the_neighbours_box_asks_the_detector(
    video_model: MedSAM3, images: list[ImageEmbedding]
) -> None:
    detector = MedSAM3(video_model.model, video_model.tokenizer, device="cpu")
    again = detector.encode_images(
        list(np.ascontiguousarray(sam3_reference.tracker_golden()["frames"][:3, :, : SIZE[1]]))
    )
    here = CorrectedSlice(1, 4, block(40, 60, 120, 160))
    with pytest.raises(PromptError, match="object 4 is looked for by what it is"):
        drawn(detector, again, [here])
    texts = {4: detector.encode_text(["optic cup"])}
    rule = StopRule(least_presence=0.0)
    answers = drawn(detector, again, [here], texts=texts, rule=rule)
    np.testing.assert_array_equal(answers[1, 4].mask, here.mask)
    assert {one.origin for one in answers.values()} == {"corrected", "detector"}


def test_the_nearer_and_surer_side_counts_more() -> None:
    there = Estimate((9, 9), np.full((2, 2), 4, np.float16), 0.9, 0.8)
    gone = Estimate((9, 9), np.full((2, 2), -1024, np.float16), 0.1, 0.8)
    near, far = (_mixed(there, gone, weight).estimate for weight in (0.75, 0.25))
    assert (near.logits == 0.75 * 4 - 0.25 * 8).all()
    assert (far.logits == 0.25 * 4 - 0.75 * 8).all()
    assert near.presence == pytest.approx(0.7)
    lost = _mixed(there, None, 0.5).estimate
    np.testing.assert_allclose(lost.logits, (0.64 * 4 - 8) / 1.64, rtol=1e-6)
    # Who has followed the object badly counts less: by the square of the score.
    far = _mixed(there, replace(gone, score=0.4), 0.25).estimate
    np.testing.assert_allclose(far.logits, (0.25 * 4 * 4 - 0.75 * 8) / 1.75, rtol=1e-6)
    # How far the sides agree: not at all, wholly, and not where one has lost the object.
    agreements = [_mixed(there, other, 0.5).agreement for other in (gone, there, None)]
    assert agreements == [0, 1, 0]


@pytest.mark.parametrize(
    ("corrected", "sentence"),
    [
        ([], "correct a slice first"),
        ([CorrectedSlice(COUNT, 1, block(0, 0, 9, 9))], "slice 7 is corrected"),
        ([CorrectedSlice(0, 1, block(0, 0, 9, 9))] * 2, "corrected twice"),
        ([CorrectedSlice(0, 1, np.zeros((9, 9), np.bool_))], "must be 224 x 160"),
        ([CorrectedSlice(0, 1)], "points, a box or a mask"),
    ],
)
def test_malformed_corrections_are_refused_by_name(
    video_model: MedSAM3,
    images: list[ImageEmbedding],
    corrected: list[CorrectedSlice],
    sentence: str,
) -> None:
    with pytest.raises(PromptError, match=sentence):
        drawn(video_model, images, corrected)


SMALL = cache(small_model)


def followed(
    ball: Ball, *places: int, given: NDArray[np.bool_] | None = None, **rule: Any
) -> dict[int, SliceMask]:
    masks = ball.masks if given is None else given
    model = SMALL()
    answers = propagate_stack(
        model,
        lambda place: model.encode_image(np.repeat(ball.pages[place][..., None], 3, axis=2)),
        ball.count,
        [CorrectedSlice(place, 1, masks[place]) for place in places],
        pictures=ball.pages.__getitem__,
        rule=StopRule(**rule),
    )
    return {one.place: one for one in answers}


def test_without_a_memory_the_neighbours_mask_is_bent_until_the_object_ends() -> None:
    ball = Ball()
    for places in ((6,), (4, 9)):
        drawn = followed(ball, *places)
        assert set(drawn) == set(range(2, 11)), "it ends where the ball does"
        known = {place: ball.masks[place] for place in places}
        score = ball.dice({place: one.mask for place, one in drawn.items()})
        for sober in (nearest_copy, interpolated):
            assert score > ball.dice(dict(enumerate(sober(known, ball.count)))) + 0.05
        assert score > 0.9
        assert all(drawn[place].origin == "corrected" for place in places)
        assert drawn[2].score < drawn[5].score < 1, "farther away is less sure"
    assert sorted(followed(ball, 6, first=5, last=8)) == [5, 6, 7, 8]
    assert list(followed(ball, 6, first=4, last=8)) == [6, 7, 5, 8, 4], "the nearest first"


@settings(max_examples=8, deadline=None)
@given(places=st.sets(st.integers(0, Ball.count - 1), min_size=1, max_size=3), seed=st.integers(0))
def test_masks_of_whatever_kind_stay_as_they_were_corrected(places: set[int], seed: int) -> None:
    ball, random = Ball(), np.random.default_rng(seed)
    given = random.random(ball.masks.shape) < random.choice([0, 0.001, 0.5, 1])
    drawn = followed(ball, *places, given=given)
    for place in places:
        np.testing.assert_array_equal(drawn[place].mask, given[place])
        assert drawn[place].origin == "corrected"
