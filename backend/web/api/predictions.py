"""Endpoints of our own, beside Label Studio's contract: `/api/v1/...`."""

from typing import Any

from flask import Blueprint, abort, current_app, request
from sqlalchemy import select

from backend.processes.queues import QueueName, queue
from backend.services import Services
from backend.tables import Suggestion, SuggestionState

blueprint = Blueprint("api", __name__, url_prefix="/api/v1")
PAGE_SIZE = 100


@blueprint.get("/predictions")
def predictions() -> dict[str, Any]:
    """Predictions, newest first, without their masks.

    Query: `project`, `task`, `state` (queued, running, done, failed), `before` (an id to page on).
    """
    wanted = select(Suggestion).order_by(Suggestion.created_at.desc(), Suggestion.id)
    for name, column in (("project", Suggestion.project_id), ("task", Suggestion.task_id)):
        if name in request.args:
            wanted = wanted.where(column == request.args.get(name, type=int))
    if state := request.args.get("state"):
        if state not in set(SuggestionState):
            abort(400, f"state is one of {', '.join(SuggestionState)}")
        wanted = wanted.where(Suggestion.state == state)
    services: Services = current_app.extensions["medsam3"]
    with services.database.reading() as session:
        if before := request.args.get("before"):
            last = session.get(Suggestion, before) or abort(404, f"no prediction {before}")
            wanted = wanted.where(Suggestion.created_at < last.created_at)
        rows = session.scalars(wanted.limit(PAGE_SIZE))
        return {"predictions": [_summary(row) for row in rows]}


@blueprint.get("/queues")
def queues() -> dict[str, Any]:
    """Jobs waiting and running, by queue."""
    services: Services = current_app.extensions["medsam3"]
    found = {}
    for name in QueueName:
        jobs = queue(services.redis, name)
        found[str(name)] = {
            "waiting": jobs.count,
            "started": jobs.started_job_registry.count,
            "failed": jobs.failed_job_registry.count,
        }
    return {"queues": found}


def _summary(row: Suggestion) -> dict[str, Any]:
    return {
        "id": row.id,
        "project": row.project_id,
        "task": row.task_id,
        "interactive": row.interactive,
        "model_version": row.model_version,
        "state": row.state,
        "delivery": row.delivery,
        "attempts": row.attempts,
        "regions": len(row.result or []),
        "score": row.score,
        "error": row.error,
        "created_at": row.created_at.isoformat(),
        "finished_at": row.finished_at.isoformat() if row.finished_at else None,
    }
