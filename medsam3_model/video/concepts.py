"""Concepts through a video: everything that a phrase names, with an id that stays.

SAM 3 finds the concept on every frame with its detector, follows what it found before with its
tracker, and brings both together (`lives`). transformers' `Sam3VideoModel` does the same by a
binary that it downloads, or leaves steps out without it; and it departs from facebook's order
where objects that appear together overlap, and where a sure detection mends what is remembered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsam3_model.errors import PromptError
from medsam3_model.types import ImageEmbedding, TextEmbedding
from medsam3_model.video.lives import ConceptSettings, Lives, Matches, match
from medsam3_model.video.masks import (
    best_of_overlapping,
    shared_out,
    without_specks,
    without_swallowed,
)
from medsam3_model.video.propagation import FramePrompt, Propagation, Run, Seen

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3

# Logits of the presence of an object whose mask was settled: it has pixels, or it has none.
_THERE, _GONE = 10.0, -10.0
# A detection mends what is known of objects that the tracker sees this surely, as a logit.
_SEEN_WELL = 0.8


@dataclass(frozen=True, eq=False)
class ConceptFrame:
    """The objects of a concept on one frame.

    Attributes:
        frame: which.
        object_ids: N of them, ascending; an object keeps its id on all frames.
        masks: bool (N, H, W), without a pixel in two of them.
        scores: float32 (N,), 0 to 1, the detection by which each was found first.
    """

    frame: int
    object_ids: tuple[int, ...]
    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Detected:
    """Detections on a frame: logits (N, h, w) and scores (N,)."""

    logits: Tensor
    scores: Tensor


@dataclass(frozen=True, eq=False)
class _Answer:
    """A frame's objects before it is settled which of them were wrong."""

    frame: int
    size: tuple[int, int]
    logits: dict[int, Tensor]
    certainty: dict[int, float]


@dataclass(frozen=True, eq=False)
class _Together:
    """Objects that appeared on the same frame; they share what is remembered."""

    propagation: Propagation
    run: Run


def track_concept(
    model: MedSAM3,
    frames: Callable[[int], ImageEmbedding],
    count: int,
    text: TextEmbedding,
    settings: ConceptSettings | None = None,
) -> Iterator[ConceptFrame]:
    """Find a concept in a video and follow its objects, frame by frame, from the first on.

    Answers come `settings.hold_back` frames late: an object that proves wrong until then was never
    there. What is kept is as of `Propagation`, for all objects found so far.

    Args:
        model: with SAM 3's tracker and its memory.
        frames: the encoded frame of a number, each asked for once.
        count: how many there are.
        text: one phrase.
        settings: thresholds; default facebook's.

    Raises:
        PromptError: the checkpoint's tracker has no memory, or there is not one phrase.
    """
    if len(text) != 1:
        raise PromptError(f"one phrase is followed at a time, not {len(text)}")
    if model.tracker is None or not model.tracker.has_memory:
        raise PromptError(
            "this checkpoint has no memory of frames: take one with SAM 3's video part, such as "
            "facebook's sam3.pt"
        )
    settings = settings or ConceptSettings()
    tracking = _Tracking(model, frames, count, text, settings)
    waiting: deque[_Answer] = deque()
    for frame in range(count):
        waiting.append(tracking.answer(frame))
        if len(waiting) >= settings.hold_back and frame < count - 1:
            yield tracking.settled(waiting.popleft())
    while waiting:
        yield tracking.settled(waiting.popleft())


class _Tracking:
    """One concept's way through a video."""

    def __init__(
        self,
        model: MedSAM3,
        frames: Callable[[int], ImageEmbedding],
        count: int,
        text: TextEmbedding,
        settings: ConceptSettings,
    ) -> None:
        assert model.tracker is not None
        self._model = model
        self._tracker = model.tracker
        self._frames = frames
        self._count = count
        self._text = text
        self._settings = settings
        self._lives = Lives(settings)
        self._groups: list[_Together] = []
        self._scores: dict[int, float] = {}
        self._levels: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ())

    @torch.no_grad()
    def answer(self, frame: int) -> _Answer:
        """Go one frame on; frames are asked for in their order."""
        image = self._frames(frame)
        detected = self._detect(image)
        self._levels = self._tracker.frame_levels(image.last_hidden_state)
        seen = [group.propagation.see(frame, group.run) for group in self._groups]
        object_ids = [key for group in self._groups for key in group.propagation.objects]
        flat = [one for group in seen for one in group]
        tracked = without_specks(_stacked(flat, detected.logits), self._settings.speck_pixels)
        matches = match(detected.logits, detected.scores, tracked, object_ids, self._settings)
        new_ids = self._lives.born(frame, len(matches.new))
        wrong = self._lives.judge(frame, matches)
        known = self._mend(frame, seen, detected, matches)
        if object_ids:
            hidden = self._lives.hidden(frame, tracked > 0, object_ids, wrong)
            tracked = torch.where(hidden[:, None, None], _GONE, tracked)
            self._remember(frame, seen, tracked, known)
        if new_ids:
            self._begin(frame, new_ids, detected.logits[matches.new], image.original_size)
        self._drop(wrong)
        found = without_specks(detected.logits[matches.new], self._settings.speck_pixels)
        first_scores = dict(zip(new_ids, detected.scores[matches.new].tolist(), strict=True))
        self._scores |= first_scores
        certainty = {
            key: float(one.object_logits.sigmoid())
            for key, one in zip(object_ids, flat, strict=True)
        }
        return _Answer(
            frame,
            image.original_size,
            logits=dict(zip([*object_ids, *new_ids], [*tracked, *found], strict=True)),
            certainty=certainty | first_scores,
        )

    def settled(self, answer: _Answer) -> ConceptFrame:
        """A frame's objects but for those that proved wrong, each pixel in one of them."""
        ids = sorted(answer.logits.keys() - self._lives.dropped)
        masks = _painted([answer.logits[key] for key in ids], answer.size)
        there = masks.flatten(1).any(1)
        ids = [key for key, is_there in zip(ids, there.tolist(), strict=True) if is_there]
        certainty = torch.tensor([answer.certainty[key] for key in ids])
        return ConceptFrame(
            answer.frame,
            tuple(ids),
            shared_out(masks[there], certainty).cpu().numpy(),
            np.array([self._scores[key] for key in ids], np.float32),
        )

    def _detect(self, image: ImageEmbedding) -> _Detected:
        settings = self._settings

        def read(outputs: Mapping[str, Tensor], row: int, _: int) -> _Detected:
            presence = outputs["presence_logits"][row].float().sigmoid()
            scores = outputs["pred_logits"][row].float().sigmoid() * presence
            good = (scores > settings.detection_score).nonzero()[:, 0]
            logits = outputs["pred_masks"][row].float()[good]
            best = best_of_overlapping(logits > 0, scores[good], settings.detection_overlap)
            return _Detected(logits[best], scores[good][best])

        return self._model.detect_all(image, self._text, read=read)[0]

    def _mend(
        self, frame: int, seen: list[list[Seen]], detected: _Detected, matches: Matches
    ) -> list[set[int]]:
        """Let sure detections say what objects are; for each group those that are known now."""
        known: list[set[int]] = [set() for _ in self._groups]
        every = self._settings.mend_every
        if not every or frame % every:
            return known
        for object_id, index in matches.sure.items():
            for place, group in enumerate(self._groups):
                objects = group.propagation.objects
                if object_id not in objects:
                    continue
                if float(seen[place][objects.index(object_id)].object_logits) > _SEEN_WELL:
                    mask = self._input_masks(detected.logits[index : index + 1])
                    # Only what it looks like: the memory is made of what the tracker saw.
                    prompt = FramePrompt.of_mask(frame, object_id, mask)
                    seen[place] = group.propagation.know(seen[place], prompt)
                    known[place].add(object_id)
        return known

    def _remember(
        self, frame: int, seen: list[list[Seen]], tracked: Tensor, known: list[set[int]]
    ) -> None:
        """Remember the frame, with the objects' masks as they were settled among all of them."""
        side = 4 * self._tracker.mask_side
        high = F.interpolate(tracked[:, None], (side, side), mode="bilinear", align_corners=False)
        high = without_swallowed(high)
        logits = torch.where((high > 0).flatten(1).any(1, keepdim=True), _THERE, _GONE)
        start = 0
        for group, own, mended in zip(self._groups, seen, known, strict=True):
            rows = slice(start, start + len(own))
            start += len(own)
            group.propagation.remember(
                frame, own, high[rows], group.run, object_logits=logits[rows], known=mended
            )

    def _begin(
        self, frame: int, object_ids: Sequence[int], logits: Tensor, size: tuple[int, int]
    ) -> None:
        """Follow new objects from their masks' logits (N, h, w) on."""
        masks = self._input_masks(logits)
        # Facebook keeps a mask at the video's own size, and makes the memory of that.
        remembered = F.interpolate(
            masks.float(), size, mode="bilinear", align_corners=False, antialias=True
        )
        prompts = [
            FramePrompt.of_mask(frame, key, masks[at : at + 1], remembered[at : at + 1] > 0.5)
            for at, key in enumerate(object_ids)
        ]
        propagation = Propagation(
            self._tracker.model,
            lambda _: self._levels,
            self._count,
            prompts,
            dtype=self._tracker.dtype,
            memory_selection=self._settings.memory_selection,
        )
        self._groups.append(_Together(propagation, Run(frame, 1, {})))

    def _input_masks(self, logits: Tensor) -> Tensor:
        """Masks as prompts, bool (N, 1, 16 * grid, 16 * grid), of logits (N, h, w)."""
        side = 4 * self._tracker.mask_side
        resized = F.interpolate(logits[:, None], (side, side), mode="bilinear", align_corners=False)
        return resized > 0

    def _drop(self, wrong: set[int]) -> None:
        for group in self._groups:
            for object_id in wrong.intersection(group.propagation.objects):
                group.propagation.drop(object_id, group.run)
        self._groups = [group for group in self._groups if group.propagation.objects]


def _stacked(seen: Sequence[Seen], like: Tensor) -> Tensor:
    """Logits (M, h, w) of objects on a frame; as many as of no detection where there are none."""
    logits = [one.logits[0].float() for one in seen if one.logits is not None]
    return torch.cat(logits) if logits else like[:0]


def _painted(logits: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Masks bool (N, H, W) of logits (h, w) each."""
    if not logits:
        return torch.zeros(0, *size, dtype=torch.bool)
    stacked = torch.stack(list(logits))[:, None]
    return F.interpolate(stacked, size, mode="bilinear", align_corners=False)[:, 0] > 0
