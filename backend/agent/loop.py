"""The loop: a partner looks at numbered masks and prompts a segmenter, for a few rounds.

The loop begins with what the segmenter says by itself, and that answer is never lost: a partner
that fails or stops leaves it as it is. A choice that the segmenter's own figures speak against has
to be confirmed: the partner is shown both answers, in one order and in the other, and must prefer
the same one each time. Whoever guesses, or always takes the first, changes nothing.
Neither the partner nor the segmenter is known here but by a protocol: a language model over HTTP
or a script, a model in this process or a worker on another machine.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from backend.agent.candidates import (
    MOST_CANDIDATES,
    Board,
    Candidate,
    Found,
    FoundMask,
    confirmations,
)
from backend.agent.tools import (
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
from backend.errors import AgentError

# What a partner sees at once; more numbers than these cover the image.
MOST_SHOWN = 12
# Above this the segmenter itself says that it is there, and a report of absence is not followed.
CERTAIN_PRESENCE = 0.5


class Segmenter(Protocol):
    """What makes masks of prompts on one encoded image. Coordinates are fractions of it."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""

    def by_phrase(self, phrase: str) -> Found:
        """Everything that a phrase names."""

    def by_boxes(self, boxes: Sequence[Box]) -> Found:
        """One object in each box."""

    def by_clicks(
        self, inside: Sequence[Point], outside: Sequence[Point], near: NDArray[np.bool_]
    ) -> Found:
        """The object that clicks mean; `near` is the mask, bool (H, W), that they correct."""


@dataclass(frozen=True)
class Question:
    """What a partner is asked for.

    Attributes:
        phrase: that the segmenter is asked with.
        label: as annotators know it.
        instruction: what an annotator wrote about it, or nothing.
    """

    phrase: str
    label: str
    instruction: str = ""


@dataclass(frozen=True, eq=False)
class PartnerView:
    """What a partner sees before it acts.

    Attributes:
        question: what it is about.
        size: (height, width) of the image.
        shown: the masks that it sees, with their numbers.
        newest: the one that is looked at more closely, if any.
        own: numbers of the segmenter's own answer.
        log: what happened so far, one sentence for each action.
        used_phrases: they are not asked for again.
        may_segment: whether there are rounds left for new masks.
        comparing: whether the two shown masks are two whole answers, one of which is to be chosen.
    """

    question: Question
    size: tuple[int, int]
    shown: tuple[Candidate, ...]
    newest: Candidate | None
    own: tuple[int, ...]
    log: tuple[str, ...]
    used_phrases: tuple[str, ...]
    may_segment: bool
    comparing: bool = False


class Partner(Protocol):
    """Who decides what to do next."""

    def act(self, view: PartnerView, timeout_s: float) -> Action:
        """The next action, within the time.

        Raises:
            AgentError: there is none.
        """


class Ending(StrEnum):
    """How a loop ended; all but the first two leave the segmenter's own answer."""

    CHOSEN = "chosen"  # the partner's choice is the answer
    ABSENT = "absent"  # it is not there, and the segmenter does not contradict
    KEPT = "kept"  # the partner chose the segmenter's own answer, or stopped
    OVERRULED = "overruled"  # the segmenter's figures spoke against it, and it was not confirmed
    UNDECIDED = "undecided"  # the rounds were used up without a choice
    FAILED = "failed"  # no partner, or none that could be understood


@dataclass(frozen=True)
class Limits:
    """Bounds of one loop: rounds that make masks, seconds in all and for one action."""

    rounds: int = 3
    task_s: float = 90.0
    action_s: float = 30.0


@dataclass(frozen=True, eq=False)
class LoopResult:
    """What came of a loop.

    Attributes:
        masks: of the answer.
        ending: how it ended, and `reason` in a sentence.
        log: what happened, one sentence for each action.
        rounds: how many made masks.
        seconds: in all.
        board: every candidate.
    """

    masks: tuple[Candidate, ...]
    ending: Ending
    reason: str
    log: tuple[str, ...]
    rounds: int
    seconds: float
    board: Board

    @property
    def by_agent(self) -> bool:
        """Whether the answer is another one than the segmenter's own."""
        return self.ending in (Ending.CHOSEN, Ending.ABSENT)


# Ending, its reason, and numbers of the answer's masks.
_Answer = tuple[Ending, str, tuple[int, ...]]


@dataclass
class _State:
    board: Board
    used_phrases: list[str]
    log: list[str] = field(default_factory=list)
    newest: list[int] = field(default_factory=list)
    rounds: int = 0


def run_loop(
    segmenter: Segmenter,
    partner: Partner,
    question: Question,
    limits: Limits,
    *,
    first_look: Found | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> LoopResult:
    """Ask a partner until it chooses, gives up, or rounds or time are used up.

    Args:
        segmenter: of the encoded image.
        partner: who decides.
        question: what is asked for.
        limits: of rounds and time.
        first_look: the segmenter's own answer, where it is known; default: by the phrase.
        clock: seconds.

    Raises:
        BackendError, MedSAM3Error: the first look fails; later errors of the segmenter do not
            leave the loop.
    """
    from medsam3_model.errors import MedSAM3Error

    started = clock()
    first = first_look or segmenter.by_phrase(question.phrase)
    state = _State(Board.of_first_look(segmenter.size, first), [_folded(question.phrase)])
    state.log.append(
        f'The phrase "{question.phrase}" found {_listed(state.board.own) or "no mask"}.'
    )

    def act(view: PartnerView) -> Action:
        left_s = limits.task_s - (clock() - started)
        if left_s <= 0:
            raise AgentError(f"the time of {limits.task_s:.0f} s is over")
        return partner.act(view, min(left_s, limits.action_s))

    try:
        ending, reason, chosen = _decide(segmenter, act, state, question, limits)
    except (AgentError, MedSAM3Error) as error:
        ending, reason, chosen = Ending.FAILED, str(error), state.board.own
    return LoopResult(
        masks=tuple(state.board.get(chosen)),
        ending=ending,
        reason=reason,
        log=tuple(state.log),
        rounds=state.rounds,
        seconds=clock() - started,
        board=state.board,
    )


def _decide(
    segmenter: Segmenter,
    act: Callable[[PartnerView], Action],
    state: _State,
    question: Question,
    limits: Limits,
) -> _Answer:
    # One request more than rounds: the last one can only choose.
    for _ in range(limits.rounds + 1):
        action = act(_view(state, question, limits))
        if isinstance(action, Choose | ReportAbsent | Stop):
            answer = _ended(state, action)
            if answer is None:
                continue
            if answer[0] == Ending.CHOSEN and not _confirmed(act, state, question, answer[2]):
                reason = f"{answer[1]}, against the model's own figures, and did not confirm it"
                return Ending.OVERRULED, reason, state.board.own
            return answer
        if state.rounds < limits.rounds:
            _segment(segmenter, state, action)
        else:
            state.log.append("There are no rounds left for new masks: choose.")
    return Ending.UNDECIDED, "the rounds are used up", state.board.own


def _confirmed(
    act: Callable[[PartnerView], Action], state: _State, question: Question, chosen: Sequence[int]
) -> bool:
    """Whether the partner prefers its choice to the own answer as often as is needed."""
    board = state.board
    answers = [FoundMask(board.union(numbers), 1.0, 1.0) for numbers in (chosen, board.own)]
    for turn in range(confirmations(board, chosen)):
        # The choice is number 2 and number 1 in turns.
        first, second = answers[:: -1 if turn % 2 == 0 else 1]
        pair = (Candidate(1, first, "phrase"), Candidate(2, second, "phrase"))
        view = PartnerView(
            question, board.size, pair, None, (), (), (), may_segment=False, comparing=True
        )
        action = act(view)
        wanted = 2 if turn % 2 == 0 else 1
        if not isinstance(action, Choose) or action.masks != (wanted,):
            state.log.append("Between the two answers the choice was not confirmed.")
            return False
        state.log.append("Between the two answers the choice was confirmed.")
    return True


def _view(state: _State, question: Question, limits: Limits) -> PartnerView:
    board = state.board
    # The own answer and what is newest come first; then what the segmenter trusts most.
    best = sorted(board.candidates, key=lambda c: c.found.score, reverse=True)
    wanted = dict.fromkeys([*state.newest, *board.own, *(c.number for c in best)])
    newest = board.get(state.newest[:1])
    return PartnerView(
        question=question,
        size=board.size,
        shown=tuple(board.get(list(wanted)[:MOST_SHOWN])),
        newest=newest[0] if newest else None,
        own=board.own,
        log=tuple(state.log),
        used_phrases=tuple(state.used_phrases),
        may_segment=state.rounds < limits.rounds and len(board.candidates) < MOST_CANDIDATES,
    )


def _segment(
    segmenter: Segmenter, state: _State, action: SegmentPhrase | SegmentBox | RefineWithClicks
) -> None:
    """One round: make masks and number them, or say why not."""
    # A refusal is a round, too: who repeats a mistake comes to an end.
    state.rounds += 1
    board = state.board
    match action:
        case SegmentPhrase(phrase):
            if _folded(phrase) in state.used_phrases:
                state.log.append(f'The phrase "{phrase}" was used already: try another tool.')
                return
            state.used_phrases.append(_folded(phrase))
            numbers = board.add(segmenter.by_phrase(phrase), "phrase")
            what = f'The phrase "{phrase}"'
        case SegmentBox(boxes):
            numbers = board.add(segmenter.by_boxes(boxes), "box")
            what = "The box" if len(boxes) == 1 else f"The {len(boxes)} boxes"
        case RefineWithClicks(mask, inside, outside):
            corrected = board.get([mask])
            if not corrected:
                state.log.append(f"There is no mask {mask} to refine.")
                return
            found = segmenter.by_clicks(inside, outside, corrected[0].mask)
            numbers = board.add(found, "clicks")
            what = f"The clicks on mask {mask}"
    state.newest = numbers
    state.log.append(f"{what} found {_listed(numbers) or 'no mask'}.")


def _ended(state: _State, action: Choose | ReportAbsent | Stop) -> _Answer | None:
    """Ending, reason and masks of the answer; None where the partner has to choose again."""
    board = state.board
    if isinstance(action, Stop):
        return Ending.KEPT, action.reason or "the partner stopped", board.own
    if isinstance(action, ReportAbsent):
        if board.own and board.presence >= CERTAIN_PRESENCE:
            reason = f"reported as absent, but the segmenter is sure ({board.presence:.2f})"
            return Ending.OVERRULED, reason, board.own
        return Ending.ABSENT, action.reason or "reported as absent", ()
    chosen = board.get(action.masks)
    if not chosen:
        state.log.append(f"There is no mask {', '.join(map(str, action.masks))}: choose others.")
        return None
    numbers = tuple(candidate.number for candidate in chosen)
    if set(numbers) == set(board.own):
        return Ending.KEPT, "the partner chose the segmenter's own answer", board.own
    return Ending.CHOSEN, f"chose {_listed(numbers)}", numbers


def _listed(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    names = ", ".join(map(str, dict.fromkeys(numbers)))
    return f"mask {names}" if len(set(numbers)) == 1 else f"masks {names}"


def _folded(phrase: str) -> str:
    return " ".join(phrase.casefold().split())
