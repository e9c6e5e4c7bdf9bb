"""Neighbours: an object is redrawn from the slice beside it, where no memory follows it.

The neighbour's mask is bent to the slice by the optical flow between the two pictures. What the
model sees on the slice mends it: the tracker is asked with the bent mask as its mask prompt, the
detector by the object's name. How far either may be trusted differs from object to object and from
checkpoint to checkpoint, and corrected slices tell: their masks are known, so disturbed copies of
them are mended a few times in each way, and the way that comes nearest to the truth is taken, large
slices counting more. One that does not come nearer than the disturbed copies themselves is left
out, and so is a text on a slice where it means something else; a walk from a slice on which the
text did not know the object is then believed less than one from where it did.

An object has ended where what is in its mask looks like what was around it on the corrected slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage

from medsam3_model.errors import PromptError
from medsam3_model.prompting import SpatialPrompt, segment_prompted
from medsam3_model.types import PRESENCE_THRESHOLD, ImageEmbedding, TextEmbedding
from medsam3_model.video.shapes import Field, bent, flow_between, mask_radius, signed_distance
from medsam3_model.video.slices import SURE, CorrectedSlice, Estimate, Estimates, SliceOrigin

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3

Pictures = Callable[[int], NDArray[np.uint8]]
"""The picture of a slice, uint8 (H, W) or (H, W, 3)."""

Source = Literal["tracker", "text"]

# The bent mask is unsure within this share of the object's radius on both sides of its edge.
_UNSURE = 0.15
# How much nearer to the truth than the disturbed copies a way must come to be trusted.
_LEAST_GAIN = 0.02
# Ways to weigh what the model sees against the bent mask, which counts 1.
_WAYS: tuple[Mapping[Source, float], ...] = (
    {},
    {"tracker": 0.5},
    {"tracker": 2.0},
    {"text": 0.5},
    {"text": 2.0},
    {"tracker": 1.0, "text": 1.0},
)
# Disturbed copies: size, and shift across and down in radii. About what a few slices change.
_DISTURBED = ((0.85, 0.0, 0.0), (1.15, 0.0, 0.0), (1.0, 0.15, 0.1), (1.0, -0.15, -0.1))
# Dice above which two masks are of the same object.
_SAME = 0.5
# A way is judged by where it has taken a mask after so many rounds.
_ROUNDS = 3
_KEPT_PICTURES = 3
# Brightness is compared in so many steps; less than this log-likelihood ratio tells nothing.
_STEPS, _LEAST_CONTRAST = 32, 0.3


class _Brightness:
    """What an object and its surroundings look like on a corrected slice."""

    def __init__(self, picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
        distance = signed_distance(mask)
        around = (distance < 0) & (distance > -max(3.0, mask_radius(mask)))
        steps = _steps(picture)
        self._ratios = np.log(_shares(steps[mask]) / _shares(steps[around]))
        self._own = float(self._ratios[steps[mask]].mean()) if mask.any() else 0.0

    def presence(self, picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
        """Probability that the object is in a mask: above 0.5 where it looks like the object."""
        if self._own < _LEAST_CONTRAST or not mask.any():
            return float(mask.any())
        likeness = float(self._ratios[_steps(picture)[mask]].mean()) / self._own
        return min(max((1 + likeness) / 2, 0.0), 1.0)


def _steps(picture: NDArray[np.uint8]) -> NDArray[np.intp]:
    grey = picture if picture.ndim == 2 else picture.mean(axis=2)
    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 0.8)
    return np.asarray(smooth * _STEPS / 256, np.intp).clip(0, _STEPS - 1)


def _shares(steps: NDArray[np.intp]) -> NDArray[np.float64]:
    """Shares of the steps, smoothed, and none of them 0."""
    counted = np.bincount(steps, minlength=_STEPS).astype(np.float64)
    smooth = ndimage.gaussian_filter1d(counted, 1.2) + 0.02 * max(len(steps), 1) / _STEPS + 0.05
    return np.asarray(smooth / smooth.sum())


@dataclass(frozen=True, eq=False)
class _Followed:
    """An object on the latest slice of a walk."""

    mask: NDArray[np.bool_]
    score: float


class ByNeighbour:
    """Follows objects from slice to slice by the neighbour's mask; see `stacks._Follower`."""

    origin: SliceOrigin = "neighbour"

    def __init__(
        self,
        model: MedSAM3,
        slices: Callable[[int], ImageEmbedding],
        pictures: Pictures,
        corrected: Sequence[CorrectedSlice],
        texts: Mapping[int, TextEmbedding],
    ) -> None:
        self._model = model
        self._slices = lru_cache(maxsize=_KEPT_PICTURES)(slices)
        self._pictures = lru_cache(maxsize=_KEPT_PICTURES)(pictures)
        self._texts = texts
        self._known: dict[int, Estimates] = {}
        for one in corrected:
            self._known.setdefault(one.place, {})[one.object_id] = self._first(one)
        self._ways = {
            key: self._way(key) for key in dict.fromkeys(one.object_id for one in corrected)
        }

    def corrected(self, place: int) -> Estimates:
        """The objects on a corrected slice."""
        return self._known[place]

    def follow(
        self, place: int, step: int, last: int, objects: set[int]
    ) -> Iterator[tuple[int, Estimates]]:
        """The slices after a corrected one, up to the last."""
        followed = {
            key: _Followed(known.logits > 0, 1.0) for key, known in self._known[place].items()
        }
        start = self._pictures(place)
        looks = {
            key: _Brightness(start, one.mask) for key, one in followed.items() if one.mask.any()
        }
        # Where the text saw the object, its silence means that the object has ended.
        told = {key for key, one in followed.items() if self._text_sees(place, key, one.mask)}
        for here in range(place + step, last + step, step):
            before, picture = self._pictures(here - step), self._pictures(here)
            if before.shape != picture.shape:  # another series begins: nothing is its neighbour
                return
            flow, back = flow_between(before, picture), flow_between(picture, before)
            estimates: Estimates = {}
            for key, one in list(followed.items()):
                if key not in objects or not one.mask.any():
                    del followed[key]
                    continue
                moved = bent(one.mask, flow)
                estimate = self._mended(here, key, moved, told=key in told)
                # What the flow brings back to where it was has been followed well.
                kept = one.score * mask_agreement(bent(moved, back), one.mask)
                mask = estimate.logits > 0
                there = min(estimate.presence, looks[key].presence(picture, mask))
                estimates[key] = Estimate(
                    estimate.size, estimate.logits, there, kept * there * estimate.score
                )
                followed[key] = _Followed(mask, kept)
            if not estimates:
                return
            yield here, estimates

    def _mended(self, place: int, key: int, mask: NDArray[np.bool_], *, told: bool) -> Estimate:
        """The object by its bent mask and by what the model sees on the slice.

        A text that sees something else is heeded only where it was `told` on the corrected slice.
        """
        way = self._ways[key]
        seen = {source: self._seen(place, key, mask, source) for source in way}
        believed = 1.0
        if not told and "text" in seen and not _means(seen["text"].logits, mask):
            text = seen.pop("text")
            if text.presence >= PRESENCE_THRESHOLD:
                # Another side of the stack, where the text is told, knows better than this one.
                believed = mask_agreement(text.logits > 0, mask)
        logits = _weighed(mask, way, {source: one.logits for source, one in seen.items()})
        tracker = seen.get("tracker")
        if tracker is None:
            return Estimate(mask.shape, logits, 1.0, believed)
        return Estimate(mask.shape, logits, tracker.presence, believed * tracker.score)

    def _seen(self, place: int, key: int, mask: NDArray[np.bool_], source: Source) -> Estimate:
        image = self._slices(place)
        if source == "text":
            return self._by_text(place, key)
        tracker = self._model.tracker
        assert tracker is not None
        side = tracker.mask_side
        prompt = _resized(mask_prior(mask), (side, side))
        answer = tracker.ask(image, mask=prompt)
        best = int(answer.iou.argmax())
        logits = _resized(answer.logits[best].clip(-SURE, SURE), mask.shape)
        return Estimate(mask.shape, logits, answer.presence, float(answer.iou[best].clip(0, 1)))

    def _text_sees(self, place: int, key: int, mask: NDArray[np.bool_]) -> bool:
        return "text" in self._ways[key] and _means(self._by_text(place, key).logits, mask)

    def _by_text(self, place: int, key: int) -> Estimate:
        found = self._model.detect_all(self._slices(place), self._texts[key])[0]
        inside = found.semantic.clip(1e-4, 1 - 1e-4).astype(np.float64)
        logits = np.log(inside / (1 - inside)).astype(np.float32)
        if len(found):
            sure = np.abs(logits)
            logits = np.where(found.union(), sure, -sure)
        size = (logits.shape[0], logits.shape[1])
        return Estimate(size, logits, found.presence, found.max_score)

    def _way(self, key: int) -> Mapping[Source, float]:
        """How an object is mended best, as its corrected slices tell; each counts by its area.

        What lies at the small end of an object says little of how the rest of it is to be drawn.
        """
        known = [
            (place, estimates[key].logits > 0)
            for place, estimates in self._known.items()
            if key in estimates and (estimates[key].logits > 0).any()
        ]
        usable = {
            "tracker": self._model.tracker is not None,
            "text": key in self._texts,
        }
        ways = [way for way in _WAYS if all(usable[source] for source in way)]
        if not known:
            return {}
        gained = np.zeros(len(ways))
        area = sum(int(truth.sum()) for _, truth in known)
        for place, truth in known:
            share = float(truth.sum()) / area / len(_DISTURBED)
            texts = self._by_text(place, key).logits if usable["text"] else None
            for copy in _disturbed(truth):
                plain = mask_agreement(copy, truth)
                for index, way in enumerate(ways):
                    settled = self._settled(place, key, copy, way, texts)
                    gained[index] += share * (mask_agreement(settled, truth) - plain)
        best = int(gained.argmax())
        return ways[best] if gained[best] > _LEAST_GAIN else {}

    def _settled(
        self,
        place: int,
        key: int,
        mask: NDArray[np.bool_],
        way: Mapping[Source, float],
        texts: Field | None,
    ) -> NDArray[np.bool_]:
        """A mask after some rounds of mending on one slice: a walk mends again on each slice."""
        for _ in range(_ROUNDS if way else 0):
            if not mask.any():
                break
            seen: dict[Source, Field] = {}
            if texts is not None and _means(texts, mask):
                seen["text"] = texts
            if "tracker" in way:
                seen["tracker"] = self._seen(place, key, mask, "tracker").logits
            mask = _weighed(mask, way, seen) > 0
        return mask

    def _first(self, one: CorrectedSlice) -> Estimate:
        """A corrected slice: its mask, or what its clicks and box mean."""
        if one.mask is not None:
            picture = self._pictures(one.place)
            if one.mask.shape != picture.shape[:2] or one.mask.dtype != np.bool_:
                height, width = picture.shape[:2]
                raise PromptError(
                    f"a corrected slice's mask must be {height} x {width} of true or false"
                )
            sure = np.where(one.mask, SURE, -SURE).astype(np.float32)
            return Estimate(one.mask.shape, sure, 1.0, 1.0)
        image = self._slices(one.place)
        if self._model.tracker is None and one.object_id not in self._texts:
            raise PromptError(
                f"this checkpoint has no tracker, so object {one.object_id} is looked for by what "
                "it is: give its text, or its mask"
            )
        text = self._texts.get(one.object_id) or self._model.encode_text(["object"])
        points = np.asarray([] if one.points is None else one.points, np.float32).reshape(-1, 2)
        labels = [1] * len(points) if one.point_labels is None else list(one.point_labels)
        boxes = [] if one.box is None else [np.asarray(one.box, np.float32).reshape(4)]
        prompt = SpatialPrompt(
            np.asarray(boxes, np.float32).reshape(-1, 4), [1] * len(boxes), points, labels
        )
        found = segment_prompted(self._model, image, text, prompt)
        mask = found.union() if len(found) else np.zeros(image.original_size, np.bool_)
        sure = np.where(mask, SURE, -SURE).astype(np.float32)
        score = float(found.scores[0]) if len(found) else 0.0
        return Estimate(image.original_size, sure, found.presence, score)


def mask_prior(mask: NDArray[np.bool_]) -> Field:
    """Log-odds of a mask that may be off by a little: unsure at its edge, sure farther away."""
    width = _UNSURE * mask_radius(mask) + 0.5
    return np.asarray((signed_distance(mask) / width).clip(-SURE, SURE), np.float32)


def _weighed(
    mask: NDArray[np.bool_], way: Mapping[Source, float], seen: Mapping[Source, Field]
) -> Field:
    """A bent mask and what was seen of it, as log-odds; a way may name more than was seen."""
    logits, total = mask_prior(mask).astype(np.float64), 1.0
    for source, weight in way.items():
        if source in seen:
            logits += weight * seen[source].clip(-SURE, SURE)
            total += weight
    return np.asarray(logits / total, np.float32)


def _means(logits: Field, mask: NDArray[np.bool_]) -> bool:
    """Whether what was seen is the object of a mask, and no other or a mere part of it."""
    return mask_agreement(logits > 0, mask) > _SAME


def _disturbed(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    """Copies of a mask as they come from a neighbouring slice: of another size, or shifted."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    x, y, radius = columns.mean(), rows.mean(), mask_radius(mask)
    distance = signed_distance(mask)
    for size, across, down in _DISTURBED:
        moved = np.array(
            [
                [size, 0, x * (1 - size) + across * radius],
                [0, size, y * (1 - size) + down * radius],
            ]
        )
        yield np.asarray(
            cv2.warpAffine(distance, moved, (width, height), borderMode=cv2.BORDER_REPLICATE) > 0
        )


def mask_agreement(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Dice; 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def _resized(logits: NDArray[np.floating], size: tuple[int, int]) -> Field:
    tensor = torch.from_numpy(np.ascontiguousarray(logits, np.float32))[None, None]
    smaller = size[0] < logits.shape[0] or size[1] < logits.shape[1]
    if smaller and size[0] == size[1]:  # to the mask prompt's cells: each is the mean of its pixels
        return np.asarray(F.interpolate(tensor, size, mode="area")[0, 0].numpy())
    resized = F.interpolate(tensor, size, mode="bilinear", align_corners=False)
    return np.asarray(resized[0, 0].numpy())
