"""Lives of tracked objects: which detection is whose, who is new, and who is dropped again.

SAM 3 looks for a concept on every frame and follows what it found before. The rules by which the
two are brought together are those of facebook's `Sam3VideoBase`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medsam3_model.video.masks import mask_ious

# A detection this sure, on an object that it covers this well, may mend what is known of it.
_SURE_SCORE, _SURE_IOU = 0.8, 0.8


@dataclass(frozen=True)
class ConceptSettings:
    """Thresholds of a concept's tracking, facebook's for SAM 3.

    Attributes:
        detection_score: detections below it are not looked at.
        detection_overlap: of two detections with a mask IoU above it the worse one goes.
        new_score: what nobody tracks yet becomes an object from this score on.
        match_overlap: from this mask IoU on a detection is of a tracked object.
        unmatched_overlap: below this mask IoU with all detections an object counts as unmatched.
        hold_back: frames that an answer waits, in which objects may prove wrong.
        most_unmatched: an object unmatched on so many of its first `hold_back` frames is dropped.
        most_doubled: likewise where it shares its detections with an older object.
        mend_every: on every so-many-th frame sure detections mend what is known; 0 for never.
        occlusion_overlap: of two objects with a mask IoU from this on the one that was hidden
            last is hidden.
        speck_pixels: holes and islands up to so many pixels of the model's mask are removed.
        memory_selection: frames on which objects are hardly seen are not remembered.
    """

    detection_score: float = 0.5
    detection_overlap: float = 0.1
    new_score: float = 0.7
    match_overlap: float = 0.1
    unmatched_overlap: float = 0.5
    hold_back: int = 15
    most_unmatched: int = 8
    most_doubled: int = 8
    mend_every: int = 16
    occlusion_overlap: float = 0.7
    speck_pixels: int = 16
    memory_selection: bool = True


@dataclass(frozen=True)
class Matches:
    """Detections of a frame beside the tracked objects.

    Attributes:
        new: detections of what nobody tracks.
        unmatched: objects with a mask that no detection agrees with.
        objects: for each detection the objects that it is of.
        sure: for objects that a sure detection covers, that detection.
    """

    new: list[int]
    unmatched: list[int] = field(default_factory=list)
    objects: dict[int, list[int]] = field(default_factory=dict)
    sure: dict[int, int] = field(default_factory=dict)


def match(
    detected: Tensor,
    scores: Tensor,
    tracked: Tensor,
    object_ids: Sequence[int],
    settings: ConceptSettings,
) -> Matches:
    """Bring detections and tracked objects together.

    Args:
        detected: (N, h, w) logits, with their scores (N,).
        scores: 0 to 1.
        tracked: (M, h, w) logits of the objects.
        object_ids: M of them.
        settings: thresholds.
    """
    if not len(tracked):
        return Matches(new=list(range(len(detected))))
    there = (tracked > 0).flatten(1).any(1)
    ious = mask_ious(detected > 0, tracked > 0)
    matched = (ious >= settings.unmatched_overlap).any(0)
    own = ious >= settings.match_overlap
    new = (scores >= settings.new_score) & ~own.any(1)
    sure = {}
    for index in range(len(detected)):
        overlap, best = ious[index].max(0)
        if scores[index] >= _SURE_SCORE and not new[index] and overlap >= _SURE_IOU:
            sure[object_ids[int(best)]] = index
    return Matches(
        new=new.nonzero()[:, 0].tolist(),
        unmatched=[object_ids[at] for at in (there & ~matched).nonzero()[:, 0].tolist()],
        objects={
            index: [object_ids[at] for at in own[index].nonzero()[:, 0].tolist()]
            for index in range(len(detected))
        },
        sure=sure,
    )


class Lives:
    """What is remembered of the objects between frames, beside what they look like.

    Attributes:
        dropped: objects that proved wrong.
    """

    def __init__(self, settings: ConceptSettings) -> None:
        self.dropped: set[int] = set()
        self._settings = settings
        self._count = 0
        self._first: dict[int, int] = {}
        self._unmatched: defaultdict[int, int] = defaultdict(int)
        self._doubled: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._hidden: dict[int, int] = {}

    def born(self, frame: int, count: int) -> list[int]:
        """Ids of new objects."""
        ids = list(range(self._count, self._count + count))
        self._count += count
        self._first |= dict.fromkeys(ids, frame)
        return ids

    def judge(self, frame: int, matches: Matches) -> set[int]:
        """The objects that prove wrong on this frame."""
        settings = self._settings
        for object_id in matches.unmatched:
            self._unmatched[object_id] += 1
        for objects in matches.objects.values():
            if len(objects) > 1:
                oldest = min(objects, key=self._first.__getitem__)
                for object_id in objects:
                    if object_id != oldest:
                        self._doubled[oldest, object_id] += 1
        suspects = [
            object_id
            for object_id, count in self._unmatched.items()
            if count >= settings.most_unmatched
        ] + [
            object_id
            for (_, object_id), count in self._doubled.items()
            if count >= settings.most_doubled
        ]
        wrong = {
            object_id
            for object_id in suspects
            if self._first[object_id] > frame - settings.hold_back
        } - self.dropped
        self.dropped |= wrong
        return wrong

    def hidden(
        self, frame: int, masks: Tensor, object_ids: Sequence[int], wrong: Collection[int]
    ) -> Tensor:
        """Which of the objects are hidden by others, bool (M,), of their masks bool (M, h, w).

        Of two in one place the one that was away last is the wrong one.
        """
        never, always = -1, 2**31
        last = torch.tensor(
            [self._hidden.get(key, always if key in wrong else never) for key in object_ids]
        )
        overlapping = mask_ious(masks, masks).cpu() >= self._settings.occlusion_overlap
        overlapping.fill_diagonal_(False)
        # By the rows: hidden by a column that was away before it, though not never.
        behind = overlapping & (last[:, None] > last[None, :]) & (last[None, :] > never)
        hidden = behind.any(1).to(masks.device)
        away = hidden | ~masks.flatten(1).any(1)
        for index, object_id in enumerate(object_ids):
            self._hidden[object_id] = frame if away[index] else int(last[index])
        for object_id in wrong:
            self._hidden.pop(object_id, None)
        return hidden
