"""Triggers of a training run: enough new corrections, a schedule, Label Studio's button."""

import logging
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select

from backend.corrections import ingest
from backend.corrections.tables import Annotation
from backend.services import Services, current_services
from backend.tables import Event, TrainingPolicy, now
from backend.training import examples
from backend.training.options import policy_of
from backend.training.runs import Requested, request_run
from backend.training.tables import Trigger

log = logging.getLogger(__name__)

START_TRAINING = "START_TRAINING"


def ingest_events(ids: Sequence[str]) -> None:
    """Handler on queue `ingest`: take in what webhook events hint at, start the training they ask.

    It is here and not with the corrections because these know nothing of training.
    """
    services = current_services()
    try:
        ingest.ingest_events(services, ids)
    finally:
        # A broken annotation must not keep the button *Start training* from working.
        after_events(services, ids)


def after_events(services: Services, event_ids: Sequence[str]) -> list[Requested]:
    """Start what ingested events ask for: *Start training*, or enough new corrections.

    Called by an ingest worker after the events' annotations were taken in. An event that comes
    twice asks for the run that is under way.
    """
    with services.database.reading() as session:
        events = session.execute(
            select(Event.action, Event.project_id).where(
                Event.id.in_(list(event_ids)), Event.project_id.is_not(None)
            )
        ).all()
    pressed = {row.project_id for row in events if row.action == START_TRAINING}
    changed = {row.project_id for row in events if row.action.startswith("ANNOTATION")}
    requested = [
        request_run(services, project_id, Trigger.BUTTON) for project_id in sorted(pressed)
    ]
    for project_id in sorted(changed - pressed):
        if enough_corrections(services, project_id):
            requested.append(request_run(services, project_id, Trigger.CORRECTIONS))
    return requested


def enough_corrections(services: Services, project_id: int) -> bool:
    """Whether a project has as many new corrections as its policy asks for."""
    with services.database.reading() as session:
        enough = policy_of(session, services.settings, project_id).after_corrections
        return enough > 0 and examples.new_corrections(session, project_id) >= enough


def run_schedules(services: Services, moment: datetime | None = None) -> list[Requested]:
    """Start the projects whose schedule came due since the last call and that have anything new.

    Args:
        services: database and Redis.
        moment: the present, UTC.
    """
    moment = moment or now()
    due = []
    with services.database.session() as session:
        for project_id in session.scalars(select(Annotation.project_id).distinct()).all():
            schedule = policy_of(session, services.settings, project_id).schedule
            if schedule is None:
                continue
            row = session.get(TrainingPolicy, project_id)
            if row is None:
                row = TrainingPolicy(project_id=project_id)
                session.add(row)
            if row.scheduled_at is None:
                row.scheduled_at = moment  # the first look only starts the clock
            elif next_time(schedule, row.scheduled_at) <= moment:
                row.scheduled_at = moment
                if examples.new_corrections(session, project_id):
                    due.append(project_id)
    return [request_run(services, project_id, Trigger.SCHEDULE) for project_id in due]


def next_time(schedule: str, after: datetime) -> datetime:
    """The first moment of a cron line after another moment, UTC."""
    from croniter import croniter

    due: datetime = croniter(schedule, after).get_next(datetime)
    return due
