"""`GET /api/v1/corrections...`: what annotators submitted, for programs."""

from typing import Any

from flask import Blueprint, abort, current_app, request
from sqlalchemy import select

from backend.corrections.revisions import current_state, history
from backend.corrections.statistics import compute
from backend.corrections.tables import Annotation, ProjectRecord
from backend.services import Services

blueprint = Blueprint("corrections", __name__, url_prefix="/api/v1/corrections")
PAGE_SIZE = 100
_STATES = ("valid", "quarantined")


def _services() -> Services:
    found: Services = current_app.extensions["medsam3"]
    return found


@blueprint.get("")
def corrections() -> dict[str, Any]:
    """The annotations that Label Studio has, by id, with their current version.

    Query: `project`, `state` (valid, quarantined), `after` (an annotation's id to page on).
    """
    state = request.args.get("state")
    if state is not None and state not in _STATES:
        abort(400, f"state is one of {', '.join(_STATES)}")
    with _services().database.reading() as session:
        found = list(
            current_state(
                session,
                request.args.get("project", type=int),
                state=state,
                after=request.args.get("after", 0, type=int),
                limit=PAGE_SIZE,
            )
        )
    return {"corrections": found}


@blueprint.get("/<int:annotation_id>")
def correction(annotation_id: int) -> dict[str, Any]:
    """One annotation with all its versions."""
    with _services().database.reading() as session:
        row = session.get(Annotation, annotation_id)
        if row is None:
            abort(404, f"no correction of annotation {annotation_id}")
        return {
            "annotation": row.id,
            "project": row.project_id,
            "task": row.task_id,
            "state": row.state,
            "trouble": row.trouble,
            "reason": row.reason,
            "versions": history(session, annotation_id),
        }


@blueprint.get("/stats")
def stats() -> dict[str, Any]:
    """Accepted, edited, rejected and added regions, effort and time. Query: `project`."""
    with _services().database.reading() as session:
        return compute(session, request.args.get("project", type=int))


@blueprint.get("/sync")
def sync() -> dict[str, Any]:
    """What the last reconciliation of each project did."""
    with _services().database.reading() as session:
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
