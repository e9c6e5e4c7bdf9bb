"""Webhook events: stored before anything else happens, stripped to ids.

A payload carries the project's token and task credentials; only ids are kept. An event is no more
than a hint: `ingest` reads the annotation again through the API.
"""

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from backend.errors import QueueError
from backend.processes.queues import Handler, QueueName, enqueue
from backend.services import Services
from backend.tables import Event, now

log = logging.getLogger(__name__)

NEW, DONE, FAILED = "new", "done", "failed"


def receive(services: Services, payload: Mapping[str, Any]) -> str:
    """Store one event and enqueue its ingestion.

    Args:
        services: database and Redis; the event is kept even when Redis is down.
        payload: Label Studio's webhook body, of any action.

    Returns:
        The event's id.
    """
    event = Event(
        action=str(payload.get("action") or "UNKNOWN")[:64],
        project_id=_id(payload.get("project")),
        task_ids=_ids(payload, "task", "tasks"),
        annotation_ids=_ids(payload, "annotation", "annotations"),
    )
    with services.database.session() as session:
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


def _ids(payload: Mapping[str, Any], singular: str, plural: str) -> list[int]:
    # ANNOTATIONS_CREATED sends its list under the singular key.
    objects: list[object] = []
    for sent in (payload.get(singular), payload.get(plural)):
        objects += sent if isinstance(sent, list) else [sent]
    return [id_ for id_ in map(_id, objects) if id_ is not None]


def _id(value: object) -> int | None:
    number = value.get("id") if isinstance(value, Mapping) else value
    return number if isinstance(number, int) and not isinstance(number, bool) else None
