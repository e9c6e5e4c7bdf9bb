"""`GET /api/v1/predictions` and `/api/v1/queues`: what was predicted, and what waits."""

from datetime import datetime
from typing import Any

from flask import Blueprint, abort, request
from sqlalchemy import select

from backend.processes.queues import QueueName, count_jobs
from backend.tables import Delivery, Suggestion, SuggestionState
from backend.web.operations import PROJECT, TASK, Answer, QueryParameter, choice, operation
from backend.web.requests import checked_row_id, query_choice, query_number, services

blueprint = Blueprint("predictions", __name__, url_prefix="/api/v1")
PAGE_SIZE = 100
_BEFORE = QueryParameter("before", "The id of a prediction: those before it.", {"type": "string"})


class PredictionAnswer(Answer):
    """One prediction, without its masks. docs/architecture.md explains `state` and `delivery`."""

    id: str
    project: int
    task: int | None
    interactive: bool
    model_version: str
    state: SuggestionState
    delivery: Delivery
    attempts: int
    regions: int
    score: float | None
    error: str | None
    created_at: datetime
    finished_at: datetime | None


class PredictionsAnswer(Answer):
    """A page of predictions."""

    predictions: list[PredictionAnswer]


class QueueAnswer(Answer):
    """Jobs of a queue that wait, that are at work, and that failed in the last day."""

    waiting: int
    started: int
    failed: int


class QueuesAnswer(Answer):
    """Every queue by its name."""

    queues: dict[QueueName, QueueAnswer]


@blueprint.get("/predictions")
@operation(
    PredictionsAnswer,
    query=(PROJECT, TASK, choice("state", "In this state only.", SuggestionState), _BEFORE),
    refuses=(404,),
)
def predictions() -> dict[str, Any]:
    """Predictions, newest first, without their masks; at most 100."""
    query = select(Suggestion).order_by(Suggestion.created_at.desc(), Suggestion.id)
    for name, column in (("project", Suggestion.project_id), ("task", Suggestion.task_id)):
        if (number := query_number(name)) is not None:
            query = query.where(column == number)
    if state := query_choice("state", tuple(SuggestionState)):
        query = query.where(Suggestion.state == state)
    with services().database.reading() as session:
        if before := request.args.get("before"):
            last = session.get(Suggestion, checked_row_id(before, "prediction")) or abort(
                404, f"no prediction {before}"
            )
            query = query.where(Suggestion.created_at < last.created_at)
        rows = session.scalars(query.limit(PAGE_SIZE))
        return {"predictions": [_summary(row) for row in rows]}


@blueprint.get("/queues")
@operation(QueuesAnswer)
def queues() -> dict[str, Any]:
    """Jobs waiting and running, by queue."""
    return {
        "queues": {
            counted.name: {
                "waiting": counted.waiting,
                "started": counted.started,
                "failed": counted.failed,
            }
            for counted in count_jobs(services().redis)
        }
    }


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
