"""Partners that are no language model, for measuring what the loop itself is worth.

The oracle knows the true mask, so it is the loop's upper bound; the random and the first one know
nothing, so they show what the loop protects from; a noisy one is in between.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backend.agent.candidates import Candidate
from backend.agent.loop import Partner, PartnerView
from backend.agent.tools import (
    MOST_BOXES,
    Action,
    Box,
    Choose,
    Point,
    RefineWithClicks,
    ReportAbsent,
    SegmentBox,
    SegmentPhrase,
    Stop,
)
from backend.errors import SettingsError

# An answer this good is not refined any further.
_GOOD_ENOUGH = 0.97
_PHRASES = ("structure", "lesion", "dark region", "bright region", "organ", "mass")

BoolMask = NDArray[np.bool_]


def built_in_partner(name: str, truth: BoolMask, boxes: NDArray[np.float32], seed: str) -> Partner:
    """A partner by the name that is given to `medsam3 evaluate`.

    Args:
        name: `oracle`, `noisy:SHARE`, `random` or `first`.
        truth: bool (H, W), the true mask.
        boxes: float (N, 4), tight true boxes, x0, y0, x1, y1 in pixels.
        seed: names image and concept, so that each has its own sequence of random actions.

    Raises:
        SettingsError: there is no such partner.
    """
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    kind, _, share = name.partition(":")
    match kind:
        case "oracle" if not share:
            return OraclePartner(truth, boxes)
        case "random" if not share:
            return RandomPartner(rng)
        case "first" if not share:
            return FirstPartner()
        case "noisy":
            try:
                wrong = float(share)
            except ValueError:
                wrong = -1.0
            if 0 <= wrong <= 1:
                return NoisyPartner(OraclePartner(truth, boxes), RandomPartner(rng), wrong, rng)
    raise SettingsError(
        f"There is no partner {name[:40]!r}: give oracle, noisy:0.2, random, first or server."
    )


class OraclePartner:
    """Draws the true boxes, clicks where the answer is wrong, and chooses by the true mask."""

    def __init__(self, truth: BoolMask, boxes: NDArray[np.float32]) -> None:
        self._truth = truth
        height, width = truth.shape
        sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        largest = boxes[np.argsort(-sizes)[:MOST_BOXES]] / [width, height, width, height]
        # In thousandths, as a language model is asked for.
        self._boxes: list[Box] = [tuple(np.round(box, 3).tolist()) for box in largest]
        self._inside: list[Point] = []
        self._outside: list[Point] = []
        self._boxed = False

    def act(self, view: PartnerView, timeout_s: float) -> Action:
        """The best that can be done."""
        if view.comparing:
            best = max(view.shown, key=lambda candidate: self._dice(candidate.mask))
            return Choose((best.number,))
        chosen = self._best_together(view.shown)
        union = _union(chosen, self._truth.shape)
        if not view.may_segment or self._dice(union) >= _GOOD_ENOUGH:
            return Choose(tuple(c.number for c in chosen)) if chosen else Stop("nothing fits")
        if not self._boxed and self._boxes:
            self._boxed = True
            return SegmentBox(tuple(self._boxes))
        return self._click(chosen, union)

    def _click(self, chosen: Sequence[Candidate], union: BoolMask) -> Action:
        """A click where the answer is most wrong, with those before it."""
        from medsam3_model.evaluation.clicks import next_click

        click = next_click(self._truth, union)
        if click is None or not chosen:
            return Choose(tuple(c.number for c in chosen)) if chosen else Stop("nothing fits")
        height, width = self._truth.shape
        (self._inside if click.inside else self._outside).append(
            (click.x / width, click.y / height)
        )
        row, column = int(click.y), int(click.x)

        def distance(candidate: Candidate) -> float:
            rows, columns = np.nonzero(candidate.mask)
            return float(((rows - row) ** 2 + (columns - column) ** 2).min())

        nearest = min(chosen, key=distance)
        return RefineWithClicks(nearest.number, tuple(self._inside), tuple(self._outside))

    def _best_together(self, shown: Sequence[Candidate]) -> list[Candidate]:
        """The masks whose union fits best, added one by one."""
        chosen: list[Candidate] = []
        best, left = 0.0, list(shown)
        while left:
            union = _union(chosen, self._truth.shape)
            gains = [self._dice(union | candidate.mask) for candidate in left]
            index = int(np.argmax(gains))
            if gains[index] <= best:
                break
            best = gains[index]
            chosen.append(left.pop(index))
        return chosen

    def _dice(self, mask: BoolMask) -> float:
        from medsam3_model.evaluation.metrics import dice

        return dice(mask, self._truth)


class RandomPartner:
    """Calls tools at random, with random arguments."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def act(self, view: PartnerView, timeout_s: float) -> Action:
        """Anything."""
        numbers = [candidate.number for candidate in view.shown]
        kinds = ["choose", "absent", "stop"] if numbers else ["absent", "stop"]
        if view.comparing:
            kinds = ["choose"]
        elif view.may_segment:
            kinds += ["phrase", "box", *(["clicks"] if numbers else [])]
        match self._rng.choice(kinds):
            case "choose":
                return Choose((int(self._rng.choice(numbers)),))
            case "absent":
                return ReportAbsent("at random")
            case "phrase":
                return SegmentPhrase(str(self._rng.choice(_PHRASES)))
            case "box":
                (x0, x1), (y0, y1) = np.sort(self._rng.uniform(0, 1, (2, 2)))
                return SegmentBox(((x0, y0, max(x1, x0 + 0.01), max(y1, y0 + 0.01)),))
            case "clicks":
                x, y = self._rng.uniform(0, 1, 2)
                return RefineWithClicks(int(self._rng.choice(numbers)), ((x, y),), ())
        return Stop("at random")


class FirstPartner:
    """Always chooses the first mask that it sees."""

    def act(self, view: PartnerView, timeout_s: float) -> Action:
        """The first."""
        return Choose((view.shown[0].number,)) if view.shown else Stop("nothing to choose")


class NoisyPartner:
    """Acts at random in a share of its actions, and otherwise like an oracle."""

    def __init__(
        self, oracle: Partner, blind: Partner, share: float, rng: np.random.Generator
    ) -> None:
        self._oracle, self._blind = oracle, blind
        self._share, self._rng = share, rng

    def act(self, view: PartnerView, timeout_s: float) -> Action:
        """What the one or the other does."""
        partner = self._blind if self._rng.uniform() < self._share else self._oracle
        return partner.act(view, timeout_s)


def _union(candidates: Sequence[Candidate], size: tuple[int, ...]) -> BoolMask:
    union = np.zeros(size, np.bool_)
    for candidate in candidates:
        union |= candidate.mask
    return union
