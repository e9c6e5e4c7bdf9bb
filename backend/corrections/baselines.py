"""Which suggestion an annotation started from.

`parent_prediction` cannot be relied on: it is missing after a resumed draft, and names Label
Studio's id, which this backend does not keep. So the regions' ids decide; where none is left,
the newest suggestion that was there before the annotation was.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from backend.corrections.comparison import SuggestedRegion
from backend.corrections.cropped_mask import CroppedMask
from backend.corrections.submissions import AnnotationRecord, Pages, SubmittedRegion, read_regions
from backend.errors import QuarantineError
from backend.tables import Suggestion, SuggestionState


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
_OF_TASK = (
    select(
        _columns.id,
        _columns.model_version,
        _columns.result,
        _columns.interactive,
        _columns.finished_at,
    )
    .where(
        _columns.project_id == bindparam("project"),
        _columns.task_id == bindparam("task"),
        _columns.state == SuggestionState.DONE,
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
    prediction: Callable[[int], Mapping[str, Any] | None],
) -> Baseline:
    """The suggestions behind an annotation.

    Args:
        stored: see `suggestions_of`.
        record: the annotation.
        regions: its outlined regions.
        pages: of the task.
        max_pixels: see `read_regions`.
        prediction: reads a prediction from Label Studio, for those that this backend did not
            make or does not have any more.

    Returns:
        The regions of one batch suggestion, and those interactive ones that were accepted. What
        a smart tool proposed and nobody kept is a step of prompting, not a rejection.
    """
    kept = {str(entry.get("id")) for entry in record.result}
    sharing = [one for one in stored if one.ids & kept]
    interactive = [one for one in sharing if one.interactive]
    chosen = _choose([one for one in sharing if not one.interactive], kept)
    if chosen is None and record.parent_prediction is not None:
        chosen = _from_label_studio(prediction(record.parent_prediction))
    if chosen is None:
        chosen = _newest_before(stored, record)

    own = {region.id: region for region in regions}
    sizes = {one.item_index: (one.mask.height, one.mask.width) for one in regions}
    drawn = _entries_of(record, own)
    found: dict[str, SuggestedRegion] = {}
    for suggestion in [*([chosen] if chosen else []), *interactive]:
        for entry in suggestion.result:
            if suggestion.interactive and entry.get("id") not in kept:
                continue
            untouched = _untouched(entry, drawn, own)
            for region in _decoded(entry, pages, max_pixels, untouched):
                if sizes.get(region.item_index, (region.mask.height, region.mask.width)) != (
                    region.mask.height,
                    region.mask.width,
                ):
                    continue  # of another image: nothing to compare
                submitted = own.get(region.id)
                found.setdefault(
                    region.id,
                    SuggestedRegion(
                        id=region.id,
                        label=region.labels[0] if region.labels else "",
                        item_index=region.item_index,
                        mask=(
                            submitted.mask
                            if submitted and submitted.mask.same(region.mask)
                            else region.mask
                        ),
                        suggestion_id=suggestion.id,
                        model_version=suggestion.model_version,
                        interactive=suggestion.interactive,
                    ),
                )
    return Baseline(
        suggestion_id=chosen.id if chosen else None,
        model_version=chosen.model_version if chosen else _version_of(interactive),
        regions=tuple(found.values()),
    )


def _choose(batch: Sequence[StoredSuggestion], kept: set[str]) -> StoredSuggestion | None:
    """Most shared ids; the newer one when two share as many."""
    ranked = [(len(one.ids & kept), position) for position, one in enumerate(batch)]
    return batch[max(ranked)[1]] if ranked else None


def _newest_before(
    stored: Sequence[StoredSuggestion], record: AnnotationRecord
) -> StoredSuggestion | None:
    before = [
        one
        for one in stored
        if not one.interactive and one.finished_at and one.finished_at <= record.created_at
    ]
    return before[-1] if before else None


def _from_label_studio(prediction: Mapping[str, Any] | None) -> StoredSuggestion | None:
    if not prediction:
        return None
    return _of_result(None, prediction.get("model_version"), prediction.get("result"))


def _of_result(
    id_: str | None,
    model_version: object,
    result: object,
    interactive: bool = False,
    finished_at: datetime | None = None,
) -> StoredSuggestion:
    entries = (
        [one for one in result if isinstance(one, Mapping)] if isinstance(result, list) else []
    )
    ids = frozenset(str(one.get("id")) for one in entries)
    return StoredSuggestion(id_, str(model_version or ""), entries, ids, interactive, finished_at)


def _version_of(interactive: Sequence[StoredSuggestion]) -> str | None:
    return interactive[-1].model_version if interactive else None


def _entries_of(
    record: AnnotationRecord, own: Mapping[str, SubmittedRegion]
) -> dict[str, Mapping[str, Any]]:
    """What each submitted region was decoded from."""
    entries: dict[str, Mapping[str, Any]] = {}
    for entry in record.result:
        id_ = str(entry.get("id"))
        if id_ in own and entry.get("type") == own[id_].shape:
            entries.setdefault(id_, entry)
    return entries


def _untouched(
    entry: Mapping[str, Any],
    drawn: Mapping[str, Mapping[str, Any]],
    own: Mapping[str, SubmittedRegion],
) -> dict[str, CroppedMask]:
    """The mask of a suggested entry that was submitted as it was: it is decoded already."""
    id_ = str(entry.get("id"))
    submitted = drawn.get(id_)
    if submitted is None or any(entry.get(key) != submitted.get(key) for key in _OUTLINE_KEYS):
        return {}
    return {id_: own[id_].mask}


def _decoded(
    entry: Mapping[str, Any], pages: Pages, max_pixels: float, known: Mapping[str, CroppedMask]
) -> list[SubmittedRegion]:
    """The region of one entry; none when it is no outline, or made for another config or image."""
    try:
        return read_regions([entry], pages, max_pixels=max_pixels, decoded=known)
    except QuarantineError:
        return []
