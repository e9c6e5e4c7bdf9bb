"""Triggers of a training run: enough new corrections, a schedule, Label Studio's button."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import takewhile

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.corrections import events, ingest
from backend.corrections.tables import Annotation
from backend.database import insert_or_ignore
from backend.predictions import propagations
from backend.services import Services, current_services
from backend.tables import Event, TrainingPolicy, now
from backend.training import runs
from backend.training.options import policy_of
from backend.training.runs import Requested
from backend.training.tables import RunState, TrainingRun, Trigger
from backend.volumes.tables import Stack

log = logging.getLogger(__name__)

START_TRAINING = "START_TRAINING"
# Corrections of a run that failed start another one after this long, doubled with each failure.
FIRST_PAUSE = timedelta(hours=1)
MOST_DOUBLINGS = 6


def ingest_events(ids: Sequence[str]) -> None:
    """Handler on queue `ingest`: start the training that events ask for, take in what they hint at.

    It is here and not with the corrections because these know nothing of training.
    """
    services = current_services()
    # First, and without Label Studio: neither a broken annotation nor a missing token keeps the
    # button *Start training* from working.
    started = start_asked_for(services, ids)
    others = [event_id for event_id in ids if event_id not in started]
    if others:
        ingest.ingest_events(services, others)
        if services.settings.propagate_on_submit:
            propagate_submitted(services, others)


def propagate_submitted(services: Services, event_ids: Sequence[str]) -> int:
    """Have the rest of imported stacks drawn from what was submitted; returns how many."""
    submitted = select(Event).where(
        Event.id.in_(list(event_ids)),
        Event.action.in_(("ANNOTATION_CREATED", "ANNOTATION_UPDATED")),
    )
    with services.database.reading() as session:
        wishes = [
            (int(event.task_ids[0]), int(event.annotation_ids[0]))
            for event in session.scalars(submitted)
            if len(event.task_ids) == len(event.annotation_ids) == 1
        ]
        tasks = [task for task, _ in wishes]
        stacks = set(session.scalars(select(Stack.task_id).where(Stack.task_id.in_(tasks))))
    wishes = [wish for wish in wishes if wish[0] in stacks]
    for task_id, annotation_id in wishes:
        propagations.request_propagation(services, task_id, annotation_id=annotation_id)
    return len(wishes)


def start_asked_for(services: Services, event_ids: Sequence[str]) -> dict[str, Requested | None]:
    """Start the runs that *Start training* asks for.

    An event is dealt with in the transaction that asks for its run: killed at any moment, or
    handled twice, it asks once.

    Returns:
        The events of the button, each with its run; None where it was dealt with before.
    """
    started: dict[str, Requested | None] = {}
    for event_id in event_ids:
        requested = None
        with services.database.session() as session:
            event = session.get(Event, event_id, with_for_update=True)
            if event is None or event.action != START_TRAINING or event.project_id is None:
                continue
            if event.state == events.NEW:
                requested = runs.add_run(
                    session, services.settings, event.project_id, Trigger.BUTTON
                )
                events.finish(session, event_id, events.DONE)
        if requested:
            runs.enqueue_run(services, requested.run_id)
        started[event_id] = requested
    return started


def start_due(services: Services, moment: datetime | None = None) -> list[Requested]:
    """Start the projects that have enough new corrections, or whose schedule came due.

    Args:
        services: database and Redis.
        moment: the present, UTC.
    """
    moment = moment or now()
    with services.database.reading() as session:
        projects = session.scalars(select(Annotation.project_id).distinct()).all()
    requested = []
    for project_id in projects:
        try:
            due = _start_if_due(services, project_id, moment)
        except ValueError as error:
            # Stored before it was checked; the other projects have their turn all the same.
            log.error("the schedule of project %s never comes due: %s", project_id, error)
            continue
        if due:
            runs.enqueue_run(services, due.run_id)
            requested.append(due)
    return requested


def _start_if_due(services: Services, project_id: int, moment: datetime) -> Requested | None:
    """Ask for a run of a project if anything starts one now; it is not queued yet."""
    with services.database.reading() as session:
        policy = policy_of(session, services.settings, project_id)
        if not policy.after_corrections and policy.schedule is None:
            return None
        row = session.get(TrainingPolicy, project_id)
        since = row.scheduled_at if row else None
        new = runs.new_corrections(session, project_id)
        enough = (
            0 < policy.after_corrections <= new
            and moment >= _not_before(session, project_id)
            and not _awaited(session, project_id)
        )
        scheduled = policy.schedule is not None and (
            since is None or next_time(policy.schedule, since) <= moment
        )
    if not enough and not scheduled:
        return None
    # One transaction: killed at any moment, a run is asked for once.
    with services.database.session() as session:
        if enough:
            return runs.add_run(session, services.settings, project_id, Trigger.CORRECTIONS)
        insert_or_ignore(session, TrainingPolicy, {"project_id": project_id})
        session.get_one(TrainingPolicy, project_id).scheduled_at = moment
        # The first look only starts the clock.
        if since is None or not new:
            return None
        return runs.add_run(session, services.settings, project_id, Trigger.SCHEDULE)


def _awaited(session: Session, project_id: int) -> bool:
    """Whether a run that will train on all present corrections waits already."""
    run = session.scalar(select(TrainingRun).where(TrainingRun.active_key == str(project_id)))
    return run is not None and (run.dataset_id is None or run.again is not None)


def _not_before(session: Session, project_id: int) -> datetime:
    """When the count of corrections may start a run: a while after one that failed or was ended."""
    ended = session.execute(
        select(TrainingRun.state, TrainingRun.finished_at)
        .where(TrainingRun.project_id == project_id, TrainingRun.finished_at.is_not(None))
        .order_by(TrainingRun.created_at.desc())
        .limit(MOST_DOUBLINGS)
    ).all()
    vain = list(takewhile(lambda run: run.state != RunState.DONE, ended))
    if not vain:
        return datetime.min.replace(tzinfo=UTC)
    latest: datetime = vain[0].finished_at
    return latest + FIRST_PAUSE * 2 ** (len(vain) - 1)


def next_time(schedule: str, after: datetime) -> datetime:
    """The first moment of a cron line after another moment, UTC."""
    from croniter import croniter

    due: datetime = croniter(schedule, after).get_next(datetime)
    return due
