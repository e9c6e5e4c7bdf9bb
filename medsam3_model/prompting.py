"""Prompts by boxes, clicks and strokes: one object for each box or for what was clicked on.

SAM 3 takes boxes as exemplars: it answers with everything like them, all over the image. Somebody
who draws a box in an annotation tool means the object in that box. So every box is asked for on its
own, and what the model says is weighed with what the box says (`box_answers`). Clicks and strokes,
with or without a box, are answered by SAM 3's tracker where the checkpoint holds it
(`click_answers`). An object that is small for the encoder is looked at again, enlarged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medsam3_model.box_answers import BoxAnswer, answer_in_box, closer_look, refined
from medsam3_model.boxes import tight_box
from medsam3_model.click_answers import KeptAnswers, ObjectPrompt, answer_object
from medsam3_model.errors import PromptError
from medsam3_model.postprocessing import object_logits
from medsam3_model.types import Detections, EncodeWindow, ImageEmbedding, TextEmbedding, Window

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3

# Clicked instances compete from this score on.
_LOWEST_SCORE = 0.02
_MOST_CANDIDATES = 16
# Side of the box that stands for lone points, as a share of the image's shorter side.
_POINT_BOX = 0.25
# A box's answer is never surer than this before clicks mend it.
_SURE = 1e-4


@dataclass(frozen=True, eq=False)
class SpatialPrompt:
    """Boxes and points on one image, in pixels of the original image.

    Attributes:
        boxes: float (N, 4), x0, y0, x1, y1.
        box_labels: 1 for "this", 0 for "not this", N of them.
        points: float (M, 2), x, y.
        point_labels: 1 for "in it", 0 for "not in it", M of them.
        strokes: bool (S, H, W), lines that are in the object.
    """

    boxes: NDArray[np.float32]
    box_labels: Sequence[int]
    points: NDArray[np.float32]
    point_labels: Sequence[int]
    strokes: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0, 0), np.bool_))

    @property
    def positive_boxes(self) -> NDArray[np.float32]:
        """The boxes labelled 1."""
        return self.boxes[np.asarray(self.box_labels, dtype=int) == 1]

    @property
    def negative_boxes(self) -> NDArray[np.float32]:
        """The boxes labelled 0."""
        return self.boxes[np.asarray(self.box_labels, dtype=int) == 0]


def segment_prompted(
    model: "MedSAM3",
    image: ImageEmbedding,
    text: TextEmbedding,
    prompt: SpatialPrompt,
    encode_window: EncodeWindow | None = None,
    kept: KeptAnswers | None = None,
) -> Detections:
    """The objects that a prompt means: one per positive box, one for all clicks beside them.

    Args:
        model: encoder, detector and, where the checkpoint holds it, tracker.
        image: the encoded image.
        text: one encoded phrase, what kind of object it is.
        prompt: what was drawn. Clicks in a box, and all clicks beside a single box, mend that
            box's object. SAM 3's detector takes no points: without a tracker they choose among the
            instances of the phrase, and if none contains them, a box around them asks; a stroke
            then counts as the box around it.
        encode_window: for a closer look at small objects; without it there is none.
        kept: the tracker's answers to earlier clicks on this image.

    Returns:
        One mask per object that was found. For boxes, `scores` is the mean probability in the
        mask, and `semantic` the probability that a pixel is in one of the objects. A box outside
        of the image has no object.

    Raises:
        PromptError: an empty or inverted box, a click outside of the image, clicks of which none
            is in the object, or as `MedSAM3.detect_all`.
    """
    if (prompt.positive_boxes[:, 2:] <= prompt.positive_boxes[:, :2]).any():
        raise PromptError("a box is empty: x1 and y1 must be greater than x0 and y0")
    if model.tracker is None:
        return _answer_without_tracker(model, image, text, prompt, encode_window)
    answers: list[Detections] = []
    alone: list[int] = []
    for number, drawn in enumerate(_objects_meant(prompt, image.original_size)):
        if len(drawn.points) == 0 and len(drawn.strokes) == 0:
            alone.append(number)
            continue
        of_box = None
        if drawn.box is not None and not len(drawn.strokes):
            of_box = cache(partial(_log_odds_of_box, model, image, text, drawn.box, encode_window))
        answer = answer_object(model.tracker, image, drawn, encode_window, kept, of_box)
        answers.append(replace(answer, phrase=text.phrases[0]))
    if alone or not answers:
        boxes = np.vstack([prompt.positive_boxes[alone], prompt.negative_boxes])
        labels = [1] * len(alone) + [0] * len(prompt.negative_boxes)
        boxed = SpatialPrompt(boxes, labels, np.zeros((0, 2), np.float32), [])
        answers.insert(0, _answer_boxes(model, image, text, boxed, encode_window))
    return _together(answers)


def _objects_meant(prompt: SpatialPrompt, size: tuple[int, int]) -> list[ObjectPrompt]:
    """One object per positive box, with the clicks that belong to it, and one for the other clicks.

    A click belongs to the boxes that it is in; beside a single box all clicks are that box's.
    """
    labels = np.asarray(prompt.point_labels, int)
    boxes = prompt.positive_boxes
    low = (prompt.points[:, None] >= boxes[None, :, :2]).all(2)
    high = (prompt.points[:, None] <= boxes[None, :, 2:]).all(2)
    within = np.asarray((low & high) | (len(boxes) == 1))  # (M, N)
    strokes = prompt.strokes if len(prompt.strokes) else np.zeros((0, *size), np.bool_)
    none = np.zeros((0, *size), np.bool_)
    objects = [
        ObjectPrompt(
            prompt.points[mine],
            labels[mine].tolist(),
            box,
            strokes if len(boxes) == 1 else none,
        )
        for box, mine in zip(boxes, within.T, strict=True)
    ]
    left = ~within.any(1)
    strokes_left = none if len(boxes) == 1 else strokes
    if left.any() or len(strokes_left):
        objects.append(ObjectPrompt(prompt.points[left], labels[left].tolist(), None, strokes_left))
    return objects


def _together(answers: Sequence[Detections]) -> Detections:
    """Answers about several objects as one."""
    if len(answers) == 1:
        return answers[0]
    return replace(
        answers[0],
        masks=np.concatenate([answer.masks for answer in answers]),
        boxes=np.concatenate([answer.boxes for answer in answers]),
        scores=np.concatenate([answer.scores for answer in answers]),
        presence=max(answer.presence for answer in answers),
        semantic=np.maximum.reduce([answer.semantic for answer in answers]),
        max_score=max(answer.max_score for answer in answers),
    )


def _answer_without_tracker(
    model: "MedSAM3",
    image: ImageEmbedding,
    text: TextEmbedding,
    prompt: SpatialPrompt,
    encode_window: EncodeWindow | None,
) -> Detections:
    """The detector's answer to points and strokes, which it does not take as such."""
    around = [tight_box(stroke) for stroke in prompt.strokes if stroke.any()]
    if around:
        boxes = np.vstack([prompt.boxes, around]).astype(np.float32)
        labels = [*prompt.box_labels, *(1 for _ in around)]
        prompt = replace(prompt, boxes=boxes, box_labels=labels)
    if len(prompt.positive_boxes) == 0:
        answer = _answer_points(model, image, text, prompt)
        if answer is not None:
            return answer
        # No instance holds the points: a box around them asks instead.
        inside = prompt.points[np.asarray(prompt.point_labels, dtype=int) == 1]
        boxes = np.vstack([prompt.boxes, _box_around(inside, image.original_size)[None]])
        prompt = replace(prompt, boxes=boxes, box_labels=[*prompt.box_labels, 1])
    return _answer_boxes(model, image, text, prompt, encode_window)


def _answer_boxes(
    model: "MedSAM3",
    image: ImageEmbedding,
    text: TextEmbedding,
    prompt: SpatialPrompt,
    encode_window: EncodeWindow | None,
) -> Detections:
    """The answer to boxes, one object for each positive one."""
    height, width = size = image.original_size
    whole = (0, 0, width, height)
    # A mirror adds less to what a box says than its time is worth (Dice +.003, 40 of 70 ms).
    image = replace(image, mirrored=None)
    drawn = _clipped(prompt.positive_boxes, whole)
    negative = _clipped(prompt.negative_boxes, whole)
    # Boxes that are looked at in the same part of the image share one pass of the detector.
    by_window: dict[Window, list[int]] = {}
    for index, box in enumerate(drawn):
        window = closer_look(image, box) if encode_window is not None else whole
        by_window.setdefault(window, []).append(index)
    answers: dict[int, BoxAnswer] = {}
    presences: list[float] = []
    for window, indices in by_window.items():
        looked = image
        if window != whole and encode_window is not None:
            looked = replace(encode_window(window), mirrored=None)
        evidence = _evidence(model, looked, text, drawn[indices], negative, window)
        for index, (logits, presence) in zip(indices, evidence, strict=True):
            answer = answer_in_box(logits, window, drawn[index], size)
            if model.tracker is not None and model.tracker.traits.refines_boxes:
                answer = refined(answer, model.tracker, looked, window, drawn[index])
            answers[index] = answer
            presences.append(presence)
    presence = max(presences, default=0.0)
    return _objects([answers[index] for index in range(len(drawn))], presence, text, size)


def _log_odds_of_box(
    model: "MedSAM3",
    image: ImageEmbedding,
    text: TextEmbedding,
    box: NDArray[np.float32],
    encode_window: EncodeWindow | None,
) -> NDArray[np.float32]:
    """The answer to a box alone as log-odds (H, W), from which clicks go on."""
    alone = SpatialPrompt(box[None], [1], np.zeros((0, 2), np.float32), [])
    probability = _answer_boxes(model, image, text, alone, encode_window).semantic
    probability = probability.clip(_SURE, 1 - _SURE)
    return np.log(probability / (1 - probability)).astype(np.float32)


def _evidence(
    model: "MedSAM3",
    image: ImageEmbedding,
    text: TextEmbedding,
    drawn: NDArray[np.float32],
    negative: NDArray[np.float32],
    window: Window,
) -> list[tuple[NDArray[np.float32], float]]:
    """Log-odds of the object in each of the boxes, each asked for on its own, and presences."""
    corner = np.array(window[:2] * 2, np.float32)
    extent = np.array([window[2] - window[0], window[3] - window[1]] * 2, np.float32)
    others = _clipped(negative, window) - corner
    prompts = [np.vstack([box[None], others]) for box in drawn - corner]

    def read(outputs: Mapping[str, Any], row: int, index: int) -> tuple[NDArray[np.float32], float]:
        return object_logits(outputs, row, prompts[index][0] / extent)

    labels = [[1, *(0 for _ in others)] for _ in drawn]
    texts = TextEmbedding.concatenate([text] * len(drawn))
    return model.detect_all(image, texts, prompts, labels, read=read)


def _clipped(boxes: NDArray[np.float32], window: Window) -> NDArray[np.float32]:
    """Boxes cut to a window; those outside of it are left out."""
    low, high = np.array(window[:2] * 2), np.array(window[2:] * 2)
    cut = np.clip(np.asarray(boxes, np.float32).reshape(-1, 4), low, high).astype(np.float32)
    return cut[(cut[:, 2:] > cut[:, :2]).all(1)]


def _objects(
    answers: Sequence[BoxAnswer], presence: float, text: TextEmbedding, size: tuple[int, int]
) -> Detections:
    semantic = np.zeros(size, np.float32)
    scored: list[tuple[NDArray[np.bool_], float]] = []
    for answer in answers:
        x0, y0, x1, y1 = answer.window
        # A pixel belongs to one of the objects as surely as to the object that claims it most.
        part, probability = semantic[y0:y1, x0:x1], answer.probability
        np.maximum(part, probability, out=part)
        mask = np.zeros(size, np.bool_)
        mask[y0:y1, x0:x1] = inside = answer.log_odds > 0
        scored.append((mask, float(probability[inside].mean()) if inside.any() else 0.0))
    nothing = Detections(
        masks=np.zeros((0, *size), np.bool_),
        boxes=np.zeros((0, 4), np.float32),
        scores=np.zeros(0, np.float32),
        presence=presence,
        semantic=semantic,
        phrase=text.phrases[0],
        max_score=max((score for _, score in scored), default=0.0),
    )
    return _with_masks(nothing, scored)


def _answer_points(
    model: "MedSAM3", image: ImageEmbedding, text: TextEmbedding, prompt: SpatialPrompt
) -> Detections | None:
    """The object that points mean among the instances of the phrase, None where none holds them.

    Without a point in an object there is none to be found: no mask.
    """
    labelled = list(zip(prompt.points, prompt.point_labels, strict=True))
    inside = [point for point, label in labelled if label]
    outside = [point for point, label in labelled if not label]
    if not inside:
        return _with_masks(_candidates(model, image, text, None, None), [])
    candidates = _candidates(model, image, text, prompt.boxes, prompt.box_labels)
    fitting = [
        (mask, float(score))
        for mask, score in zip(candidates.masks, candidates.scores, strict=True)
        if score > model.settings.score_threshold / 2
        and all(_at(mask, point) for point in inside)
        and not any(_at(mask, point) for point in outside)
    ]
    if not fitting:
        return None
    return _with_masks(candidates, [max(fitting, key=lambda instance: instance[1])])


def _candidates(
    model: "MedSAM3",
    image: ImageEmbedding,
    text: TextEmbedding,
    boxes: NDArray[np.float32] | None,
    labels: Sequence[int] | None,
) -> Detections:
    settings = replace(
        model.settings,
        score_threshold=_LOWEST_SCORE,
        # The drawn box says that the concept is there; the presence head need not agree.
        use_presence=False,
        max_instances=_MOST_CANDIDATES,
    )
    drawn = boxes is not None and len(boxes) > 0
    return model.detect_all(
        image, text, boxes if drawn else None, labels if drawn else None, settings=settings
    )[0]


def _with_masks(
    detections: Detections, scored: Sequence[tuple[NDArray[np.bool_], float]]
) -> Detections:
    """The detections with these masks and scores as their instances, empty masks left out."""
    scored = [(mask, score) for mask, score in scored if mask.any()]
    nothing = np.zeros((0, *detections.semantic.shape), np.bool_)
    return replace(
        detections,
        masks=np.stack([mask for mask, _ in scored]) if scored else nothing,
        boxes=np.array([tight_box(mask) for mask, _ in scored], np.float32).reshape(-1, 4),
        scores=np.array([score for _, score in scored], np.float32),
    )


def _box_around(points: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """The points' hull, grown to a size at which objects are usually seen."""
    least = _POINT_BOX * min(size) / 2
    low, high = points.min(0), points.max(0)
    grow = np.maximum(least - (high - low) / 2, 0.1 * (high - low))
    height, width = size
    box = np.concatenate([low - grow, high + grow])
    return np.clip(box, 0, [width, height, width, height]).astype(np.float32)


def _at(mask: NDArray[np.bool_], point: NDArray[np.float32]) -> bool:
    height, width = mask.shape
    column, row = (int(value) for value in point)
    return bool(mask[min(max(row, 0), height - 1), min(max(column, 0), width - 1)])
