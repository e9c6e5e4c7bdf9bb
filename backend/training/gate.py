"""Is a candidate better than the version in service, and worse at nothing?

Both are asked the same about the same validation images: by text (T), and by text with the boxes a
person would draw around each object (T+I), small ones looked at closer. A figure is the Dice of
what the annotator would be shown; where the concept is absent it is 1 for an empty answer and 0 for
any other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from backend.settings import Consensus

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backend.corrections.mask_store import MaskStore
    from backend.training.examples import Example
    from backend.training.images import Images
    from medsam3_model import MedSAM3
    from medsam3_model.prompting import EncodeWindow

Mode = Literal["T", "T+I"]


@dataclass(frozen=True)
class GateAnswer:
    """One question to one model: `dice` from 0 to 1; `image` and `group` say about what."""

    image: str
    group: str
    phrase: str
    mode: Mode
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
    parts: Mapping[tuple[str, Mode], Comparison]

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
    interval of that (paired bootstrap over groups) stays above −tolerance, and if no concept in
    neither mode loses more than the tolerance in the mean.
    """
    pairs = list(zip(candidate, incumbent, strict=True))
    images = {one.image for one in candidate}
    if len(images) < min_images:
        reason = f"{len(images)} validation images are too few to judge by, {min_images} are needed"
        if not images:
            return Verdict(False, (reason,), None, {})
    parts = {
        key: _compare([pair for pair in pairs if (pair[0].phrase, pair[0].mode) == key])
        for key in dict.fromkeys((one.phrase, one.mode) for one in candidate)
    }
    overall = _compare(pairs)
    against = [] if len(images) >= min_images else [reason]
    if overall.difference <= 0:
        against.append(f"mean Dice changes by {overall.difference:+.3f}: it is not better")
    elif overall.low < -tolerance:
        against.append(
            f"mean Dice changes by {overall.difference:+.3f}, but the 95 % interval reaches down "
            f"to {overall.low:+.3f}: more validation images would tell"
        )
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
    examples: Sequence["Example"],
    images: "Images",
    masks: "MaskStore",
    rule: Consensus,
    *,
    on_image: Callable[[], None] = lambda: None,
) -> list[GateAnswer]:
    """What a model answers about each example, by phrase and mode.

    Args:
        model: who is asked.
        examples: validation images with their true masks.
        images: embeddings, shared by all versions.
        masks: the true masks' files.
        rule: what several annotators' masks become.
        on_image: called after each.
    """
    found: list[GateAnswer] = []
    texts: dict[tuple[str, ...], Any] = {}
    for example in examples:
        phrases = tuple(example.masks)
        if not phrases:
            continue
        if phrases not in texts:
            texts[phrases] = model.encode_text(phrases)
        embedding = images.embedding(model, example)
        truth = example.layers(masks, rule, embedding.original_size)
        closer_look = partial(images.closer_look, model, example)
        found += _of_image(model, example, embedding, texts[phrases], truth, closer_look)
        on_image()
    return found


def _of_image(
    model: "MedSAM3",
    example: "Example",
    embedding: Any,
    text: Any,
    truth: Mapping[str, "NDArray[np.int32]"],
    closer_look: "EncodeWindow",
) -> list[GateAnswer]:
    import numpy as np

    from medsam3_model.boxes import disturbed_boxes, instance_boxes
    from medsam3_model.evaluation.metrics import dice
    from medsam3_model.prompting import SpatialPrompt, segment_prompted
    from medsam3_model.small_objects import look_closer

    def answer(phrase: str, mode: Mode, mask: "NDArray[np.bool_]") -> GateAnswer:
        score = dice(mask, truth[phrase] > 0)
        return GateAnswer(f"{example.task_id}/{example.key}", example.group, phrase, mode, score)

    by_text = look_closer(model, embedding, text, model.detect_all(embedding, text), closer_look)
    found = [
        answer(phrase, "T", detections.concept_mask()[0])
        for phrase, detections in zip(truth, by_text, strict=True)
    ]
    height, width = embedding.original_size
    for index, (phrase, layer) in enumerate(truth.items()):
        if not layer.any():
            continue
        tight = instance_boxes(layer)
        drawn = disturbed_boxes(tight, height, width, key=f"{example.key}/{phrase}")
        prompt = SpatialPrompt(drawn, [1] * len(drawn), np.zeros((0, 2), np.float32), [])
        prompted = segment_prompted(model, embedding, text[index], prompt, closer_look)
        found.append(answer(phrase, "T+I", prompted.union()))
    return found


def _compare(pairs: Sequence[tuple[GateAnswer, GateAnswer]]) -> Comparison:
    from medsam3_model.evaluation.metrics import paired_bootstrap

    by_image: dict[str, list[tuple[GateAnswer, GateAnswer]]] = {}
    for pair in pairs:
        by_image.setdefault(pair[0].image, []).append(pair)
    new = [_mean([one.dice for one, _ in own]) for own in by_image.values()]
    old = [_mean([one.dice for _, one in own]) for own in by_image.values()]
    groups = [own[0][0].group for own in by_image.values()]
    difference = paired_bootstrap(new, old, groups)
    return Comparison(
        len(by_image), _mean(new), _mean(old), difference.mean, difference.low, difference.high
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
