"""Stacks: an object that was corrected on some slices is drawn on the others.

Beyond the corrected slices it is followed outwards until it ends; between two of them it is
followed from both, and what lies nearer counts more. SAM 3's tracker follows by its memory of other
slices. Where the checkpoint has none, the neighbouring slice's mask is bent to the next one and
mended (`video.neighbours`); without the slices' pictures its box asks the detector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from medsam3_model.boxes import tight_box
from medsam3_model.errors import PromptError
from medsam3_model.prompting import SpatialPrompt, segment_prompted
from medsam3_model.types import Detections, EncodeWindow, ImageEmbedding, TextEmbedding
from medsam3_model.video.neighbours import ByNeighbour, Pictures, mask_agreement, mask_prior
from medsam3_model.video.propagation import FrameAnswer
from medsam3_model.video.shapes import interpolated_at
from medsam3_model.video.slices import SURE, CorrectedSlice, Estimate, Estimates, SliceOrigin

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3
    from medsam3_model.tracker import Tracker

Slices = Callable[[int], ImageEmbedding]
"""The encoded slice at a place; asked for again where it lies between two corrected ones."""

# Slices whose features are kept for the objects that are followed side by side.
_KEPT_SLICES = 4
# What the neighbour's box is grown by on each side, as a share of that side: objects grow, too.
_GROWTH = 0.05


@dataclass(frozen=True)
class StopRule:
    """Where an object ends: SAM 3 tends to go on after it.

    Attributes:
        first, last: no slice before or after these, both included; default the stack's ends.
        least_presence: below this probability that there is an object it has ended.
        least_area: below this share of its area on the nearest corrected slice it has ended.
    """

    first: int = 0
    last: int | None = None
    least_presence: float = 0.5
    least_area: float = 0.05


@dataclass(frozen=True, eq=False)
class SliceMask:
    """One object on one slice.

    Attributes:
        place, object_id: where, and which.
        mask: bool (H, W).
        score: 0 to 1; of the tracker the probability that there is an object times the IoU that it
            predicts, of the detector the mean probability in the mask; 1 for a given mask.
        origin: who drew it.
    """

    place: int
    object_id: int
    mask: NDArray[np.bool_]
    score: float
    origin: SliceOrigin


class _Follower(Protocol):
    """Follows some objects from slice to slice."""

    origin: SliceOrigin

    def corrected(self, place: int) -> Estimates:
        """The objects on a corrected slice."""

    def follow(
        self, place: int, step: int, last: int, objects: set[int]
    ) -> Iterator[tuple[int, Estimates]]:
        """The slices after a corrected one, up to the last; without an object where it is lost.

        The caller takes out of `objects` those that it wants to know no more of.
        """


def propagate_stack(
    model: MedSAM3,
    slices: Slices,
    count: int,
    corrected: Sequence[CorrectedSlice],
    *,
    rule: StopRule | None = None,
    texts: Mapping[int, TextEmbedding] | None = None,
    pictures: Pictures | None = None,
    closer: Callable[[int], EncodeWindow] | None = None,
) -> Iterator[SliceMask]:
    """Objects on the slices of a stack, from the slices on which they were corrected.

    Slices come as they are answered: the corrected ones, those between them, then those outside,
    the nearest first. A caller that has enough stops asking. Objects that were corrected on the
    same slices are followed side by side and share those slices' features; each is followed for
    itself, so one may lie in another, as grey matter in the brain. Between two corrected slices
    log-odds of half precision wait for those from the other side: 166 KB of each object and slice
    at SAM 3's full size.

    Args:
        model: with a tracker that has a memory, or else with `pictures`, or `texts`.
        slices: of the stack.
        count: how many there are.
        corrected: at least one, each object at most once on a slice. The given masks come back
            unchanged.
        rule: where an object ends.
        texts: for each object id one phrase, what kind of thing it is; asked without a memory.
        pictures: of the slices, by which masks are bent where there is no memory.
        closer: for a slice, what encodes a part of it: a closer look at small objects where the
            detector is asked.

    Raises:
        PromptError: a correction is malformed or beyond the stack, or the tracker has no memory
            and an object has no text.
    """
    _check(corrected, count)
    rule = rule or StopRule()
    places: dict[int, list[int]] = {}
    for one in sorted(corrected, key=lambda one: one.place):
        places.setdefault(one.object_id, []).append(one.place)
    # Where an object was not corrected nothing is known of it: those with other slices go apart.
    for together in dict.fromkeys(tuple(own) for own in places.values()):
        objects = {key for key, own in places.items() if tuple(own) == together}
        mine = [one for one in corrected if one.object_id in objects]
        follower: _Follower
        if model.tracker is not None and model.tracker.has_memory:
            follower = _ByTracker(model.tracker, slices, count, mine)
        elif pictures is not None:
            follower = ByNeighbour(model, slices, pictures, mine, texts or {})
        else:
            follower = _ByDetector(model, slices, mine, texts or {}, closer)
        yield from _propagate(follower, together, mine, rule, count)


def _check(corrected: Sequence[CorrectedSlice], count: int) -> None:
    seen = {(one.place, one.object_id) for one in corrected}
    if not corrected:
        raise PromptError("an object is followed from where it is known: correct a slice first")
    if len(seen) < len(corrected):
        raise PromptError("an object is corrected twice on a slice: give the last correction only")
    if outside := [place for place, _ in seen if not 0 <= place < count]:
        raise PromptError(f"slice {outside[0]} is corrected, but there are 0 to {count - 1}")
    for one in corrected:
        if one.box is not None and np.size(one.box) != 4:
            raise PromptError(f"the box on slice {one.place} needs four numbers: x0, y0, x1, y1")
        if one.points is not None and np.size(one.points) % 2:
            raise PromptError(f"the points on slice {one.place} need two numbers each: x, y")


def _propagate(
    follower: _Follower,
    places: tuple[int, ...],
    corrected: Sequence[CorrectedSlice],
    rule: StopRule,
    count: int,
) -> Iterator[SliceMask]:
    """Some objects that were corrected on the same slices, in ascending order."""
    given = {(one.place, one.object_id): one.mask for one in corrected}
    masks: dict[int, dict[int, NDArray[np.bool_]]] = {}
    for place in places:
        masks[place] = {}
        for object_id, estimate in sorted(follower.corrected(place).items()):
            known = given[place, object_id]
            # What was given comes back as it is: the model sees it at another size.
            mask = _painted(estimate) if known is None else known
            masks[place][object_id] = mask
            score = estimate.score if known is None else 1.0
            yield SliceMask(place, object_id, mask, score, "corrected")
    first, last = max(rule.first, 0), min(count - 1 if rule.last is None else rule.last, count - 1)
    for before, after in pairwise(places):
        ends = {before: masks[before], after: masks[after]}
        for place, sides in _between(follower, before, after, set(masks[before])):
            if first <= place <= last:
                estimates = {key: both.estimate for key, both in sides.items()}
                if follower.origin == "neighbour":
                    estimates = {
                        key: _with_shape(both, place, {at: mask[key] for at, mask in ends.items()})
                        for key, both in sides.items()
                    }
                yield from _drawn(follower, place, estimates)
    outwards = [
        _outwards(follower, places[-1], 1, last, masks[places[-1]], rule),
        _outwards(follower, places[0], -1, first, masks[places[0]], rule),
    ]
    # In turns, so that the nearest slices come first.
    while outwards:
        for walk in list(outwards):
            if (drawn := next(walk, None)) is None:
                outwards.remove(walk)
            else:
                yield from drawn


def _between(
    follower: _Follower, before: int, after: int, objects: set[int]
) -> Iterator[tuple[int, dict[int, _BothSides]]]:
    """The slices between two corrected ones, drawn from both sides."""
    if after - before < 2:
        return
    waiting = {
        place: {
            key: replace(one, logits=one.logits.astype(np.float16))
            for key, one in estimates.items()
        }
        for place, estimates in follower.follow(before, 1, after - 1, objects)
    }
    for place, estimates in follower.follow(after, -1, before + 1, objects):
        weight = (after - place) / (after - before)
        ahead = waiting.pop(place, {})
        both = ahead.keys() | estimates.keys()
        yield place, {key: _mixed(ahead.get(key), estimates.get(key), weight) for key in both}
    # The way back may lose all objects before it comes here.
    for place in sorted(waiting, reverse=True):
        weight = (after - place) / (after - before)
        yield place, {key: _mixed(one, None, weight) for key, one in waiting[place].items()}


@dataclass(frozen=True, eq=False)
class _BothSides:
    """What two sides say of an object, and how far they agree: Dice of their masks."""

    estimate: Estimate
    agreement: float


def _mixed(before: Estimate | None, after: Estimate | None, nearness: float) -> _BothSides:
    """One estimate of two: each counts by its nearness (`before`'s is given) and squared score.

    Who lost the object is sure of that.
    """
    sides = [(before, nearness), (after, 1 - nearness)]
    some = next(side for side, _ in sides if side is not None)
    weights = [near * (1.0 if side is None else side.score**2) for side, near in sides]
    total = sum(weights) or 1.0
    logits, presence, score = np.zeros(some.logits.shape, np.float32), 0.0, 0.0
    for (side, _), weight in zip(sides, weights, strict=True):
        share = weight / total
        if side is None:
            logits -= share * SURE
        else:
            logits += share * side.logits.astype(np.float32).clip(-SURE, SURE)
            presence, score = presence + share * side.presence, score + share * side.score
    agreement = 0.0
    if before is not None and after is not None:
        agreement = mask_agreement(before.logits > 0, after.logits > 0)
    return _BothSides(Estimate(some.size, logits, presence, score), agreement)


def _with_shape(both: _BothSides, place: int, ends: Mapping[int, NDArray[np.bool_]]) -> Estimate:
    """An estimate between two corrected slices, weighed with the shape between theirs.

    Where the two sides agree, or one has followed the object well, the pictures have told what lies
    between, and the shape has nothing to add.
    """
    estimate = both.estimate
    if any(mask.shape != estimate.logits.shape for mask in ends.values()):
        return estimate
    shape = mask_prior(interpolated_at(ends, place))
    doubt = (1 - both.agreement) * (1 - estimate.score)
    return replace(estimate, logits=(1 - doubt) * estimate.logits + doubt * shape)


def _outwards(
    follower: _Follower,
    place: int,
    step: int,
    end: int,
    known: Mapping[int, NDArray[np.bool_]],
    rule: StopRule,
) -> Iterator[list[SliceMask]]:
    """The slices beyond the outermost corrected one, as long as one of its objects goes on."""
    areas = {key: int(mask.sum()) for key, mask in known.items() if mask.any()}
    objects = set(areas)
    if not objects or (end - place) * step <= 0:
        return
    for next_place, estimates in follower.follow(place, step, end, objects):
        drawn = [
            one
            for one in _drawn(follower, next_place, estimates)
            if estimates[one.object_id].presence > rule.least_presence
            and one.mask.sum() > rule.least_area * areas[one.object_id]
        ]
        objects.intersection_update(one.object_id for one in drawn)
        if not objects:
            return
        yield drawn


def _drawn(follower: _Follower, place: int, estimates: Estimates) -> Iterator[SliceMask]:
    for key in sorted(estimates):
        mask = _painted(estimates[key])
        if mask.any():
            yield SliceMask(place, key, mask, estimates[key].score, follower.origin)


def _painted(estimate: Estimate) -> NDArray[np.bool_]:
    logits = torch.from_numpy(estimate.logits.astype(np.float32))[None, None]
    if tuple(logits.shape[-2:]) != estimate.size:
        logits = F.interpolate(logits, estimate.size, mode="bilinear", align_corners=False)
    return np.asarray((logits[0, 0] > 0).numpy())


class _ByTracker:
    """By the memory of SAM 3's tracker."""

    origin: SliceOrigin = "tracker"

    def __init__(
        self, tracker: Tracker, slices: Slices, count: int, corrected: Sequence[CorrectedSlice]
    ) -> None:
        self._sizes: dict[int, tuple[int, int]] = {}

        @lru_cache(maxsize=_KEPT_SLICES)
        def levels(place: int) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
            image = slices(place)
            self._sizes[place] = image.original_size
            with torch.no_grad():
                return tracker.frame_levels(image.last_hidden_state)

        prompts: dict[int, list[tuple[int, int, dict[str, Any]]]] = {}
        for one in corrected:
            levels(one.place)
            square = _in_square(one, self._sizes[one.place], tracker.image_side)
            prompts.setdefault(one.object_id, []).append((one.place, one.object_id, square))
        self._propagations = {
            object_id: tracker.propagation(levels, count, own) for object_id, own in prompts.items()
        }

    def corrected(self, place: int) -> Estimates:
        return {
            object_id: self._estimate(object_id, propagation.prompted(place))
            for object_id, propagation in self._propagations.items()
        }

    def follow(
        self, place: int, step: int, last: int, objects: set[int]
    ) -> Iterator[tuple[int, Estimates]]:
        runs = {
            object_id: propagation.run(place, reverse=step < 0, last=last)
            for object_id, propagation in self._propagations.items()
        }
        # Slice by slice, so that all objects read the features of one.
        for next_place in range(place, last + step, step):
            estimates = {
                object_id: self._estimate(object_id, next(run))
                for object_id, run in runs.items()
                if object_id in objects
            }
            if next_place != place:
                yield next_place, estimates

    def _estimate(self, object_id: int, answer: FrameAnswer) -> Estimate:
        there = float(np.clip(answer.object_logits[object_id], -50, 50))
        presence = 1 / (1 + math.exp(-there))
        return Estimate(
            self._sizes[answer.frame],
            answer.logits[object_id].cpu().numpy(),
            presence,
            presence * min(max(answer.iou[object_id], 0.0), 1.0),
        )


def _in_square(one: CorrectedSlice, size: tuple[int, int], side: int) -> dict[str, Any]:
    """A correction in pixels of the model's square input."""
    height, width = size
    if one.mask is not None:
        mask = _checked_mask(one.mask, size)
        small = F.interpolate(
            torch.from_numpy(mask)[None, None].float(),
            (side, side),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )[0, 0].numpy()
        # A speck may be thinner than the square's pixels, and is there all the same.
        return {"mask": small >= min(0.5, small.max() or 1.0)}
    scale = np.array([side / width, side / height])
    prompt: dict[str, Any] = {}
    if one.points is not None:
        prompt["points"] = np.asarray(one.points, np.float64).reshape(-1, 2) * scale
        prompt["point_labels"] = one.point_labels
    if one.box is not None:
        prompt["box"] = (np.asarray(one.box, np.float64).reshape(2, 2) * scale).ravel()
    return prompt


def _checked_mask(mask: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.asarray(mask)
    if mask.shape != size or mask.dtype != np.bool_:
        raise PromptError(
            f"a corrected slice's mask must be {size[0]} x {size[1]} of true or false"
        )
    return np.asarray(mask)


class _ByDetector:
    """By the box of the neighbouring slice's mask, of which the detector makes a mask."""

    origin: SliceOrigin = "detector"

    def __init__(
        self,
        model: MedSAM3,
        slices: Slices,
        corrected: Sequence[CorrectedSlice],
        texts: Mapping[int, TextEmbedding],
        closer: Callable[[int], EncodeWindow] | None,
    ) -> None:
        self._model = model
        self._slices = slices
        self._texts = texts
        self._closer = closer
        if missing := sorted({one.object_id for one in corrected} - texts.keys()):
            raise PromptError(
                f"this checkpoint has no memory of slices, so object {missing[0]} is looked for "
                "by what it is: give its text"
            )
        self._known: dict[int, Estimates] = {}
        for one in corrected:
            self._known.setdefault(one.place, {})[one.object_id] = self._first(one)

    def corrected(self, place: int) -> Estimates:
        return self._known[place]

    def follow(
        self, place: int, step: int, last: int, objects: set[int]
    ) -> Iterator[tuple[int, Estimates]]:
        seen = self._known[place]
        for next_place in range(place + step, last + step, step):
            image = self._slices(next_place)
            found: Estimates = {}
            for key, estimate in seen.items():
                if key not in objects or (box := _box_of(estimate, image.original_size)) is None:
                    continue
                answer = self._ask(next_place, image, key, boxes=[box])
                if answer is not None:
                    found[key] = answer
            if not found:
                return
            yield next_place, found
            seen = found

    def _first(self, one: CorrectedSlice) -> Estimate:
        image = self._slices(one.place)
        if one.mask is not None:
            mask = _checked_mask(one.mask, image.original_size)
            sure = np.where(mask, SURE, -SURE).astype(np.float32)
            return Estimate(image.original_size, sure, 1.0, 1.0)
        points = np.asarray([] if one.points is None else one.points, np.float32).reshape(-1, 2)
        labels = [1] * len(points) if one.point_labels is None else list(one.point_labels)
        boxes = [] if one.box is None else [np.asarray(one.box, np.float32).reshape(4)]
        answer = self._ask(one.place, image, one.object_id, boxes, points, labels)
        nothing = np.full(image.original_size, -SURE, np.float32)
        return answer or Estimate(image.original_size, nothing, 0.0, 0.0)

    def _ask(
        self,
        place: int,
        image: ImageEmbedding,
        object_id: int,
        boxes: Sequence[NDArray[np.float32]],
        points: NDArray[np.float32] | None = None,
        labels: Sequence[int] = (),
    ) -> Estimate | None:
        prompt = SpatialPrompt(
            boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
            box_labels=[1] * len(boxes),
            points=np.zeros((0, 2), np.float32) if points is None else points,
            point_labels=labels,
        )
        window = None if self._closer is None else self._closer(place)
        found: Detections = segment_prompted(
            self._model, image, self._texts[object_id], prompt, window
        )
        if not len(found):
            return None
        inside = found.semantic.clip(1e-6, 1 - 1e-6).astype(np.float64)
        logits = np.log(inside / (1 - inside)).astype(np.float32)
        return Estimate(image.original_size, logits, found.presence, float(found.scores[0]))


def _box_of(estimate: Estimate, size: tuple[int, int]) -> NDArray[np.float32] | None:
    """The box around a mask, grown a little; None without a mask."""
    mask = _painted(estimate)
    if not mask.any() or mask.shape != size:
        return None
    box = np.asarray(tight_box(mask), np.float32)
    grown = _GROWTH * np.tile(box[2:] - box[:2], 2)
    height, width = size
    limits = np.array([width, height] * 2)
    return np.clip(box + grown * [-1, -1, 1, 1], 0, limits).astype(np.float32)
