"""`GET /api/v1/corrections...`: what annotators submitted, for programs."""

from typing import Any

from flask import Blueprint, abort
from sqlalchemy import select

from backend.corrections.revisions import current_state, with_history
from backend.corrections.statistics import compute
from backend.corrections.tables import ProjectRecord
from backend.web.requests import (
    checked_id,
    query_choice,
    query_number,
    query_project,
    services,
)

blueprint = Blueprint("corrections", __name__, url_prefix="/api/v1/corrections")
PAGE_SIZE = 100
_STATES = ("valid", "quarantined")


@blueprint.get("")
def corrections() -> dict[str, Any]:
    """The annotations that Label Studio has, by id, with their current version.

    Query: `project`, `state` (valid, quarantined), `after` (an annotation's id to page on).
    """
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
def correction(annotation_id: int) -> dict[str, Any]:
    """One annotation with all its versions."""
    with services().database.reading() as session:
        known = with_history(session, checked_id(annotation_id, "annotation"))
    return known or abort(404, f"no correction of annotation {annotation_id}")


@blueprint.get("/stats")
def stats() -> dict[str, Any]:
    """Accepted, edited, rejected and added regions, effort and time. Query: `project`."""
    with services().database.reading() as session:
        return compute(session, query_project())


@blueprint.get("/sync")
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
