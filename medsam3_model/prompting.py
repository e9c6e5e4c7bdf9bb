"""One object for one drawn box or some clicked points: what an annotator means by them.

SAM 3 takes boxes as exemplars: it answers with everything like them, all over the image. Somebody
who draws a box in an annotation tool means the object in that box. So every query of the detector
competes for the box, and the best fitting one is the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsam3_model.boxes import tight_box
from medsam3_model.types import Detections, ImageEmbedding, TextEmbedding

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3

# Queries below this score are noise even for a drawn box.
_LOWEST_SCORE = 0.02
_MOST_CANDIDATES = 16
# A query whose box overlaps less with the drawn one than this is another object.
_LOWEST_IOU = 0.4
# The semantic map may reach this share of the box's size beyond the box: people draw them tight.
_MARGIN = 0.1
# Side of the box that stands for lone points, as a share of the image's shorter side.
_POINT_BOX = 0.25


@dataclass(frozen=True, eq=False)
class SpatialPrompt:
    """Boxes and points on one image, in pixels of the original image.

    Attributes:
        boxes: float (N, 4), x0, y0, x1, y1.
        box_labels: 1 for "this", 0 for "not this", N of them.
        points: float (M, 2), x, y.
        point_labels: 1 for "in it", 0 for "not in it", M of them.
    """

    boxes: NDArray[np.float32]
    box_labels: Sequence[int]
    points: NDArray[np.float32]
    point_labels: Sequence[int]

    @property
    def positive_boxes(self) -> NDArray[np.float32]:
        """The boxes labelled 1."""
        return self.boxes[np.asarray(self.box_labels, dtype=int) == 1]


def segment_prompted(
    model: "MedSAM3", image: ImageEmbedding, text: TextEmbedding, prompt: SpatialPrompt
) -> Detections:
    """The objects that boxes and points mean: one per positive box, or one for all points.

    Args:
        model: encoder and detector.
        image: the encoded image.
        text: one encoded phrase, what kind of object it is.
        prompt: what was drawn. Points without a box are answered by SAM 3's tracker where the
            checkpoint holds it. Its detector takes no points: without a tracker they choose among
            the instances of the phrase, and if none contains them, a box around them asks.

    Returns:
        As `MedSAM3.detect`, with one mask per object that was found.
    """
    if len(prompt.positive_boxes) == 0:
        return _for_points(model, image, text, prompt)
    found = _candidates(model, image, text, prompt.boxes, prompt.box_labels)
    return _chosen(found, [_best_in_box(found, box) for box in prompt.positive_boxes])


def _for_points(
    model: "MedSAM3", image: ImageEmbedding, text: TextEmbedding, prompt: SpatialPrompt
) -> Detections:
    inside = [
        point for point, label in zip(prompt.points, prompt.point_labels, strict=True) if label
    ]
    outside = [
        point for point, label in zip(prompt.points, prompt.point_labels, strict=True) if not label
    ]
    if not inside:
        return _chosen(_candidates(model, image, text, None, None), [])
    if model.tracker is not None and len(prompt.boxes) == 0:
        clicked = model.tracker.segment(image, prompt.points, prompt.point_labels)
        return replace(clicked, phrase=text.phrases[0])
    found = _candidates(model, image, text, prompt.boxes, prompt.box_labels)
    fitting = [
        index
        for index, mask in enumerate(found.masks)
        if found.scores[index] > model.settings.score_threshold / 2
        and all(_at(mask, point) for point in inside)
        and not any(_at(mask, point) for point in outside)
    ]
    if fitting:
        best = max(fitting, key=lambda index: float(found.scores[index]))
        return _chosen(found, [(found.masks[best], float(found.scores[best]))])
    box = _box_around(np.stack(inside), image.original_size)
    boxes, labels = np.vstack([prompt.boxes, box[None]]), [*prompt.box_labels, 1]
    found = _candidates(model, image, text, boxes, labels)
    return _chosen(found, [_best_in_box(found, box)])


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


def _best_in_box(found: Detections, box: NDArray[np.float32]) -> tuple[NDArray[np.bool_], float]:
    """The mask that fits a drawn box best, with its score; else the semantic map in the box."""
    if len(found):
        overlaps = _ious(found.boxes, box)
        best = int(np.argmax(overlaps * np.sqrt(found.scores)))
        if overlaps[best] >= _LOWEST_IOU:
            return found.masks[best], float(found.scores[best])
    margin = _MARGIN * np.array([box[2] - box[0], box[3] - box[1]])
    x0, y0 = np.floor(np.maximum(box[:2] - margin, 0)).astype(int)
    x1, y1 = np.ceil(box[2:] + margin).astype(int)
    mask = np.zeros(found.semantic.shape, dtype=np.bool_)
    mask[y0:y1, x0:x1] = found.semantic[y0:y1, x0:x1] > 0.5
    inside = found.semantic[mask]
    return mask, float(inside.mean()) if inside.size else 0.0


def _chosen(found: Detections, chosen: list[tuple[NDArray[np.bool_], float]]) -> Detections:
    chosen = [(mask, score) for mask, score in chosen if mask.any()]
    shape = found.semantic.shape
    return replace(
        found,
        masks=np.stack([mask for mask, _ in chosen]) if chosen else np.zeros((0, *shape), np.bool_),
        boxes=np.array([tight_box(mask) for mask, _ in chosen], np.float32).reshape(-1, 4),
        scores=np.array([score for _, score in chosen], np.float32),
    )


def _ious(boxes: NDArray[np.float32], box: NDArray[np.float32]) -> NDArray[np.float32]:
    """IoU of boxes (N, 4) with one box, float (N,)."""
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, 2:], box[2:])
    shared = np.clip(high - low, 0, None).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared
    return np.asarray(shared / np.maximum(areas, 1e-6), np.float32)


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
