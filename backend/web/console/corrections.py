"""The page *Corrections*: what became of the suggestions, what it cost, and which were worst."""

from dataclasses import dataclass

from flask import Response, abort, current_app, render_template, request
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.corrections.agreement import current_stamp
from backend.corrections.tables import (
    Annotation,
    AnnotationState,
    OutcomeKind,
    RegionOutcome,
    Revision,
)
from backend.corrections.totals import CorrectionTotals, compute_totals
from backend.errors import BackendError
from backend.settings import Settings
from backend.web.console.access import blueprint
from backend.web.console.pictures import correction_png
from backend.web.console.plots import stacked_bars
from backend.web.console.shown import known_projects, task_address
from backend.web.requests import checked_id, services

MOST_LISTED = 50
# The plot's weeks, the newest ones; the table beside it has all.
MOST_WEEKS = 26
MOST_PICTURES = 12
# Projects whose totals a web process keeps.
MOST_KEPT = 64


@dataclass(frozen=True)
class QuarantinedAnnotation:
    """An annotation that cannot be used, with the reason; `address` leads into Label Studio."""

    annotation_id: int
    project_id: int
    task_id: int
    reason: str
    address: str


@dataclass(frozen=True)
class WorstSuggestion:
    """A suggested region that was edited: revision and ordinal name its outcome."""

    revision_id: int
    ordinal: int
    task_id: int
    label: str
    dice: float
    address: str


@blueprint.get("/corrections")
@blueprint.get("/corrections/<int:project_id>")
def corrections(project_id: int | None = None) -> str:
    """What annotators did with suggestions, of one project or all."""
    if project_id is not None:
        checked_id(project_id, "project")
    settings = services().settings
    has_gallery = settings.console_gallery
    with services().database.reading() as session:
        totals = _totals(session, project_id)
        quarantined, count = quarantined_annotations(session, settings, project_id)
        worst = worst_suggestions(session, settings, project_id) if has_gallery else []
        known = known_projects(session)
    weeks = [
        (week, (it.accepted, it.edited, it.rejected, it.added))
        for week, it in list(totals.by_week.items())[-MOST_WEEKS:]
    ]
    template = "_corrections.html" if "fragment" in request.args else "corrections.html"
    return render_template(
        f"console/{template}",
        totals=totals,
        weeks=stacked_bars(
            "Accepted, edited, rejected and added regions by week", list(OutcomeKind), weeks
        ),
        quarantined=quarantined,
        quarantined_count=count,
        worst=worst,
        has_gallery=has_gallery,
        known=known,
        chosen=project_id,
    )


@blueprint.get("/corrections/pictures/<int:revision_id>/<int:ordinal>")
def correction_picture(revision_id: int, ordinal: int) -> Response:
    """A suggestion and its correction on the image; 404 where the gallery is off or it is gone."""
    from medsam3_model.errors import MedSAM3Error

    if not services().settings.console_gallery:
        abort(404, "The gallery is off.")
    checked_id(revision_id, "revision")
    checked_id(ordinal, "outcome")
    try:
        content = correction_png(services(), revision_id, ordinal)
    except (BackendError, MedSAM3Error):
        abort(404, "This picture cannot be shown.")
    return Response(content, mimetype="image/png")


def _totals(session: Session, project_id: int | None) -> CorrectionTotals:
    """The totals, counted once for each state of the annotations: an open page asks often."""
    kept: dict[int | None, tuple[str, CorrectionTotals]]
    kept = current_app.extensions.setdefault("medsam3_correction_totals", {})
    stamp = current_stamp(session, project_id)
    known = kept.get(project_id)
    if known is not None and known[0] == stamp:
        return known[1]
    totals = compute_totals(session, project_id)
    if len(kept) >= MOST_KEPT:
        kept.clear()
    kept[project_id] = stamp, totals
    return totals


def quarantined_annotations(
    session: Session, settings: Settings, project_id: int | None
) -> tuple[list[QuarantinedAnnotation], int]:
    """Annotations in quarantine, of one project or all, and how many there are."""
    conditions = [Annotation.state == AnnotationState.QUARANTINED]
    if project_id is not None:
        conditions.append(Annotation.project_id == project_id)
    rows = session.scalars(
        select(Annotation).where(*conditions).order_by(Annotation.id).limit(MOST_LISTED)
    )
    listed = [
        QuarantinedAnnotation(
            row.id,
            row.project_id,
            row.task_id,
            row.reason or "",
            task_address(settings, row.project_id, row.task_id),
        )
        for row in rows
    ]
    counted = select(func.count()).select_from(Annotation).where(*conditions)
    return listed, session.scalar(counted) or 0


def worst_suggestions(
    session: Session, settings: Settings, project_id: int | None
) -> list[WorstSuggestion]:
    """Edited suggestions of current annotations, the lowest Dice first."""
    conditions = [
        RegionOutcome.outcome == OutcomeKind.EDITED,
        RegionOutcome.suggestion_id.is_not(None),
        RegionOutcome.dice.is_not(None),
        Annotation.state == AnnotationState.VALID,
    ]
    if project_id is not None:
        conditions.append(Annotation.project_id == project_id)
    rows = session.execute(
        select(
            RegionOutcome.revision_id,
            RegionOutcome.ordinal,
            Annotation.task_id,
            RegionOutcome.label,
            RegionOutcome.dice,
            Annotation.project_id,
        )
        .join(Revision, Revision.id == RegionOutcome.revision_id)
        .join(Annotation, Annotation.revision_id == Revision.id)
        .where(*conditions)
        .order_by(RegionOutcome.dice, RegionOutcome.revision_id, RegionOutcome.ordinal)
        .limit(MOST_PICTURES)
    )
    return [
        WorstSuggestion(
            row.revision_id,
            row.ordinal,
            row.task_id,
            row.label,
            row.dice or 0.0,
            task_address(settings, row.project_id, row.task_id),
        )
        for row in rows
    ]
