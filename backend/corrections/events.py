"""Webhook events: stored before anything else happens, stripped to ids.

A payload carries the project's token and task credentials; only ids are kept. An event is no more
than a hint: `ingest` reads the annotation again through the API.
"""

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from backend.database import now_in
from backend.errors import QueueError
from backend.label_studio.projects import project_number
from backend.processes.queues import Handler, QueueName, enqueue
from backend.services import Services
from backend.tables import Event, Id, now

log = logging.getLogger(__name__)

NEW, DONE, FAILED = "new", "done", "failed"


def _named(sent: object) -> object:
    return sent.get("id") if isinstance(sent, Mapping) else sent


def _project(sent: object) -> object:
    named = _named(sent)
    return project_number(named) if isinstance(named, str) else named


def _listed(sent: object) -> list[object]:
    # ANNOTATIONS_CREATED sends its list under the singular key.
    if sent is None:
        return []
    return [_named(one) for one in sent] if isinstance(sent, list) else [_named(sent)]


# As Label Studio sends what an event is about: by its id, or whole; one of them, or a list.
_SENT: dict[str, Any] = {
    "type": ["integer", "object"],
    "properties": {"id": {"type": "integer"}},
    "required": ["id"],
}
_PROJECT_SENT = {**_SENT, "type": ["integer", "string", "object", "null"]}
_Ids = Annotated[
    list[Id],
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [_SENT, {"type": "array", "items": _SENT}]}, mode="validation"),
]


class WebhookEvent(BaseModel):
    """Label Studio's webhook body, of any action: what is kept of it are ids."""

    model_config = ConfigDict(extra="ignore", strict=True)

    action: str = Field("UNKNOWN", min_length=1, max_length=64)
    project: Annotated[
        Id | None, BeforeValidator(_project), WithJsonSchema(_PROJECT_SENT, mode="validation")
    ] = None
    task: _Ids = []
    tasks: _Ids = []
    annotation: _Ids = []
    annotations: _Ids = []


def receive(services: Services, payload: WebhookEvent | Mapping[str, Any]) -> str:
    """Store one event and enqueue its ingestion.

    Args:
        services: database and Redis; the event is kept even when Redis is down.
        payload: Label Studio's webhook body.

    Returns:
        The event's id.

    Raises:
        pydantic.ValidationError: the body names things by what cannot be an id.
    """
    sent = WebhookEvent.model_validate(payload)
    event = Event(
        action=sent.action,
        project_id=sent.project,
        task_ids=sent.task + sent.tasks,
        annotation_ids=sent.annotation + sent.annotations,
    )
    with services.database.session() as session:
        event.created_at = now_in(session)
        session.add(event)
    try:
        enqueue(
            services.redis, QueueName.INGEST, Handler.INGEST, [event.id], job_id=f"event-{event.id}"
        )
    except QueueError as error:
        log.warning("event %s: %s", event.id, error)
    return event.id


def update_new(session: Session, event_id: str, **values: object) -> None:
    """Write to an event, unless another worker has dealt with it."""
    session.execute(update(Event).where(Event.id == event_id, Event.state == NEW).values(**values))


def finish(session: Session, event_id: str, state: str, error: str | None = None) -> None:
    """Say that an event was dealt with: `DONE`, or `FAILED` for the reason `error`."""
    update_new(session, event_id, state=state, error=error, finished_at=now())


def prune(session: Session, before: datetime) -> None:
    """Remove the events that were dealt with before a moment."""
    session.execute(delete(Event).where(Event.state != NEW, Event.finished_at < before))
