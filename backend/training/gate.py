"""The gate: a candidate goes into service if it is better in the mean and worse at nothing.

The candidate and the version in service answer the same questions about the same validation images:
by text (T), and by text with the boxes that a person would draw around each object (T+I); the model
looks closer at small objects. A figure is the Dice of what the annotator would see; where the
concept is absent it is 1 for an empty answer and 0 for any other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class GateAnswer:
    """One question to one model: `dice` from 0 to 1; `image` and `group` say about what."""

    image: str
    group: str
    phrase: str
    mode: GateMode
    dice: float


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
    """

    passed: bool
    reasons: tuple[str, ...]
    overall: Comparison | None
    parts: Mapping[tuple[str, GateMode], Comparison]

    def figures(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "overall": asdict(self.overall) if self.overall else None,
            "concepts": [
                {"concept": phrase, "mode": mode, **asdict(part)}
                for (phrase, mode), part in self.parts.items()
            ],
        }


def decide(
    candidate: Sequence[GateAnswer],
    incumbent: Sequence[GateAnswer],
    *,
    tolerance: float,
    min_images: int,
) -> Verdict:
    """Compare two models' answers to the same questions, in the same order.

    The candidate passes if there are enough images, if it is better in the mean, if the 95 %
    interval of that (paired bootstrap over groups) stays above −tolerance, and if no concept loses
    more than the tolerance in the mean, in either mode.
    """
    pairs = list(zip(candidate, incumbent, strict=True))
    images = {answer.image for answer in candidate}
    against = []
    if len(images) < min_images:
        against.append(
            f"{len(images)} validation images are too few to judge by, {min_images} are needed"
        )
    if not images:
        return Verdict(False, tuple(against), None, {})
    parts = {
        key: _compare([pair for pair in pairs if (pair[0].phrase, pair[0].mode) == key])
        for key in dict.fromkeys((answer.phrase, answer.mode) for answer in candidate)
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
    if against:
        return Verdict(False, tuple(against), overall, parts)
    passed = (
        f"mean Dice {overall.incumbent:.3f} → {overall.candidate:.3f} on {overall.images} "
        f"validation images (95 % interval of the change {overall.low:+.3f} to {overall.high:+.3f})"
    )
    return Verdict(True, (passed,), overall, parts)


def answers(
    model: "MedSAM3",
    examples: Sequence[Example],
    images: Images,
    rule: Consensus,
    *,
    on_image: Callable[[], None] = lambda: None,
) -> list[GateAnswer]:
    """How well a model answers about each example, by phrase and mode.

    Args:
        model: the version that answers.
        examples: validation images with their true masks.
        images: embeddings, shared by all versions, and the true masks.
        rule: what several annotators' masks become.
        on_image: called after each.
    """
    given: list[GateAnswer] = []
    texts: dict[tuple[str, ...], Any] = {}
    for example in examples:
        phrases = tuple(example.masks)
        if not phrases:
            continue
        if phrases not in texts:
            texts[phrases] = model.encode_text(phrases)
        image = images.encoded(example)
        embedding = image.whole(model)
        truth = images.layers(example, rule, embedding.original_size)
        closer_look = partial(image.part, model)
        given += _of_image(model, example, embedding, texts[phrases], truth, closer_look)
        on_image()
    return given


def _of_image(
    model: "MedSAM3",
    example: Example,
    embedding: Any,
    text: Any,
    truth: Mapping[str, NDArray[np.int32]],
    closer_look: "EncodeWindow",
) -> list[GateAnswer]:
    from medsam3_model.boxes import disturbed_boxes, instance_boxes
    from medsam3_model.evaluation.metrics import dice
    from medsam3_model.prompting import SpatialPrompt, segment_prompted
    from medsam3_model.small_objects import look_closer

    def answer(phrase: str, mode: GateMode, mask: NDArray[np.bool_]) -> GateAnswer:
        score = dice(mask, truth[phrase] > 0)
        return GateAnswer(f"{example.task_id}/{example.key}", example.group, phrase, mode, score)

    by_text = look_closer(model, embedding, text, model.detect_all(embedding, text), closer_look)
    given = [
        answer(phrase, "T", detections.concept_mask()[0])
        for phrase, detections in zip(truth, by_text, strict=True)
    ]
    height, width = embedding.original_size
    for index, (phrase, layer) in enumerate(truth.items()):
        if not layer.any():
            continue  # nobody draws a box around what is absent
        tight = instance_boxes(layer)
        # The key makes the disturbance the same for both versions and for every later run.
        drawn = disturbed_boxes(tight, height, width, key=f"{example.key}/{phrase}")
        prompt = SpatialPrompt(drawn, [1] * len(drawn), np.zeros((0, 2), np.float32), [])
        prompted = segment_prompted(model, embedding, text[index], prompt, closer_look)
        given.append(answer(phrase, "T+I", prompted.union()))
    return given


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
