"""Webhook events: stored before anything else happens, stripped to ids.

A payload carries the project's token and task credentials; only ids are kept. The annotation is
read again through the API by an ingest worker, so an event is no more than a hint.
"""

import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from backend.errors import QueueError
from backend.processes.queues import Handler, QueueName, enqueue
from backend.services import Services
from backend.tables import Event

log = logging.getLogger(__name__)


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


def unfinished(services: Services, limit: int = 1000) -> list[str]:
    """Ids of the events that no worker has dealt with yet, oldest first."""
    with services.database.reading() as session:
        return list(
            session.scalars(
                select(Event.id).where(Event.state == "new").order_by(Event.created_at).limit(limit)
            )
        )


def _ids(payload: Mapping[str, Any], one: str, many: str) -> list[int]:
    # ANNOTATIONS_CREATED sends its list under the singular key.
    found: list[object] = []
    for sent in (payload.get(one), payload.get(many)):
        found += sent if isinstance(sent, list) else [sent]
    return [number for number in map(_id, found) if number is not None]


def _id(value: object) -> int | None:
    number = value.get("id") if isinstance(value, Mapping) else value
    return number if isinstance(number, int) and not isinstance(number, bool) else None
