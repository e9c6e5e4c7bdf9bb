"""Propagation: objects that are prompted on some frames are followed through the others.

The order of things is that of facebook's session, which transformers' leaves out in places: all
prompts are answered before the run, a frame that is prompted for one object conditions all of them,
each of its pixels belongs to one object before it is remembered, and of many prompted frames only
the nearest are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medsam3_model.device import autocast
from medsam3_model.errors import PromptError
from medsam3_model.tracker_memory import TrackerModel
from medsam3_model.video.masks import one_object_each

Levels = Callable[[int], tuple[Sequence[Tensor], Sequence[Tensor]]]
"""Features (1, D, h, w) of a frame and their positions, both finest first."""

# Corners of a box are points with labels of their own.
_CORNERS = (2, 3)
# As many points the prompt encoder was trained on; of more, facebook takes the first and the last.
_MOST_POINTS = 16
# Logits where a frame has been prompted for other objects only, and its score for this one.
_NO_OBJECT, _NOT_ASKED = -1024.0, 10.0
# A frame is worth remembering from this product of its scores on, SAM2Long's threshold.
_WORTH = 0.01


@dataclass(frozen=True, eq=False)
class FramePrompt:
    """What shows one object on one frame, in pixels of the square input of side S.

    Attributes:
        frame, object_id: where, and which.
        points: float32 (1, 1, P, 2), x, y; none beside a mask.
        point_labels: int32 (1, 1, P): 1 in it, 0 outside, 2 and 3 a box's corners.
        mask: bool (1, 1, S, S), all of the object on this frame; None for points.
        remembered_mask: bool (1, 1, H, W), the same mask at the video's own size, of which the
            memory is made; None for the mask itself.
    """

    frame: int
    object_id: int
    points: Tensor
    point_labels: Tensor
    mask: Tensor | None = None
    remembered_mask: Tensor | None = None

    @classmethod
    def of_mask(
        cls, frame: int, object_id: int, mask: Tensor, remembered_mask: Tensor | None = None
    ) -> FramePrompt:
        """All of an object on a frame, and no points."""
        nowhere, nothing = torch.zeros(1, 1, 0, 2), torch.zeros(1, 1, 0, dtype=torch.int32)
        return cls(frame, object_id, nowhere, nothing, mask, remembered_mask)


@dataclass(frozen=True, eq=False)
class FrameAnswer:
    """The objects on one frame.

    Attributes:
        frame: which.
        logits: for each object id float32 (4 * grid, 4 * grid), over the whole frame; -1024 where
            there is no object.
        object_logits: for each object id, positive where it is there.
        iou: for each object id, how well its mask fits as the model predicts; 1 for a given mask.
    """

    frame: int
    logits: dict[int, Tensor]
    object_logits: dict[int, float]
    iou: dict[int, float]


@dataclass(frozen=True, eq=False)
class Seen:
    """One object on one frame, as later frames remember it.

    Attributes:
        logits: (1, 1, h, w), None where nobody asks for them any more.
        high: (1, 1, S, S) at the size of the input, until the frame is remembered.
        pointer: (1, D), what the object looks like.
        object_logits: (1, 1), positive where it is there.
        iou: how well the mask fits.
        features: (HW, 1, M), until no frame to come looks at them.
    """

    logits: Tensor | None
    high: Tensor | None
    pointer: Tensor
    object_logits: Tensor
    iou: float
    features: Tensor | None = None


Tracked = dict[int, list[Seen]]
"""For each frame what is seen of every object, in the order of `Propagation.objects`."""


@dataclass(frozen=True)
class Run:
    """A walk over the frames: from where, 1 forwards or -1 back, and what was seen on the way."""

    start: int
    step: int
    tracked: Tracked


def parse_prompts(
    prompts: Iterable[tuple[int, int, Mapping[str, Any]]], frames: int, side: int
) -> list[FramePrompt]:
    """Prompts as `Tracker.propagate_raw` takes them, checked.

    Raises PromptError where one is malformed, beyond the frames, or given twice.
    """
    parsed = [_parse(frame, object_id, given, side) for frame, object_id, given in prompts]
    places = [(prompt.frame, prompt.object_id) for prompt in parsed]
    if not parsed:
        raise PromptError("an object is followed from where it is shown: give at least one prompt")
    if len(set(places)) < len(places):
        raise PromptError("an object is prompted twice on a frame: put its points into one prompt")
    if outside := [frame for frame, _ in places if not 0 <= frame < frames]:
        raise PromptError(f"frame {outside[0]} is prompted, but there are frames 0 to {frames - 1}")
    return parsed


def _parse(frame: int, object_id: int, given: Mapping[str, Any], side: int) -> FramePrompt:
    what = f"the prompt of object {object_id} on frame {frame}"
    if unknown := given.keys() - {"points", "point_labels", "box", "mask"}:
        raise PromptError(f"{what} has {', '.join(sorted(unknown))}, which is no kind of prompt")
    points, labels, box, mask = (
        None if given.get(key) is None else np.asarray(given[key])
        for key in ("points", "point_labels", "box", "mask")
    )
    if mask is not None:
        if points is not None or box is not None:
            raise PromptError(f"{what} has a mask, which is the whole answer: leave out the rest")
        if mask.shape != (side, side) or not np.isin(mask, (0, 1)).all():
            raise PromptError(f"{what}: a mask must be {side} x {side} pixels of 0 and 1")
        return FramePrompt.of_mask(frame, object_id, torch.from_numpy(mask > 0)[None, None])
    where = np.zeros((0, 2)) if points is None else points.astype(np.float64).reshape(-1, 2)
    inside = np.ones(len(where)) if labels is None else labels.reshape(-1)
    if inside.shape != (len(where),) or not np.isin(inside, (0, 1)).all():
        raise PromptError(f"{what}: {len(where)} points need as many labels, 1 or 0")
    if box is not None:
        corners = box.astype(np.float64).reshape(-1, 2)
        if corners.shape != (2, 2) or not (corners[1] > corners[0]).all():
            raise PromptError(f"{what}: a box needs x0, y0, x1, y1 with x1 > x0 and y1 > y0")
        where, inside = np.vstack([corners, where]), np.concatenate([_CORNERS, inside])
    if not len(where) or not np.isfinite(where).all():
        raise PromptError(f"{what} needs finite points, a box or a mask")
    if len(where) > _MOST_POINTS:
        ends = np.r_[: _MOST_POINTS // 2, len(where) - _MOST_POINTS // 2 : len(where)]
        where, inside = where[ends], inside[ends]
    return FramePrompt(
        frame,
        object_id,
        points=torch.from_numpy(where).float()[None, None],
        point_labels=torch.from_numpy(inside.astype(np.int32))[None, None],
    )


class Propagation:
    """One run over the frames of a video or the slices of a stack, for some objects.

    Every frame is encoded once, for all objects, and its features are dropped with the next one's.
    What is kept of an answered frame is 4 * D bytes of each object, and of the frames that the next
    ones look at (the prompted ones, six before, six after the start) 2 * 64 * grid² bytes more:
    .66 MB of each object at SAM 3's full size.
    """

    def __init__(
        self,
        model: TrackerModel,
        levels: Levels,
        frames: int,
        prompts: Sequence[FramePrompt],
        *,
        dtype: torch.dtype = torch.float32,
        memory_selection: bool = False,
    ) -> None:
        """Answer the prompts, and remember their frames.

        Args:
            model: a tracker with a memory.
            levels: features of a frame, each asked for once.
            frames: how many there are.
            prompts: from `parse_prompts`.
            dtype: bfloat16 computes with autocast.
            memory_selection: frames on which an object is hardly seen are not remembered, as in
                facebook's text-prompted video; its tracker for clicks does without.
        """
        self.model = model
        self.objects = list(dict.fromkeys(prompt.object_id for prompt in prompts))
        self._levels = levels
        self._frames = frames
        self._dtype = dtype
        self._selects = memory_selection
        self._config: Any = model.config
        self._prompted: Tracked = {}
        self._known: dict[int, set[int]] = {}
        self._latest: tuple[int, tuple[Sequence[Tensor], Sequence[Tensor]]] | None = None
        self._positions: Tensor | None = None
        for frame in sorted({prompt.frame for prompt in prompts}):
            here = [prompt for prompt in prompts if prompt.frame == frame]
            self._prompted[frame] = self._answer_prompts(frame, here)
            self._known[frame] = {prompt.object_id for prompt in here}

    def run(
        self,
        start: int,
        *,
        reverse: bool = False,
        last: int | None = None,
        tracked: Tracked | None = None,
    ) -> Iterator[FrameAnswer]:
        """The frames from one to the last, or back to the first.

        A prompted frame is answered by its prompts, every other one by what is remembered.

        Args:
            start: the frame to begin with.
            reverse: towards frame 0.
            last: the frame to stop at; default the end.
            tracked: what runs before this one saw and this one remembers, empty for a new start:
                facebook goes forwards and then back from the same frame, with one such memory.

        Raises:
            PromptError: there is no such frame to start from.
        """
        if not 0 <= start < self._frames:
            raise PromptError(
                f"no frame {start} to start from: there are frames 0 to {self._frames - 1}"
            )
        run = Run(start, -1 if reverse else 1, {} if tracked is None else tracked)
        end = (0 if reverse else self._frames - 1) if last is None else last
        for frame in range(start, end + run.step, run.step):
            seen = self._prompted.get(frame)
            if seen is None:
                seen = self.see(frame, run)
                high = torch.cat([one.high for one in seen if one.high is not None])
                self.remember(frame, seen, high, run)
            yield self._answer(frame, seen)

    def _features(self, frame: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        if self._latest is None or self._latest[0] != frame:
            self._latest = None
            self._latest = frame, self._levels(frame)
        return self._latest[1]

    def prompted(self, frame: int) -> FrameAnswer:
        """The objects on a frame that was prompted."""
        return self._answer(frame, self._prompted[frame])

    def _answer(self, frame: int, seen: Sequence[Seen]) -> FrameAnswer:
        by_object = dict(zip(self.objects, seen, strict=True))
        return FrameAnswer(
            frame,
            logits={
                key: one.logits[0, 0].float()
                for key, one in by_object.items()
                if one.logits is not None
            },
            object_logits={key: float(one.object_logits) for key, one in by_object.items()},
            iou={key: one.iou for key, one in by_object.items()},
        )

    # -- prompted frames --------------------------------------------------------------------

    @torch.no_grad()
    def _answer_prompts(self, frame: int, prompts: Sequence[FramePrompt]) -> list[Seen]:
        """The objects on a frame that is prompted for some of them, remembered."""
        features, _ = self._features(frame)
        answered: dict[int, Seen] = {}
        with autocast(features[-1].device, self._dtype):
            for prompt in prompts:
                answered[prompt.object_id] = self._answer_prompt(features, prompt)
            self._cut_masks(answered, prompts)
            seen = [
                answered.get(object_id) or self._not_asked(features[-1])
                for object_id in self.objects
            ]
            side = [int(self._config.image_size)] * 2
            logits = torch.cat([one.logits for one in seen if one.logits is not None]).float()
            high = F.interpolate(logits, side, mode="bilinear", align_corners=False)
            return self._remembered(features[-1], seen, one_object_each(high), None, given=True)

    @torch.no_grad()
    def know(self, seen: list[Seen], prompt: FramePrompt) -> list[Seen]:
        """What `see` returned, with one object as a mask says."""
        features, _ = self._features(prompt.frame)
        with autocast(features[-1].device, self._dtype):
            answered = {prompt.object_id: self._answer_prompt(features, prompt)}
            self._cut_masks(answered, [prompt])
        place = self.objects.index(prompt.object_id)
        return [*seen[:place], answered[prompt.object_id], *seen[place + 1 :]]

    def drop(self, object_id: int, run: Run) -> None:
        """Follow an object no further; frames that only it is known on count as seen."""
        place = self.objects.index(object_id)
        del self.objects[place]
        for frames in (self._prompted, run.tracked):
            for frame, seen in frames.items():
                frames[frame] = [*seen[:place], *seen[place + 1 :]]
        for frame, known in self._known.items():
            known.discard(object_id)
            if not known and frame in self._prompted:
                run.tracked[frame] = self._prompted.pop(frame)

    def _answer_prompt(self, features: Sequence[Tensor], prompt: FramePrompt) -> Seen:
        """An object by its prompt alone: nothing is remembered yet."""
        *finer, coarsest = features
        if prompt.mask is not None:
            answer = self.model._use_mask_as_output(
                coarsest, list(finer), prompt.mask.to(coarsest.device).float()
            )
            return _seen(answer)
        labels = prompt.point_labels.to(coarsest.device)
        without_memory = coarsest + self.model.no_memory_embedding.view(1, -1, 1, 1)
        return self._decoded(
            [*finer, without_memory], prompt.points.to(coarsest.device), labels, prompted=True
        )

    def _cut_masks(self, answered: dict[int, Seen], prompts: Sequence[FramePrompt]) -> None:
        """Of masks that overlap on a frame, the one given last has the pixels."""
        given = {
            prompt.object_id: prompt.mask
            if prompt.remembered_mask is None
            else prompt.remembered_mask
            for prompt in prompts
            if prompt.mask is not None
        }
        for place, object_id in enumerate(given):
            mask, *later = list(given.values())[place:]
            for other in later:
                mask = mask & ~other
            logits = self.model.given_logits(mask.to(answered[object_id].pointer.device))
            answered[object_id] = replace(answered[object_id], logits=logits)

    def _not_asked(self, coarsest: Tensor) -> Seen:
        """An object on a frame that is prompted for others: facebook takes it as not there."""
        size = list(self._config_mask_size())
        return Seen(
            logits=coarsest.new_full((1, 1, *size), _NO_OBJECT, dtype=torch.float32),
            high=None,
            pointer=self.model.no_object_pointer.detach().reshape(1, -1),
            object_logits=coarsest.new_full((1, 1), _NOT_ASKED, dtype=torch.float32),
            iou=0.0,
        )

    def _config_mask_size(self) -> tuple[int, int]:
        encoder: Any = self.model.prompt_encoder
        height, width = encoder.mask_input_size
        return int(height), int(width)

    # -- frames in between ------------------------------------------------------------------

    @torch.no_grad()
    def see(self, frame: int, run: Run) -> list[Seen]:
        """The objects on a frame, by what is remembered of others; nothing is remembered of it."""
        features, positions = self._features(frame)
        with autocast(features[-1].device, self._dtype):
            seen = []
            for index in range(len(self.objects)):
                conditioned = self._conditioned(index, frame, run, features[-1], positions[-1])
                seen.append(self._decoded([*features[:-1], conditioned]))
            return seen

    @torch.no_grad()
    def remember(
        self,
        frame: int,
        seen: Sequence[Seen],
        masks: Tensor,
        run: Run,
        *,
        object_logits: Tensor | None = None,
        known: Collection[int] = (),
    ) -> None:
        """Remember the objects on a frame.

        Args:
            frame: which.
            seen: what `see` returned for it.
            masks: (B, 1, H, W) logits of the objects.
            run: the same as for `see`.
            object_logits: (B, 1) to be used for the memory instead of those that were seen.
            known: objects that are known on it, not only seen; it counts as prompted then.
        """
        features, _ = self._features(frame)
        with autocast(features[-1].device, self._dtype):
            seen = self._remembered(features[-1], seen, masks, object_logits, given=False)
        if known:
            self._prompted[frame], self._known[frame] = seen, {*known}
            return
        run.tracked[frame] = [replace(one, logits=None) for one in seen]
        self._forget(frame, run)

    def _conditioned(
        self, index: int, frame: int, run: Run, coarsest: Tensor, positions: Tensor
    ) -> Tensor:
        """The coarsest features (1, D, h, w) of a frame, after a look at an object's memory."""
        model, config = self.model, self._config
        assert self._positions is not None
        nearest, others = model._select_closest_cond_frames(
            frame,
            {prompted: seen[index] for prompted, seen in self._prompted.items()},
            config.max_cond_frame_num,
        )
        tracked = {place: seen[index] for place, seen in run.tracked.items()}
        earlier = self._earlier(frame, run)
        # Prompted frames are where the object is known, however far: theirs is the last place.
        memories = [(config.num_maskmem - 1, seen) for seen in nearest.values()]
        for place, previous in enumerate(earlier[: config.num_maskmem - 1]):
            if (seen := tracked.get(previous, others.get(previous))) is not None:
                memories.append((place, seen))
        places = model.memory_temporal_positional_encoding
        features = [seen.features for _, seen in memories if seen.features is not None]
        where = [
            self._positions + places[place] for place, seen in memories if seen.features is not None
        ]
        pointers = [
            ((frame - prompted) * run.step, seen.pointer)
            for prompted, seen in nearest.items()
            if (frame - prompted) * run.step >= 0
        ]
        most = min(self._frames, config.max_object_pointers_in_encoder)
        # With a selection facebook's last one has no pointer.
        count = min(most - 1, len(earlier) - 1) if self._selects else most - 1
        for distance, previous in enumerate(earlier[: max(count, 0)], 1):
            if (seen := tracked.get(previous, others.get(previous))) is not None:
                pointers.append((distance, seen.pointer))
        tokens = 0
        if pointers:
            told, told_where = model._process_object_pointers(
                [distance for distance, _ in pointers],
                [pointer for _, pointer in pointers],
                most,
                1,
                model.hidden_dim,
                coarsest.device,
            )
            features, where, tokens = [*features, told], [*where, told_where], len(told)
        conditioned = model.memory_attention(
            current_vision_features=coarsest.flatten(2).permute(2, 0, 1),
            current_vision_position_embeddings=positions.flatten(2).permute(2, 0, 1),
            memory=torch.cat([part.to(coarsest.dtype) for part in features]),
            memory_posision_embeddings=torch.cat(where),
            num_object_pointer_tokens=tokens,
        )
        return conditioned.squeeze(1).transpose(1, 2).reshape(coarsest.shape)

    def _earlier(self, frame: int, run: Run) -> list[int]:
        """The frames that may be remembered, the nearest first."""
        step = run.step
        if not self._selects:
            end = -1 if step > 0 else self._frames
            return list(range(frame - step, end, -step))
        if frame == (0 if step > 0 else self._frames - 1):
            return []
        # Facebook's range ends before frame 0.
        worth = [
            previous
            for previous in range(frame - step, 0 if step > 0 else self._frames, -step)
            if previous in run.tracked and _worth(run.tracked[previous]) > _WORTH
        ]
        most = min(self._frames, self._config.max_object_pointers_in_encoder)
        worth = worth[: max(most - 1, 1)]
        # The neighbour is always looked at; facebook puts it in front of the others.
        return worth if frame - step in worth else [frame - step, *worth]

    def _forget(self, frame: int, run: Run) -> None:
        """Drop the features that no later frame looks at, in this run or in one the other way."""
        if self._selects:
            return
        reach = self._config.num_maskmem
        for place, seen in run.tracked.items():
            is_far = min(abs(place - frame), abs(place - run.start)) >= reach
            if is_far and seen[0].features is not None:
                run.tracked[place] = [replace(one, features=None) for one in seen]

    # -- the model --------------------------------------------------------------------------

    def _decoded(
        self,
        features: list[Tensor],
        points: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        prompted: bool = False,
    ) -> Seen:
        asked: Any = None if labels is None else {"point_labels": labels}
        decode: Any = self.model._single_frame_forward
        return _seen(
            decode(
                input_points=points,
                input_labels=labels,
                image_embeddings=features,
                multimask_output=self.model._use_multimask(prompted, asked),
            )
        )

    def _remembered(
        self,
        coarsest: Tensor,
        seen: Sequence[Seen],
        high: Tensor,
        object_logits: Tensor | None,
        *,
        given: bool,
    ) -> list[Seen]:
        """The objects with the features that later frames look at, of masks (B, 1, S, S)."""
        if object_logits is None:
            object_logits = torch.cat([one.object_logits for one in seen])
        features, positions = self.model._encode_new_memory(
            coarsest.flatten(2).permute(2, 0, 1).expand(-1, len(seen), -1),
            high,
            object_logits,
            given,
        )
        self._positions = positions[:, :1]
        return [
            replace(one, high=None, features=features[:, row : row + 1].clone())
            for row, one in enumerate(seen)
        ]


def _seen(answer: Any) -> Seen:
    return Seen(
        logits=answer.pred_masks,
        high=answer.high_res_masks,
        pointer=answer.object_pointer.reshape(1, -1),
        object_logits=answer.object_score_logits.reshape(1, 1).float(),
        iou=float(answer.iou_scores.max()),
    )


def _worth(seen: Sequence[Seen]) -> float:
    """How surely the objects are seen on a frame, 0 to 1, as facebook weighs it for all of them."""
    there = [max(0.0, float(one.object_logits.sigmoid()) * 2 - 1) for one in seen]
    return float(np.mean(there) * np.mean([one.iou for one in seen]))
