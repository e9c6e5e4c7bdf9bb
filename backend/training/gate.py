"""The gate: a candidate goes into service if it is better in the mean and worse at nothing.

The candidate and the version in service answer the same questions about the same validation images:
by text (T), and by text with the boxes that a person would draw around each object (T+I); the model
looks closer at small objects. A figure is the Dice of what the annotator would see; where the
concept is absent it is 1 for an empty answer and 0 for any other. Few images cannot tell a version
that misses one object in ten from one that misses none; how sure it is of what is there tells more.
Both are also asked by the names of things that no medical image shows, since a fine-tuned detector
may come to answer any name.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.settings import Consensus
from backend.training.examples import Example, Images

if TYPE_CHECKING:
    from medsam3_model import MedSAM3
    from medsam3_model.prompting import EncodeWindow

GateMode = Literal["T", "T+I"]

FOREIGN_NAMES = ("bicycle", "guitar", "umbrella", "sandwich", "airplane", "violin", "sofa")
"""Things that are in no medical image, and that no training asks for; most common first."""
_FOREIGN_ASKED = 5
_FOREIGN_BY_CHANCE = 4
"""So many more may be answered: by a one-sided sign test five against none are no chance (3 %)."""
_LEAST_SURE = 0.5
"""Share of the sureness that has to stay. First rounds of ten images left .8 to 1 of it, runs that
were spoiled on purpose .1 to .5, and the weights half of the way to these .4 to .6."""
_SUREST = 12.0
"""Log-odds beyond which one is as sure as the other."""


@dataclass(frozen=True)
class GateAnswer:
    """One question to one model: `dice` from 0 to 1; `image` and `group` say about what.

    `sureness`: by text, where the concept is there and the model tells presence, the log-odds that
    it gives it.
    """

    image: str
    group: str
    phrase: str
    mode: GateMode
    dice: float
    sureness: float | None = None


@dataclass(frozen=True)
class Answers:
    """What one model answered about the validation images.

    Attributes:
        given: to the questions with a known answer.
        foreign_asked: questions by the name of a thing that is in no image.
        foreign_answered: those of them that got a mask.
    """

    given: tuple[GateAnswer, ...]
    foreign_asked: int = 0
    foreign_answered: int = 0


@dataclass(frozen=True)
class Comparison:
    """Candidate against incumbent on the same questions; mean Dice, and 95 % of the difference."""

    images: int
    candidate: float
    incumbent: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate may go into service, why, and the figures that say so.

    Attributes:
        overall: each image's mean over its questions; None without any.
        parts: by phrase and mode.
        foreign: of how many foreign names (`asked`) candidate and incumbent answered how many.
        enough_images: there were enough images to judge by.
        as_trained: where this is about the version half of the way to a candidate, the verdict on
            that: its `version`, `reasons` and `figures`.
    """

    passed: bool
    reasons: tuple[str, ...]
    overall: Comparison | None
    parts: Mapping[tuple[str, GateMode], Comparison]
    foreign: Mapping[str, int]
    enough_images: bool = True
    as_trained: Mapping[str, Any] | None = None

    def in_place_of(self, version: str, refused: "Verdict") -> "Verdict":
        """The verdict on the version half of the way to a candidate that was refused."""
        reasons = (
            f"as it was trained ({version}) it did not pass: {'; '.join(refused.reasons)}",
            "half of the way from the version in service to it does:",
            *self.reasons,
        )
        as_trained = {
            "version": version,
            "reasons": list(refused.reasons),
            "figures": refused.figures(),
        }
        return replace(self, reasons=reasons, as_trained=as_trained)

    def and_half_way(self, second: "Verdict") -> "Verdict":
        """This verdict, with what was said about the version half of the way."""
        said = f"nor does the version half of the way to it: {'; '.join(second.reasons)}"
        return replace(self, reasons=(*self.reasons, said))

    def figures(self) -> dict[str, Any]:
        """As JSON has it."""
        figures = {
            "overall": asdict(self.overall) if self.overall else None,
            "concepts": [
                {"concept": phrase, "mode": mode, **asdict(part)}
                for (phrase, mode), part in self.parts.items()
            ],
            "foreign_names": dict(self.foreign),
        }
        return figures | ({} if self.as_trained is None else {"as_trained": dict(self.as_trained)})


def decide(
    candidate: Answers,
    incumbent: Answers,
    *,
    tolerance: float,
    min_images: int,
) -> Verdict:
    """Compare two models' answers to the same questions, in the same order.

    The candidate passes if there are enough images, if it is better in the mean, if the 95 %
    interval of that (paired bootstrap over groups) stays above −tolerance, if no concept loses more
    than the tolerance in the mean, in either mode, if it is at least half as sure of each concept
    where it is there, and if it answers no more foreign names than may be chance, or than the
    tolerance as a share of those that were asked. Some more are said.
    """
    pairs = list(zip(candidate.given, incumbent.given, strict=True))
    images = {answer.image for answer in candidate.given}
    foreign = {
        "asked": candidate.foreign_asked,
        "candidate": candidate.foreign_answered,
        "incumbent": incumbent.foreign_answered,
    }
    against = []
    if len(images) < min_images:
        against.append(
            f"{len(images)} validation images are too few to judge by, {min_images} are needed"
        )
    enough_images = not against
    if not images:
        return Verdict(False, tuple(against), None, {}, foreign, enough_images=False)
    parts = {
        key: _compare([pair for pair in pairs if (pair[0].phrase, pair[0].mode) == key])
        for key in dict.fromkeys((answer.phrase, answer.mode) for answer in candidate.given)
    }
    overall = _compare(pairs)
    # The interval may reach below 0: with tens of images it nearly always does. It may not reach
    # as far as a loss that would be refused if it were certain.
    if overall.difference <= 0:
        against.append(f"mean Dice changes by {overall.difference:+.3f}: it is not better")
    elif overall.low < -tolerance:
        against.append(
            f"mean Dice changes by {overall.difference:+.3f}, but the 95 % interval reaches down "
            f"to {overall.low:+.3f}: more validation images would tell"
        )
    # The mean alone counts here: one concept has few images, and an interval over them would reach
    # below the tolerance for nearly every candidate.
    for (phrase, mode), part in parts.items():
        if part.difference < -tolerance:
            against.append(
                f"“{phrase}” ({mode}) loses {-part.difference:.3f} Dice, at most {tolerance:.3f} "
                "is tolerated"
            )
    against += _less_sure(pairs)
    more = foreign["candidate"] - foreign["incumbent"]
    notes: list[str] = []
    if more > 0:
        too_many = more > max(_FOREIGN_BY_CHANCE, tolerance * foreign["asked"])
        (against if too_many else notes).append(
            f"asked for things that are not there ({', '.join(FOREIGN_NAMES[:3])}, …) it marks "
            f"something {foreign['candidate']} of {foreign['asked']} times, the version in service "
            f"{foreign['incumbent']} times"
        )
    if against:
        return Verdict(False, (*against, *notes), overall, parts, foreign, enough_images)
    passed = (
        f"mean Dice {overall.incumbent:.3f} → {overall.candidate:.3f} on {overall.images} "
        f"validation images (95 % interval of the change {overall.low:+.3f} to {overall.high:+.3f})"
    )
    return Verdict(True, (passed, *notes), overall, parts, foreign)


def answers(
    model: "MedSAM3",
    examples: Sequence[Example],
    images: Images,
    rule: Consensus,
    *,
    on_image: Callable[[], None] = lambda: None,
) -> Answers:
    """How well a model answers about each example, by phrase and mode.

    Args:
        model: the version that answers.
        examples: validation images with their true masks.
        images: embeddings, shared by all versions, and the true masks.
        rule: what several annotators' masks become.
        on_image: called after each.
    """
    judge = _Examiner(model, images, rule)
    for example in examples:
        if example.masks:
            judge.ask(example)
            on_image()
    return Answers(tuple(judge.given), judge.foreign_asked, judge.foreign_answered)


def foreign_names(phrases: Sequence[str]) -> tuple[str, ...]:
    """The foreign names that are asked beside `phrases`: what a project itself names is not."""
    own = {phrase.casefold() for phrase in phrases}
    return tuple(name for name in FOREIGN_NAMES if name not in own)[:_FOREIGN_ASKED]


class _Examiner:
    """Asks one model about one image after the other."""

    def __init__(self, model: "MedSAM3", images: Images, rule: Consensus) -> None:
        self._model, self._images, self._rule = model, images, rule
        self._texts: dict[tuple[str, ...], Any] = {}
        self.given: list[GateAnswer] = []
        self.foreign_asked = self.foreign_answered = 0

    def ask(self, example: Example) -> None:
        """By text for each phrase, by foreign names, and with a box around each object."""
        from medsam3_model.second_look import look_closer

        model, image = self._model, self._images.encoded(example)
        embedding = image.whole(model)
        truth = self._images.layers(example, self._rule, embedding.original_size)
        phrases = tuple(truth)
        foreign = foreign_names(phrases)
        text = self._text((*phrases, *foreign))
        part = partial(image.part, model)
        found = look_closer(model, embedding, text, model.detect_all(embedding, text), part)
        for phrase, detections in zip(phrases, found, strict=False):
            mask, layer = detections.concept_mask()[0], truth[phrase]
            sureness = self._sureness(detections.presence) if layer.any() else None
            self._add(example, phrase, "T", mask, layer, sureness)
        self.foreign_asked += len(foreign)
        self.foreign_answered += sum(
            bool(detections.concept_mask()[0].any()) for detections in found[len(phrases) :]
        )
        for phrase, layer in truth.items():
            if layer.any():  # nobody draws a box around what is absent
                mask = self._boxed(example, phrase, embedding, layer, part)
                self._add(example, phrase, "T+I", mask, layer)

    def _boxed(
        self,
        example: Example,
        phrase: str,
        embedding: Any,
        layer: NDArray[np.int32],
        part: "EncodeWindow",
    ) -> NDArray[np.bool_]:
        """The answer to the boxes that a person would draw around a phrase's objects."""
        from medsam3_model.boxes import disturbed_boxes, instance_boxes
        from medsam3_model.prompting import SpatialPrompt, segment_prompted

        # The key makes the disturbance the same for both versions and for every later run.
        height, width = embedding.original_size
        key = f"{example.key}/{phrase}"
        drawn = disturbed_boxes(instance_boxes(layer), height, width, key=key)
        prompt = SpatialPrompt(drawn, [1] * len(drawn), np.zeros((0, 2), np.float32), [])
        text = self._text((phrase,))
        return segment_prompted(self._model, embedding, text, prompt, part).union()

    def _text(self, phrases: tuple[str, ...]) -> Any:
        if phrases not in self._texts:
            self._texts[phrases] = self._model.encode_text(phrases)
        return self._texts[phrases]

    def _sureness(self, presence: float) -> float | None:
        """The log-odds of a probability; None where the model's answers do not depend on it."""
        if not self._model.settings.use_presence:
            return None
        least = 1 / (1 + math.exp(_SUREST))
        bounded = min(max(presence, least), 1 - least)
        return math.log(bounded / (1 - bounded))

    def _add(
        self,
        example: Example,
        phrase: str,
        mode: GateMode,
        mask: NDArray[np.bool_],
        layer: NDArray[np.int32],
        sureness: float | None = None,
    ) -> None:
        from medsam3_model.evaluation.metrics import dice

        score = dice(mask, layer > 0)
        name = f"{example.task_id}/{example.key}"
        self.given.append(GateAnswer(name, example.group, phrase, mode, score, sureness))


def _less_sure(pairs: Sequence[tuple[GateAnswer, GateAnswer]]) -> list[str]:
    """What the candidate is not half as sure of as the incumbent, where it is there.

    Before a version misses things it grows unsure of them. So a few images on which it misses
    nothing yet still tell what it will miss in others.
    """
    sure: dict[str, list[tuple[float, float]]] = {}
    for new, old in pairs:
        if new.sureness is not None and old.sureness is not None:
            sure.setdefault(new.phrase, []).append((new.sureness, old.sureness))
    said = []
    for phrase, both in sure.items():
        now, before = (fmean(column) for column in zip(*both, strict=True))
        if before > 0 and now < _LEAST_SURE * before:
            said.append(
                f"where “{phrase}” is there the model is less than half as sure of it as before "
                f"(log-odds {before:.1f} → {now:.1f}): it would miss more of it"
            )
    return said


def _compare(pairs: Sequence[tuple[GateAnswer, GateAnswer]]) -> Comparison:
    from medsam3_model.evaluation.metrics import paired_bootstrap

    # An image with many concepts counts as one: its questions are averaged first.
    by_image: dict[str, list[tuple[GateAnswer, GateAnswer]]] = {}
    for pair in pairs:
        by_image.setdefault(pair[0].image, []).append(pair)
    new = [fmean(answer.dice for answer, _ in image) for image in by_image.values()]
    old = [fmean(answer.dice for _, answer in image) for image in by_image.values()]
    groups = [image[0][0].group for image in by_image.values()]
    change = paired_bootstrap(new, old, groups)
    return Comparison(len(new), fmean(new), fmean(old), change.mean, change.low, change.high)
