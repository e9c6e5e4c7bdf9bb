"""Reading the corrections: what every annotation says now, and what a model may be trained on.

`latest_revisions` is where training and export begin; `current_state` is all that the store says
about the present, in a form that does not depend on how it came about.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.corrections.groups import normal_form
from backend.corrections.tables import (
    Annotation,
    AnnotationState,
    ConceptMask,
    RegionMask,
    RegionOutcome,
    Revision,
    is_correction,
)
from backend.database import chunked
from backend.tables import Base

RowT = TypeVar("RowT", RegionMask, ConceptMask, RegionOutcome)
PartT = TypeVar("PartT", "CorrectedConcept", "CorrectedInstance")


@dataclass(frozen=True)
class PageImage:
    """One page's image: its address in the task, SHA-256 of the file, upright size if known."""

    reference: str
    hash: str
    width: int | None
    height: int | None


@dataclass(frozen=True, order=True)
class CorrectedConcept:
    """A label's mask on one page; `mask_hash` names it in the `MaskStore`."""

    item_index: int
    label: str
    height: int
    width: int
    area: int
    mask_hash: str


@dataclass(frozen=True, order=True)
class CorrectedInstance:
    """One region of a label; `shape` is its Label Studio type."""

    item_index: int
    label: str
    region_id: str
    shape: str
    area: int
    mask_hash: str


@dataclass(frozen=True)
class CorrectedTask:
    """What one annotator last said about one task.

    Attributes:
        group: what must stay on one side of a split.
        images: one per page; a page without concepts holds none of the labels.
        concepts: union per page and label.
        instances: regions, one per object.
    """

    revision_id: int
    annotation_id: int
    project_id: int
    task_id: int
    annotator: int | None
    updated_at: datetime
    content_hash: str
    ground_truth: bool
    lead_time: float | None
    model_version: str | None
    group: str
    images: tuple[PageImage, ...]
    concepts: tuple[CorrectedConcept, ...]
    instances: tuple[CorrectedInstance, ...]


def latest_revisions(
    session: Session,
    project_id: int,
    *,
    per_annotator: bool = False,
) -> list[CorrectedTask]:
    """The valid revision that counts for each task, in the order of task and annotation.

    Args:
        session: reads.
        project_id: one project.
        per_annotator: one revision per task and annotator; else one per task, a ground truth
            before others and then the newest.

    Skipped, deleted and quarantined annotations are left out, and those made from predictions in
    bulk, at which nobody looked.
    """
    rows = session.scalars(
        select(Revision)
        .join(Annotation, Annotation.revision_id == Revision.id)
        .where(
            Annotation.project_id == project_id,
            is_correction(),
        )
    ).all()
    chosen: dict[tuple[int, int | None], Revision] = {}
    # The last one of a key stays.
    for row in sorted(rows, key=lambda row: (row.ground_truth, row.updated_at, row.annotation_id)):
        chosen[row.task_id, row.annotator if per_annotator else None] = row
    return corrected_tasks(session, chosen.values())


def corrected_tasks(session: Session, revisions: Iterable[Revision]) -> list[CorrectedTask]:
    """Revisions with their masks, in the order of task and annotation."""
    ordered = sorted(revisions, key=lambda row: (row.task_id, row.annotation_id, row.id))
    ids = [row.id for row in ordered]
    concepts = _rows_by_revision(session, ConceptMask, ids)
    regions = _rows_by_revision(session, RegionMask, ids)
    return [
        CorrectedTask(
            revision_id=row.id,
            annotation_id=row.annotation_id,
            project_id=row.project_id,
            task_id=row.task_id,
            annotator=row.annotator,
            updated_at=row.updated_at,
            content_hash=row.content_hash,
            ground_truth=row.ground_truth,
            lead_time=row.lead_time,
            model_version=row.model_version,
            # Stored by an earlier version, it may have another spelling.
            group=normal_form(row.task_group) or row.task_group,
            images=tuple(PageImage(*image) for image in row.images),
            concepts=_parts(CorrectedConcept, concepts.get(row.id, ())),
            instances=_parts(CorrectedInstance, regions.get(row.id, ())),
        )
        for row in ordered
    ]


def current_state(
    session: Session,
    project_id: int | None = None,
    *,
    state: str | None = None,
    after: int = 0,
    limit: int | None = None,
) -> Iterator[dict[str, Any]]:
    """What the store says about every annotation that Label Studio has, ordered by id.

    Two stores that saw the same annotations say the same, byte for byte, in whatever order they
    saw them: times of ingestion and numbers of rows are left out. Versions that were replaced and
    annotations that were deleted are history, not state.

    Args:
        session: reads.
        project_id: one project, or all.
        state: only "valid" or "quarantined" ones.
        after: annotation id to page on.
        limit: how many at most.
    """
    listed = (
        select(Annotation)
        .where(Annotation.state != AnnotationState.DELETED, Annotation.id > after)
        .order_by(Annotation.id)
        .limit(limit)
    )
    if project_id is not None:
        listed = listed.where(Annotation.project_id == project_id)
    if state is not None:
        listed = listed.where(Annotation.state == state)
    # Chunk by chunk, so that the masks and outcomes of all annotations are never in memory.
    for chunk in chunked(session.scalars(listed)):
        ids = [row.revision_id for row in chunk if row.revision_id is not None]
        revisions = {
            row.id: row for row in session.scalars(select(Revision).where(Revision.id.in_(ids)))
        }
        described = describe(session, revisions.values())
        for row in chunk:
            yield {
                **_as_seen(row),
                "content_hash": row.content_hash,
                "updated_at": row.updated_at.isoformat() if row.updated_at else None,
                "revision": described.get(row.revision_id or 0),
            }


def describe(session: Session, revisions: Iterable[Revision]) -> dict[int, dict[str, Any]]:
    """Revisions as JSON objects, by row id."""
    rows = list(revisions)
    ids = [row.id for row in rows]
    concepts = _rows_by_revision(session, ConceptMask, ids)
    regions = _rows_by_revision(session, RegionMask, ids)
    outcomes = _rows_by_revision(session, RegionOutcome, ids)
    return {
        row.id: {
            "updated_at": row.updated_at.isoformat(),
            "created_at": row.created_at.isoformat(),
            "content_hash": row.content_hash,
            "annotator": row.annotator,
            "lead_time": row.lead_time,
            "was_cancelled": row.was_cancelled,
            "ground_truth": row.ground_truth,
            "from_prediction": row.from_prediction,
            "suggestion": row.suggestion_id,
            "model_version": row.model_version,
            "group": row.task_group,
            "images": [
                dict(zip(("reference", "hash", "width", "height"), image, strict=True))
                for image in row.images
            ],
            "concepts": _plain(concepts.get(row.id, ()), ("item_index", "label")),
            "regions": _plain(regions.get(row.id, ()), ("region_id", "label")),
            "outcomes": _plain(outcomes.get(row.id, ()), ("ordinal",)),
        }
        for row in rows
    }


def history(session: Session, annotation_id: int) -> list[dict[str, Any]]:
    """All versions of an annotation that were seen, oldest first."""
    rows = session.scalars(
        select(Revision)
        .where(Revision.annotation_id == annotation_id)
        .order_by(Revision.updated_at, Revision.content_hash)
    ).all()
    described = describe(session, rows)
    return [described[row.id] for row in rows]


def with_history(session: Session, annotation_id: int) -> dict[str, Any] | None:
    """An annotation with all its versions as a JSON object; None where none of that id came in."""
    row = session.get(Annotation, annotation_id)
    if row is None:
        return None
    return {**_as_seen(row), "versions": history(session, annotation_id)}


def _as_seen(row: Annotation) -> dict[str, Any]:
    """What the store makes of an annotation, as JSON has it."""
    return {
        "annotation": row.id,
        "project": row.project_id,
        "task": row.task_id,
        "state": row.state,
        "trouble": row.trouble,
        "reason": row.reason,
    }


def _parts(kind: type[PartT], rows: Iterable[Base]) -> tuple[PartT, ...]:
    """Rows as `kind`, whose fields are columns of the same names; in the order of its fields."""
    names = [field.name for field in fields(kind)]
    return tuple(sorted(kind(*(getattr(row, name) for name in names)) for row in rows))


def _rows_by_revision(
    session: Session, table: type[RowT], ids: Sequence[int]
) -> dict[int, list[RowT]]:
    rows: dict[int, list[RowT]] = {}
    for chunk in chunked(ids):
        for row in session.scalars(select(table).where(table.revision_id.in_(chunk))):
            rows.setdefault(row.revision_id, []).append(row)
    return rows


def _plain(rows: Iterable[Base], order: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows' columns but for the revision they belong to."""
    plain = [
        {
            column.key: getattr(row, column.key)
            for column in row.__table__.columns
            if column.key != "revision_id"
        }
        for row in rows
    ]
    return sorted(plain, key=lambda columns: tuple(columns[name] for name in order))
