"""Baselines: the suggestions that annotations started from.

`parent_prediction` is not reliable: it is missing after a resumed draft, and names Label Studio's
id, which this backend does not keep. So the regions' ids decide; where none is left, the newest
suggestion that was there before the annotation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from backend.corrections.comparison import SuggestedRegion
from backend.corrections.cropped_mask import CroppedMask
from backend.corrections.submissions import (
    MAX_UNPACKED_BYTES,
    AnnotationRecord,
    Pages,
    SubmittedRegion,
    read_regions,
)
from backend.errors import QuarantineError, Trouble
from backend.tables import Delivery, Suggestion, SuggestionState


@dataclass(frozen=True, eq=False)
class Baseline:
    """Suggested regions to compare with; `suggestion_id` and `model_version` of the batch one."""

    suggestion_id: str | None
    model_version: str | None
    regions: tuple[SuggestedRegion, ...]


@dataclass(frozen=True, eq=False)
class StoredSuggestion:
    """A finished suggestion as it was sent; `ids` are those of its regions.

    One from Label Studio alone has neither `id` nor `finished_at`.
    """

    id: str | None
    model_version: str
    result: Sequence[Mapping[str, Any]]
    ids: frozenset[str]
    interactive: bool = False
    finished_at: datetime | None = None


# What a region's mask follows from.
_OUTLINE_KEYS = ("type", "original_width", "original_height", "value")
_columns = Suggestion.__table__.c
_NEEDED = ("id", "model_version", "result", "interactive", "finished_at")
_OF_TASK = (
    select(*(_columns[name] for name in _NEEDED))
    .where(
        _columns.project_id == bindparam("project"),
        _columns.task_id == bindparam("task"),
        _columns.state == SuggestionState.DONE,
        # Nobody was shown it in Label Studio.
        _columns.delivery != Delivery.PREVIEW,
    )
    .order_by(_columns.finished_at, _columns.id)
)


def suggestions_of(session: Session, project_id: int, task_id: int) -> list[StoredSuggestion]:
    """The finished suggestions for a task, oldest first."""
    return [
        _of_result(row.id, row.model_version, row.result, row.interactive, row.finished_at)
        for row in session.execute(_OF_TASK, {"project": project_id, "task": task_id})
    ]


def find_baseline(
    stored: Sequence[StoredSuggestion],
    record: AnnotationRecord,
    regions: Sequence[SubmittedRegion],
    pages: Pages,
    *,
    max_pixels: float,
    image_sizes: Mapping[int, tuple[int, int]],
    prediction: Callable[[int], Mapping[str, Any] | None],
) -> Baseline:
    """The suggestions behind an annotation.

    Args:
        stored: see `suggestions_of`.
        record: the annotation.
        regions: its outlined regions.
        pages: of the task.
        max_pixels, image_sizes: see `read_regions`.
        prediction: reads a prediction from Label Studio, for those that this backend did not
            make or does not have any more.

    Returns:
        The regions of one batch suggestion, and those interactive ones that were accepted. What
        a smart tool proposed and nobody kept is a step of prompting, not a rejection.
    """
    kept = {str(entry.get("id")) for entry in record.result}
    interactive = [
        suggestion for suggestion in stored if suggestion.interactive and suggestion.ids & kept
    ]
    chosen = _choose(stored, record, kept, prediction)
    submitted = {region.id: region for region in regions}
    sizes = {**image_sizes, **{region.item_index: _size(region) for region in regions}}
    unpacked = 0
    # What each submitted region was decoded from: the first entry of its id with an outline.
    drawn = {
        str(entry.get("id")): entry
        for entry in reversed(record.result)
        if (region := submitted.get(str(entry.get("id")))) and entry.get("type") == region.shape
    }
    suggested: dict[str, SuggestedRegion] = {}
    for suggestion in [*([chosen] if chosen else []), *interactive]:
        for entry in suggestion.result:
            # Of a smart tool's proposals only those that were accepted count, see above.
            if suggestion.interactive and entry.get("id") not in kept:
                continue
            known = _untouched(entry, drawn, submitted)
            # The labels of a tool without any are in a second entry of the same id.
            told = [one for one in suggestion.result if one.get("type") == "labels"]
            told = [one for one in told if one is not entry and one.get("id") == entry.get("id")]
            for region in _decoded([entry, *told], pages, max_pixels, sizes, known):
                unpacked += 0 if region.id in known else region.mask.pixels.nbytes
                if unpacked > MAX_UNPACKED_BYTES:
                    raise QuarantineError(
                        Trouble.CONTENT,
                        "the masks of the prediction behind the annotation take more than "
                        f"{MAX_UNPACKED_BYTES >> 20} MB: predict the task again",
                    )
                # One object for equal masks: comparing and storing it then costs nothing.
                same = submitted.get(region.id)
                mask = same.mask if same and same.mask.same(region.mask) else region.mask
                suggested.setdefault(
                    region.id,
                    SuggestedRegion(
                        id=region.id,
                        label=region.labels[0] if region.labels else "",
                        item_index=region.item_index,
                        mask=mask,
                        suggestion_id=suggestion.id,
                        model_version=suggestion.model_version,
                        interactive=suggestion.interactive,
                    ),
                )
    leading = chosen or (interactive[-1] if interactive else None)
    return Baseline(
        suggestion_id=chosen.id if chosen else None,
        model_version=leading.model_version if leading else None,
        regions=tuple(suggested.values()),
    )


def _choose(
    stored: Sequence[StoredSuggestion],
    record: AnnotationRecord,
    kept: set[str],
    prediction: Callable[[int], Mapping[str, Any] | None],
) -> StoredSuggestion | None:
    """The batch suggestion that the annotator was shown."""
    batch = [suggestion for suggestion in stored if not suggestion.interactive]
    sharing = [suggestion for suggestion in batch if suggestion.ids & kept]
    if sharing:
        # Most shared ids; the newer one when two share as many.
        return max(reversed(sharing), key=lambda suggestion: len(suggestion.ids & kept))
    if record.parent_prediction is not None:
        sent = prediction(record.parent_prediction)
        if sent:
            return _of_result(None, sent.get("model_version"), sent.get("result"))
    # No region was kept, so no id tells. The annotator saw the newest one that was there.
    before = [
        suggestion
        for suggestion in batch
        if suggestion.finished_at and suggestion.finished_at <= record.created_at
    ]
    return before[-1] if before else None


def _size(region: SubmittedRegion) -> tuple[int, int]:
    return region.mask.height, region.mask.width


def _of_result(
    id_: str | None,
    model_version: object,
    result: object,
    interactive: bool = False,
    finished_at: datetime | None = None,
) -> StoredSuggestion:
    listed = result if isinstance(result, list) else []
    entries = [entry for entry in listed if isinstance(entry, Mapping)]
    ids = frozenset(str(entry.get("id")) for entry in entries)
    return StoredSuggestion(id_, str(model_version or ""), entries, ids, interactive, finished_at)


def _untouched(
    entry: Mapping[str, Any],
    drawn: Mapping[str, Mapping[str, Any]],
    submitted: Mapping[str, SubmittedRegion],
) -> dict[str, CroppedMask]:
    """The mask of a suggested entry that was submitted as it was: it is decoded already."""
    id_ = str(entry.get("id"))
    final = drawn.get(id_)
    if final is None or any(entry.get(key) != final.get(key) for key in _OUTLINE_KEYS):
        return {}
    return {id_: submitted[id_].mask}


def _decoded(
    entries: Sequence[Mapping[str, Any]],
    pages: Pages,
    max_pixels: float,
    image_sizes: Mapping[int, tuple[int, int]],
    known: Mapping[str, CroppedMask],
) -> list[SubmittedRegion]:
    """The region of one entry with its labels; none for a point, or another config or image."""
    try:
        return read_regions(
            entries, pages, max_pixels=max_pixels, image_sizes=image_sizes, decoded=known
        )
    except QuarantineError:
        return []
