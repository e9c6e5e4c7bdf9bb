"""Which suggestion an annotation started from.

`parent_prediction` cannot be relied on: it is missing after a resumed draft, and names Label
Studio's id, which this backend does not keep. So the regions' ids decide; where none is left,
the newest suggestion that was there before the annotation was.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.corrections.comparison import SuggestedRegion
from backend.corrections.errors import QuarantineError
from backend.corrections.submissions import AnnotationRecord, Pages, Region, read_regions
from backend.tables import Suggestion, SuggestionState


@dataclass(frozen=True, eq=False)
class Baseline:
    """Suggested regions to compare with; `suggestion_id` and `model_version` of the batch one."""

    suggestion_id: str | None
    model_version: str | None
    regions: tuple[SuggestedRegion, ...]


@dataclass(frozen=True, eq=False)
class _Stored:
    id: str | None
    model_version: str
    result: Sequence[Mapping[str, Any]]
    ids: frozenset[str]


def find_baseline(
    session: Session,
    record: AnnotationRecord,
    regions: Sequence[Region],
    pages: Pages,
    *,
    max_pixels: float,
    prediction: Callable[[int], Mapping[str, Any] | None],
) -> Baseline:
    """The suggestions behind an annotation.

    Args:
        session: reads `suggestions`.
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
    batch, interactive = _stored(session, record, kept)
    chosen = _choose(batch, record, kept)
    if chosen is None and record.parent_prediction is not None:
        chosen = _from_label_studio(prediction(record.parent_prediction))
    if chosen is None:
        chosen = _newest_before(session, record)

    own = {region.id: region for region in regions}
    sizes = {one.item_index: (one.mask.height, one.mask.width) for one in regions}
    found: dict[str, SuggestedRegion] = {}
    for stored, is_interactive in [
        *([(chosen, False)] if chosen else []),
        *((one, True) for one in interactive),
    ]:
        for entry in stored.result:
            if is_interactive and entry.get("id") not in kept:
                continue
            for region in _decoded(entry, pages, max_pixels):
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
                        suggestion_id=stored.id,
                        model_version=stored.model_version,
                        interactive=is_interactive,
                    ),
                )
    return Baseline(
        suggestion_id=chosen.id if chosen else None,
        model_version=chosen.model_version if chosen else _version_of(interactive),
        regions=tuple(found.values()),
    )


def _stored(
    session: Session, record: AnnotationRecord, kept: set[str]
) -> tuple[list[_Stored], list[_Stored]]:
    """The task's suggestions that share a region id with the annotation, oldest first."""
    batch: list[_Stored] = []
    interactive: list[_Stored] = []
    for row in session.execute(
        select(Suggestion.id, Suggestion.model_version, Suggestion.result, Suggestion.interactive)
        .where(
            Suggestion.project_id == record.project,
            Suggestion.task_id == record.task,
            Suggestion.state == SuggestionState.DONE,
        )
        .order_by(Suggestion.finished_at, Suggestion.id)
    ):
        stored = _of_result(row.id, row.model_version, row.result)
        if stored.ids & kept:
            (interactive if row.interactive else batch).append(stored)
    return batch, interactive


def _choose(batch: Sequence[_Stored], record: AnnotationRecord, kept: set[str]) -> _Stored | None:
    """Most shared ids; the newer one when two share as many."""
    ranked = [(len(one.ids & kept), position) for position, one in enumerate(batch)]
    return batch[max(ranked)[1]] if ranked else None


def _newest_before(session: Session, record: AnnotationRecord) -> _Stored | None:
    row = session.execute(
        select(Suggestion.id, Suggestion.model_version, Suggestion.result)
        .where(
            Suggestion.project_id == record.project,
            Suggestion.task_id == record.task,
            Suggestion.state == SuggestionState.DONE,
            Suggestion.interactive.is_(False),
            Suggestion.finished_at <= record.created_at,
        )
        .order_by(Suggestion.finished_at.desc(), Suggestion.id.desc())
        .limit(1)
    ).first()
    return _of_result(row.id, row.model_version, row.result) if row else None


def _from_label_studio(prediction: Mapping[str, Any] | None) -> _Stored | None:
    if not prediction:
        return None
    return _of_result(None, prediction.get("model_version"), prediction.get("result"))


def _of_result(id_: str | None, model_version: object, result: object) -> _Stored:
    entries = (
        [one for one in result if isinstance(one, Mapping)] if isinstance(result, list) else []
    )
    return _Stored(
        id_, str(model_version or ""), entries, frozenset(str(one.get("id")) for one in entries)
    )


def _version_of(interactive: Sequence[_Stored]) -> str | None:
    return interactive[-1].model_version if interactive else None


def _decoded(entry: Mapping[str, Any], pages: Pages, max_pixels: float) -> list[Region]:
    """The region of one entry; none when it is no outline, or made for another config or image."""
    try:
        return read_regions([entry], pages, max_pixels=max_pixels)
    except QuarantineError:
        return []
