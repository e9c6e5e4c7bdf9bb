"""The one object of a phrase, asked for again in a square around it."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medsam3_model.second_look import look_closer
from medsam3_model.types import Detections, ImageEmbedding, TextEmbedding, Window

SIDE, PATCHES = 300, 30  # a patch is 10 pixels wide
TEXT = TextEmbedding(("Optic Disc",), torch.zeros(1, 3, 4), torch.ones(1, 3), "hash")
TRUE: Window = (100, 120, 140, 160)


@dataclass
class Looker:
    """Sees the true square in what it is shown, and keeps where it looked."""

    room: float | None
    sure: float = 0.99
    looks: list[Window] = field(default_factory=list)

    def second_look_of(self, phrase: str) -> float | None:
        return self.room

    def detect_all(self, window: Window, text: TextEmbedding) -> list[Detections]:
        self.looks.append(window)
        x0, y0, x1, y1 = window
        return [answer(TRUE, self.sure).cut(y0, y1, x0, x1)]  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class Shown(Detections):
    """Detections that can be cut to a window."""

    def cut(self, y0: int, y1: int, x0: int, x1: int) -> Detections:
        return replace(
            self, masks=self.masks[:, y0:y1, x0:x1], semantic=self.semantic[y0:y1, x0:x1]
        )


def square(window: Window) -> NDArray[np.bool_]:
    mask = np.zeros((SIDE, SIDE), bool)
    x0, y0, x1, y1 = window
    mask[y0:y1, x0:x1] = True
    return mask


def answer(found: Window, sure: float = 0.8, instances: int = 1) -> Shown:
    mask = square(found)
    return Shown(
        masks=np.repeat(mask[None], instances, axis=0),
        boxes=np.array([found] * instances, np.float32).reshape(-1, 4),
        scores=np.full(instances, 0.7, np.float32),
        presence=0.9,
        semantic=np.where(mask, sure, 1 - sure).astype(np.float32),
        phrase="Optic Disc",
    )


def asked(looker: Looker, first: Detections) -> Detections:
    hidden = torch.zeros(1, PATCHES**2, 4)
    image = ImageEmbedding((), hidden, (SIDE, SIDE), "hash", "hash")
    return look_closer(looker, image, TEXT, [first], lambda window: window)[0]  # type: ignore


@pytest.mark.parametrize("instances", [0, 1])
def test_what_is_seen_from_near_mends_the_mask(instances: int) -> None:
    looker = Looker(room=2.5)
    mended = asked(looker, answer((96, 116, 146, 166), instances=instances))
    # A square of two and a half times 50 pixels around the middle at (121, 141).
    assert looker.looks == [(58, 78, 184, 204)]
    assert np.array_equal(mended.concept_mask()[0], square(TRUE))
    assert len(mended) == instances
    if instances:
        assert mended.boxes.tolist() == [list(TRUE)]
        assert mended.scores == [np.float32(0.7)]
    assert mended.presence == 0.9


def test_another_object_beside_the_instance_stays_another_one() -> None:
    """It scored too low to be shown, but the semantic map has it."""
    beside: Window = (150, 120, 170, 160)
    first = answer((96, 116, 146, 166), sure=0.99)
    first = replace(first, semantic=np.where(square(beside), 0.999, first.semantic))
    looker = Looker(room=2.5, sure=0.8)
    mended = asked(looker, first)
    assert looker.looks
    assert not (mended.masks[0] & square(beside)).any()
    assert np.array_equal(mended.masks, first.masks)


def test_the_surer_look_decides() -> None:
    first = answer((96, 116, 146, 166), sure=0.9)
    assert np.array_equal(asked(Looker(2.5, sure=0.7), first).masks, first.masks)
    assert not np.array_equal(asked(Looker(2.5, sure=0.95), first).masks, first.masks)


@pytest.mark.parametrize(
    ("room", "first"),
    [
        (None, answer((96, 116, 146, 166))),
        (2.5, answer((96, 116, 146, 166), instances=2)),
        (2.5, answer((100, 100, 250, 250))),  # fifteen patches long
        (2.5, replace(answer((0, 0, 0, 0), instances=0), presence=0.2)),
    ],
    ids=["none for the phrase", "several", "large", "absent"],
)
def test_one_look_is_enough_for_anything_else(room: float | None, first: Detections) -> None:
    looker = Looker(room)
    assert asked(looker, first) is first
    assert looker.looks == []


def test_an_object_that_is_not_seen_from_near_stays() -> None:
    first = answer((200, 200, 240, 240), sure=0.6)
    assert asked(Looker(2.5), first) is first
