"""Candidates: the masks that a look at an image has brought so far, with numbers that stay.

Every mask carries two figures of the segmenter's own: its `score`, and its `support`, which is
taken from what the phrase alone says about the pixels and so does not depend on where a language
model drew its box. A choice that they speak against has to be confirmed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Masks that share this much of their union are one.
_SAME_IOU = 0.9
# Of the own answer's agreement with the phrase's map: a choice that keeps it needs no confirmation.
_AGREES = 0.9
# Of any other choice: a partner that guesses passes one in 64.
_CONFIRMATIONS = 6
MOST_CANDIDATES = 40

Origin = Literal["phrase", "box", "clicks"]


@dataclass(frozen=True, eq=False)
class FoundMask:
    """One mask of a segmenter.

    Attributes:
        mask: bool (H, W), not empty.
        score: the segmenter's own, 0 to 1.
        support: mean probability, 0 to 1, that the phrase of the label alone gives to its pixels.
        own: whether the segmenter would answer the phrase with it, without any agent.
    """

    mask: NDArray[np.bool_]
    score: float
    support: float
    own: bool = False


@dataclass(frozen=True, eq=False)
class Found:
    """What a segmenter answered.

    Attributes:
        masks: best first.
        presence: 0 to 1, whether the concept is there.
        expected_area: sum of the probabilities that the phrase gives to the pixels; of a first
            look.
    """

    masks: tuple[FoundMask, ...]
    presence: float = 1.0
    expected_area: float = 0.0


@dataclass(frozen=True, eq=False)
class Candidate:
    """A numbered mask, and what it was found by."""

    number: int
    found: FoundMask
    origin: Origin

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Bool (H, W)."""
        return self.found.mask


@dataclass
class Board:
    """All candidates of one image and label.

    Attributes:
        size: (height, width).
        candidates: in the order of their numbers, which begin with 1.
        own: numbers of the masks that are the answer without an agent.
        presence, expected_area: of the first look.
    """

    size: tuple[int, int]
    candidates: list[Candidate] = field(default_factory=list)
    own: tuple[int, ...] = ()
    presence: float = 0.0
    expected_area: float = 0.0

    @classmethod
    def of_first_look(cls, size: tuple[int, int], found: Found) -> "Board":
        """The board that a phrase or a drawn box begins with."""
        board = cls(size, presence=found.presence, expected_area=found.expected_area)
        numbers = board.add(found, "phrase")
        board.own = tuple(
            dict.fromkeys(n for n, m in zip(numbers, found.masks, strict=True) if m.own)
        )
        return board

    def add(self, found: Found, origin: Origin) -> list[int]:
        """Number masks; one that is there already keeps its number. In the order of `found`."""
        numbers = []
        for mask in found.masks:
            known = next((c for c in self.candidates if _iou(c.mask, mask.mask) > _SAME_IOU), None)
            if known is None:
                known = Candidate(len(self.candidates) + 1, mask, origin)
                self.candidates.append(known)
            numbers.append(known.number)
        return numbers

    def get(self, numbers: Iterable[int]) -> list[Candidate]:
        """The candidates of these numbers; unknown ones are left out."""
        wanted = set(numbers)
        return [candidate for candidate in self.candidates if candidate.number in wanted]

    def union(self, numbers: Iterable[int]) -> NDArray[np.bool_]:
        """Bool (H, W): the pixels of these masks."""
        union = np.zeros(self.size, np.bool_)
        for candidate in self.get(numbers):
            union |= candidate.mask
        return union


def confirmations(board: Board, chosen: Sequence[int]) -> int:
    """How often a choice has to be confirmed before it replaces the segmenter's own answer.

    Whoever prefers at random passes n confirmations once in 2 to the n. Choices that agree with
    what the phrase says about the pixels pass at once, as does everything where the segmenter
    found nothing.
    """
    if not board.own:
        return 0
    agrees = _agreement(board, chosen) >= _AGREES * _agreement(board, board.own)
    return 0 if agrees else _CONFIRMATIONS


def _agreement(board: Board, numbers: Iterable[int]) -> float:
    """The Dice of masks and the phrase's probabilities."""
    candidates = board.get(numbers)
    area = sum(int(candidate.mask.sum()) for candidate in candidates)
    inside = sum(int(c.mask.sum()) * c.found.support for c in candidates)
    return 2 * inside / max(1e-6, area + board.expected_area)


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    both = int(np.count_nonzero(one & other))
    return both / max(1, int(np.count_nonzero(one)) + int(np.count_nonzero(other)) - both)
