"""Click answers: one object from clicks, a box and strokes, by SAM 3's tracker.

Every click mends the answer before it: the tracker is asked with all clicks so far and with the
logits of that answer, and of what it takes in, or away, that piece counts in which the click lies.
Those logits follow from the clicks, so a caller may keep them, under a name that says what they
answer, or lose them: then they are computed again, click by click.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage

from medsam3_model.box_answers import closer_look, in_cells
from medsam3_model.boxes import tight_box
from medsam3_model.errors import PromptError
from medsam3_model.types import Detections, EncodeWindow, ImageEmbedding, Window

if TYPE_CHECKING:
    from medsam3_model.tracker import Tracker

# More clicks on one object than anybody makes.
MOST_CLICKS = 100
# Earlier answers that are computed again where they were not kept.
_REPLAYED = 8
# Points that stand for a stroke, beside the stroke itself.
STROKE_POINTS = 4
# Logits of a stroke as a mask prompt: in the object where it was drawn, unknown elsewhere.
STROKE_LOGIT = 4.0
# What a click adds reaches no farther than this share of the image's side.
_FARTHEST = 0.15
# Who clicks on an error clicks where it is thick, so what a click changes is nowhere deeper under
# the mask's edge than so many times as deep as the click, and so many cells more.
_THICKER, _MARGIN = 1.5, 1.0
# Logits are kept within what the mask prompt takes.
_LIMIT = 32.0
# Side of the square around a small object that is looked at, as a multiple of its longer side: a
# first answer may be too small.
_ROOM = 2.0
# Clicks are answered enlarged for smaller objects than boxes are: without a box it is the image
# around an object that tells how far it reaches.
_FEW_PATCHES = 4


class KeptAnswers(Protocol):
    """Where answers may be kept between clicks; entries may vanish at any time."""

    def get(self, key: str) -> NDArray[np.float32] | None:
        """Logits (h, w) that were put under this key, or None."""

    def put(self, key: str, logits: NDArray[np.float32]) -> None:
        """Keep logits (h, w)."""


@dataclass(frozen=True, eq=False)
class ObjectPrompt:
    """What was drawn to mean one object, in pixels of the original image.

    Attributes:
        points: float (P, 2) x, y, in the order of the clicks.
        point_labels: 1 in the object, 0 outside, P of them.
        box: x0, y0, x1, y1 around it, or None.
        strokes: bool (S, H, W), each inside the object.
    """

    points: NDArray[np.float32]
    point_labels: Sequence[int]
    box: NDArray[np.float32] | None
    strokes: NDArray[np.bool_]


def answer_object(
    tracker: "Tracker",
    image: ImageEmbedding,
    prompt: ObjectPrompt,
    encode_window: EncodeWindow | None = None,
    kept: KeptAnswers | None = None,
    boxed: Callable[[], NDArray[np.float32]] | None = None,
) -> Detections:
    """The object that a prompt means.

    Args:
        tracker: of the model that encoded the image.
        image: the encoded image.
        prompt: what was drawn.
        encode_window: for a closer look at a small object; without it there is none.
        kept: answers to the earlier clicks on this image by this tracker.
        boxed: gives the log-odds (H, W) of the answer to the prompt's box alone, which the clicks
            mend; called where no answer to earlier clicks was kept.

    Returns:
        At most one mask. `scores` is the IoU that the tracker predicts, `presence` the probability
        that there is an object, `semantic` the probability that a pixel belongs to it.

    Raises:
        PromptError: a click outside of the image, too many of them, or none in the object.
    """
    _check(prompt, image.original_size)
    height, width = image.original_size
    whole: Window = (0, 0, width, height)
    window = whole
    if encode_window is not None:
        window = _window(tracker, image, prompt, kept)
    if window == whole or encode_window is None:
        answer = _answer(tracker, image, prompt, kept, boxed=boxed)
        return _detections(answer, whole, image.original_size)
    x0, y0, x1, y1 = window
    part = None if boxed is None else lambda: boxed()[y0:y1, x0:x1]
    closer = _answer(tracker, encode_window(window), _moved(prompt, window), kept, window, part)
    return _detections(closer, window, image.original_size)


@dataclass(frozen=True, eq=False)
class _Answer:
    """The best mask's logits (h, w) over what was looked at, its predicted IoU, and presence."""

    logits: NDArray[np.float32]
    iou: float
    presence: float


def _answer(
    tracker: "Tracker",
    image: ImageEmbedding,
    prompt: ObjectPrompt,
    kept: KeptAnswers | None,
    window: Window | None = None,
    boxed: Callable[[], NDArray[np.float32]] | None = None,
) -> _Answer:
    """The answer to all clicks, from that to the clicks before the last, from that before ..."""
    stroke_points, mask = _of_strokes(prompt.strokes, tracker.mask_side)
    last = len(prompt.points)
    clicks = max(min(last, 1), last - _REPLAYED)
    mends = False  # Whether `mask` is the answer to the clicks before.
    if kept is not None:
        for earlier in range(last - 1, clicks - 1, -1):
            if (logits := kept.get(_key(prompt, earlier, window))) is not None:
                clicks, mask, mends = earlier + 1, logits, True
                break
    if boxed is not None and last and not mends:
        mask = in_cells(boxed(), tracker.mask_side).clip(-_LIMIT, _LIMIT)
        mends = True
    while True:
        points = np.concatenate([stroke_points, prompt.points[:clicks]])
        labels = [1] * len(stroke_points) + list(prompt.point_labels[:clicks])
        given = tracker.ask(image, points, labels, prompt.box, mask)
        # Of the masks that compete the one that the model itself trusts most.
        best = int(given.iou.argmax())
        before, mask = mask, given.logits[best].clip(-_LIMIT, _LIMIT)
        # The clicks in cells of the mask, which covers the whole image whatever its shape.
        cells = prompt.points[:clicks] * [
            tracker.mask_side / length for length in image.original_size[::-1]
        ]
        if mends and before is not None:
            mask = changed_around(before, mask, cells[-1], bool(prompt.point_labels[clicks - 1]))
        mask = heeded(mask, cells, prompt.point_labels[:clicks])
        if clicks == last:
            break
        clicks, mends = clicks + 1, True
    if kept is not None:
        kept.put(_key(prompt, last, window), mask)
    # SAM 3.1's prediction is not bounded.
    return _Answer(mask, float(given.iou[best].clip(0, 1)), given.presence)


def changed_around(
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    click: NDArray[np.floating],
    inside: bool,
) -> NDArray[np.float32]:
    """The earlier answer with that piece of what a click takes in, or away, in which it lies.

    Who clicks once more was content with the rest of the mask: what the tracker would change far
    from the click, or the other way round, is no part of what was asked for.

    Args:
        before: (h, w) logits of the earlier answer.
        after: (h, w) logits of the tracker's answer to the click.
        click: x, y in cells of the masks.
        inside: whether the click is in the object.
    """
    wrong, right = (before <= 0, after > 0) if inside else (before > 0, after <= 0)
    height, width = before.shape
    at = min(int(click[1]), height - 1), min(int(click[0]), width - 1)
    depth = ndimage.distance_transform_edt(np.pad(wrong, 1, constant_values=bool(wrong.all())))
    depth = depth[1:-1, 1:-1]
    pieces, _ = ndimage.label(wrong & right & (depth <= _THICKER * depth[at] + _MARGIN))
    piece = pieces[at]
    return np.where(pieces == piece, after, before) if piece else before.copy()


def heeded(
    logits: NDArray[np.float32], clicks: NDArray[np.floating], labels: Sequence[int]
) -> NDArray[np.float32]:
    """The mask with what clicks say and the tracker did not follow.

    Who clicks on an error clicks into its middle, so a disc around the click that reaches to the
    mask's edge is mostly wrong as well: it is taken in, or away.

    Args:
        logits: (h, w) of the tracker's mask.
        clicks: (P, 2) x, y in cells of the mask, the latest last.
        labels: 1 in the object, 0 outside, P of them.
    """
    logits = logits.copy()
    height, width = logits.shape
    row, column = np.mgrid[:height, :width] + 0.5
    for (x, y), inside in zip(clicks, labels, strict=True):
        mask = logits > 0
        at = min(int(y), height - 1), min(int(x), width - 1)
        if mask[at] != bool(inside):
            # Distance to the nearest pixel on the other side of the mask's edge.
            distance = ndimage.distance_transform_edt(~mask if inside else mask)[at]
            radius = min(float(distance), _FARTHEST * max(height, width))
            disc = np.hypot(column - x, row - y) <= radius
            logits[disc] = np.maximum(logits[disc], 1) if inside else np.minimum(logits[disc], -1)
        # At the image's own size a pixel lies between cells, of which others may be surer.
        pixel = ndimage.map_coordinates(logits, [[y - 0.5], [x - 0.5]], order=1, mode="nearest")
        if (pixel[0] > 0) != bool(inside):
            near = logits[max(at[0] - 1, 0) : at[0] + 2, max(at[1] - 1, 0) : at[1] + 2]
            surest = 3 * max(1.0, float(np.abs(near).max()))
            logits[at] = surest if inside else -surest
    return logits


def _check(prompt: ObjectPrompt, size: tuple[int, int]) -> None:
    points, labels = prompt.points, np.asarray(prompt.point_labels, int)
    if len(points) > MOST_CLICKS:
        raise PromptError(
            f"{len(points)} clicks on one object: {MOST_CLICKS} are the most; delete some, or draw "
            "a box or the mask itself"
        )
    if not labels.any() and prompt.box is None and not len(prompt.strokes):
        raise PromptError("no click is in the object: click on it first, then on what is too much")
    if prompt.strokes.shape[1:] != size:
        raise PromptError(f"a stroke must be as large as the image, {size[1]} x {size[0]} pixels")


def _key(prompt: ObjectPrompt, clicks: int, window: Window | None) -> str:
    """Names the answer to the first `clicks` clicks of a prompt in a part of the image."""
    box = b"" if prompt.box is None else np.asarray(prompt.box, np.float32).tobytes()
    parts = (
        repr(window).encode(),
        box,
        np.packbits(prompt.strokes).tobytes(),
        np.asarray(prompt.points[:clicks], np.float32).tobytes(),
        bytes(prompt.point_labels[:clicks]),
    )
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _of_strokes(
    strokes: NDArray[np.bool_], side: int
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Points spread over each stroke, and all strokes as a mask prompt (side, side) or None."""
    strokes = strokes[strokes.any((1, 2))] if len(strokes) else strokes
    if not len(strokes):
        return np.zeros((0, 2), np.float32), None
    points = [spread_points(stroke, STROKE_POINTS) for stroke in strokes]
    drawn = torch.from_numpy(strokes.any(0)).float()[None, None]
    # A thin line must not vanish between the cells.
    cells = F.adaptive_max_pool2d(drawn, side)[0, 0].numpy()
    return np.concatenate(points), (STROKE_LOGIT * cells).astype(np.float32)


def spread_points(mask: NDArray[np.bool_], count: int) -> NDArray[np.float32]:
    """(count, 2) x, y of pixels of a mask, each as far from those before it as can be.

    The first is the middle one in reading order; pixels repeat where there are fewer.
    """
    rows, columns = np.nonzero(mask)
    places = np.stack([columns, rows], 1).astype(np.float32) + 0.5
    chosen = [places[len(places) // 2]]
    distance = np.full(len(places), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, np.square(places - chosen[-1]).sum(1))
        chosen.append(places[int(distance.argmax())])
    return np.stack(chosen)


def _window(
    tracker: "Tracker", image: ImageEmbedding, prompt: ObjectPrompt, kept: KeptAnswers | None
) -> Window:
    """The part of the image to look at: a square around a small object, else all of it.

    Without a box it is the answer to the first click that decides, so that further clicks mend one
    answer and do not begin another one.
    """
    height, width = image.original_size
    whole: Window = (0, 0, width, height)
    if prompt.box is not None:
        box = np.asarray(prompt.box, np.float32)
    else:
        logits = (
            kept.get(_key(prompt, min(len(prompt.points), 1), None)) if kept is not None else None
        )
        if logits is None:
            first = replace(prompt, points=prompt.points[:1], point_labels=prompt.point_labels[:1])
            logits = _answer(tracker, image, first, kept).logits
        if not (found := logits > 0).any():
            return whole
        scale = np.array([width / found.shape[1], height / found.shape[0]] * 2)
        box = (tight_box(found) * scale).astype(np.float32)
    window = closer_look(image, box, _ROOM, _FEW_PATCHES)
    x0, y0, x1, y1 = window
    inside = (prompt.points >= [x0, y0]) & (prompt.points <= [x1, y1])
    outside = prompt.strokes.copy()
    outside[:, y0:y1, x0:x1] = False
    return window if inside.all() and not outside.any() else whole


def _moved(prompt: ObjectPrompt, window: Window) -> ObjectPrompt:
    """The prompt in pixels of a part of the image that holds all of it."""
    x0, y0, x1, y1 = window
    box = prompt.box
    if box is not None:
        box = (np.asarray(box) - [x0, y0, x0, y0]).clip(0, [x1 - x0, y1 - y0] * 2)
    points = (prompt.points - [x0, y0]).astype(np.float32)
    return ObjectPrompt(points, prompt.point_labels, box, prompt.strokes[:, y0:y1, x0:x1])


def _detections(answer: _Answer, window: Window, size: tuple[int, int]) -> Detections:
    """The answer for a part of the image as an answer for all of it."""
    x0, y0, x1, y1 = window
    logits = F.interpolate(
        torch.from_numpy(answer.logits)[None, None],
        (y1 - y0, x1 - x0),
        mode="bilinear",
        align_corners=False,
    )[0, 0]
    mask, semantic = np.zeros(size, np.bool_), np.zeros(size, np.float32)
    mask[y0:y1, x0:x1] = (logits > 0).numpy()
    semantic[y0:y1, x0:x1] = logits.sigmoid().numpy()
    found = mask.any()
    return Detections(
        masks=mask[None] if found else np.zeros((0, *size), np.bool_),
        boxes=np.array([tight_box(mask)] if found else [], np.float32).reshape(-1, 4),
        scores=np.array([answer.iou] if found else [], np.float32),
        presence=answer.presence,
        semantic=semantic,
        max_score=answer.iou,
    )
