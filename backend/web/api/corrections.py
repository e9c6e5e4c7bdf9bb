"""`GET /api/v1/corrections...`: what annotators submitted, for programs."""

from datetime import datetime
from typing import Any

from flask import Blueprint, abort
from sqlalchemy import select

from backend.corrections.revisions import (
    CorrectedConcept,
    PageImage,
    current_state,
    with_history,
)
from backend.corrections.statistics import CorrectionFigures, compute
from backend.corrections.sync_report import SyncReport
from backend.corrections.tables import AnnotationState, OutcomeKind, ProjectRecord, Relation
from backend.errors import Trouble
from backend.web.operations import PROJECT, Answer, choice, number, operation
from backend.web.requests import (
    checked_id,
    query_choice,
    query_number,
    query_project,
    services,
)

blueprint = Blueprint("corrections", __name__, url_prefix="/api/v1/corrections")
PAGE_SIZE = 100
_STATES = (AnnotationState.VALID, AnnotationState.QUARANTINED)


class RegionAnswer(Answer):
    """One region of a label."""

    region_id: str
    label: str
    control: str
    item_index: int
    shape: str
    area: int
    mask_hash: str


class OutcomeAnswer(Answer):
    """What became of a suggested region, or a region that was added; lengths are in pixels."""

    ordinal: int
    outcome: OutcomeKind
    relation: Relation
    item_index: int
    label: str
    label_changed: bool
    interactive: bool
    suggestion_id: str | None
    model_version: str | None
    region_id: str | None
    final_ids: list[str]
    dice: float | None
    surface_dice: float | None
    hd95: float | None
    added_path_length: float | None


class RevisionAnswer(Answer):
    """One version of an annotation as it was submitted."""

    updated_at: datetime
    created_at: datetime
    content_hash: str
    annotator: int | None
    lead_time: float | None
    was_cancelled: bool
    ground_truth: bool
    from_prediction: bool
    suggestion: str | None
    model_version: str | None
    group: str
    images: list[PageImage]
    concepts: list[CorrectedConcept]
    regions: list[RegionAnswer]
    outcomes: list[OutcomeAnswer]


class _Seen(Answer):
    annotation: int
    project: int
    task: int
    state: AnnotationState
    trouble: Trouble | None
    reason: str | None


class CorrectionAnswer(_Seen):
    """An annotation with its current version."""

    content_hash: str | None
    updated_at: datetime | None
    revision: RevisionAnswer | None


class CorrectionsAnswer(Answer):
    """A page of annotations."""

    corrections: list[CorrectionAnswer]


class HistoryAnswer(_Seen):
    """An annotation with every version that was seen, oldest first."""

    versions: list[RevisionAnswer]


class AnnotationCounts(Answer):
    """Annotations that count, that were skipped, that cannot be used."""

    valid: int
    skipped: int
    quarantined: int


class StatisticsAnswer(Answer):
    """The figures of all corrections, and of each part of them."""

    annotations: AnnotationCounts
    overall: CorrectionFigures
    by_concept: dict[str, CorrectionFigures]
    by_annotator: dict[str, CorrectionFigures]
    by_model_version: dict[str, CorrectionFigures]
    by_week: dict[str, CorrectionFigures]


class ProjectSync(Answer):
    """The last sync of a project, if there was one."""

    project: int
    synchronized_at: datetime | None
    report: SyncReport | None


class SyncAnswer(Answer):
    """Every project."""

    projects: list[ProjectSync]


@blueprint.get("")
@operation(
    CorrectionsAnswer,
    query=(
        PROJECT,
        choice("state", "In this state only.", _STATES),
        number("after", "The id of an annotation: those after it."),
    ),
)
def corrections() -> dict[str, Any]:
    """The annotations that Label Studio has, by id, with their current version; at most 100."""
    with services().database.reading() as session:
        rows = current_state(
            session,
            query_project(),
            state=query_choice("state", _STATES),
            after=query_number("after") or 0,
            limit=PAGE_SIZE,
        )
        return {"corrections": list(rows)}


@blueprint.get("/<int:annotation_id>")
@operation(HistoryAnswer, refuses=(404,))
def correction(annotation_id: int) -> dict[str, Any]:
    """One annotation with all its versions."""
    with services().database.reading() as session:
        known = with_history(session, checked_id(annotation_id, "annotation"))
    return known or abort(404, f"no correction of annotation {annotation_id}")


@blueprint.get("/stats")
@operation(StatisticsAnswer, query=(PROJECT,))
def stats() -> dict[str, Any]:
    """Accepted, edited, rejected and added regions, effort and time."""
    with services().database.reading() as session:
        return compute(session, query_project())


@blueprint.get("/sync")
@operation(SyncAnswer)
def sync() -> dict[str, Any]:
    """What the last sync of each project with Label Studio did."""
    with services().database.reading() as session:
        rows = session.scalars(select(ProjectRecord).order_by(ProjectRecord.project_id))
        return {
            "projects": [
                {
                    "project": row.project_id,
                    "synchronized_at": (
                        row.synchronized_at.isoformat() if row.synchronized_at else None
                    ),
                    "report": row.report,
                }
                for row in rows
            ]
        }
