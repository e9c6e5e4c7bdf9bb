"""Recovery: queues again what a killed worker, an emptied Redis or a dead web process left."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session, load_only

from backend.database import now_in
from backend.predictions import propagations
from backend.predictions.agent_runs import recover_runs
from backend.predictions.preannotate import recover_wishes
from backend.predictions.requests import FINISHED, end_unwanted, enqueue_pushes
from backend.processes.leases import Periodic
from backend.processes.queues import Handler, QueueName, enqueue, waiting_row_ids
from backend.services import Services
from backend.tables import Delivery, Event, Suggestion, SuggestionState

log = logging.getLogger(__name__)

LOCK_KEY = "medsam3:recovery"
INTERVAL_S = 3.0
UPKEEP_KEY = "medsam3:upkeep"
PRUNE_KEY = "medsam3:prune"
PRUNE_EVERY_S = 24 * 3600
# An event this old was not dealt with by the job that its webhook enqueued; events wait while
# Label Studio is down, so they are not tried more often than this either.
EVENT_SETTLING_S = 30.0
# A row this young may belong to a request that has not enqueued its jobs yet.
SETTLING_S = 5.0
# Rows of a preview that nobody removed are kept this long: with them its images' addresses.
PREVIEW_S = 3600
_OF_A_JOB = (Suggestion.id, Suggestion.attempts, Suggestion.interactive, Suggestion.context)


@dataclass(frozen=True)
class Repairs:
    """What one round of recovery did, in rows."""

    enqueued: int = 0
    given_up: int = 0
    pushed: int = 0
    events: int = 0
    propagations: int = 0
    agent_runs: int = 0
    preannotations: int = 0


def recover(services: Services) -> Repairs:
    """Put unfinished rows that no job stands for back on the queue.

    Raises:
        QueueError: Redis cannot be reached; nothing is lost, the next call does it.
    """
    # Before the orphans: a row that killed its last worker must not be queued once more.
    given_up = _give_up(services)
    pushed = _push_forgotten(services)
    events = _enqueue_forgotten_events(services)
    _remove_previews(services)
    wishes = propagations.enqueue_forgotten(services)
    rows = _orphans(services)
    if rows:
        # Rows first, queue second: a job that a worker takes in between has claimed its rows by
        # then. What is enqueued needlessly does no harm, because a job only claims free rows.
        waiting = waiting_row_ids(services.redis, QueueName.GPU, [row.id for row in rows])
        rows = [row for row in rows if row.id not in waiting]
    for row in rows:
        # One task per job: if the task is what killed the worker, it goes alone.
        enqueue(
            services.redis,
            QueueName.GPU,
            Handler.PREDICT,
            [row.id],
            # With the attempts in its name the job is another one than the one that died.
            job_id=f"predict-{row.id}-{row.attempts}",
            at_front=row.interactive,
            timeout_s=propagations.NO_END if propagations.is_propagation(row) else None,
        )
    repairs = Repairs(
        enqueued=len(rows),
        given_up=given_up,
        pushed=pushed,
        events=events,
        propagations=wishes,
        agent_runs=recover_runs(services),
        preannotations=recover_wishes(services),
    )
    if repairs != Repairs():
        log.info("recovered: %s", repairs)
    return repairs


def _remove_previews(services: Services) -> None:
    """Remove the rows of previews that nobody looks at any more."""
    with services.database.session() as session:
        session.execute(
            delete(Suggestion)
            .where(
                Suggestion.delivery == Delivery.PREVIEW,
                Suggestion.state.in_(FINISHED),
                Suggestion.created_at < now_in(session) - timedelta(seconds=PREVIEW_S),
            )
            .execution_options(synchronize_session=False)
        )


def _orphans(services: Services) -> list[Suggestion]:
    """Rows under way whose worker gave no sign of life, and rows that wait for a job."""
    with services.database.reading() as session:
        moment = now_in(session)
    abandoned = (Suggestion.state == SuggestionState.RUNNING) & (Suggestion.lease_until < moment)
    due = or_(Suggestion.lease_until.is_(None), Suggestion.lease_until < moment)
    settled = Suggestion.created_at < moment - timedelta(seconds=SETTLING_S)
    forgotten = (Suggestion.state == SuggestionState.QUEUED) & due & settled
    with services.database.reading() as session:
        return list(
            session.scalars(
                select(Suggestion)
                # What tells their jobs apart; the rest, masks too, is not read.
                .options(load_only(*_OF_A_JOB))
                .where(or_(abandoned, forgotten))
                .order_by(Suggestion.interactive.desc(), Suggestion.created_at)
                .limit(1000)
            )
        )


def _give_up(services: Services) -> int:
    """Fail the rows that took their worker down too often."""
    limit = services.settings.max_attempts
    with services.database.session() as session:
        moment = now_in(session)
        return len(
            session.scalars(
                update(Suggestion)
                .where(
                    Suggestion.state == SuggestionState.RUNNING,
                    Suggestion.lease_until < moment,
                    Suggestion.attempts >= limit,
                )
                .values(
                    state=SuggestionState.FAILED,
                    finished_at=moment,
                    active_key=None,
                    task_data={},
                    context=None,
                    error=f"the worker died {limit} times on this task; look at its image and at "
                    "the worker's memory, then ask for the prediction again",
                )
                .returning(Suggestion.id)
            ).all()
        )


def _push_forgotten(services: Services) -> int:
    """Have pushed what a dead web process was waiting for, and what a dead pusher left."""
    with services.database.session() as session:
        moment = now_in(session)
        _look_after(session, moment, can_ask=services.settings.label_studio_api_key is not None)
        # No request waits past `reply_until`, so its web process is dead. An interactive answer
        # then has nobody to go to; the others are pushed.
        late = (Suggestion.delivery == Delivery.REPLY) & (Suggestion.reply_until < moment)
        session.execute(
            update(Suggestion)
            .where(late, Suggestion.interactive)
            .values(delivery=Delivery.NONE, active_key=None)
        )
        end_unwanted(session, Suggestion.reply_until < moment)
        session.execute(update(Suggestion).where(late).values(delivery=Delivery.PUSH))
        session.execute(
            update(Suggestion)
            .where(
                Suggestion.delivery.in_((Delivery.PUSH, Delivery.PUSHING)),
                Suggestion.state == SuggestionState.FAILED,
            )
            .values(delivery=Delivery.NONE, active_key=None)
        )
        ids = list(
            session.scalars(
                select(Suggestion.id).where(
                    Suggestion.delivery.in_((Delivery.PUSH, Delivery.PUSHING)),
                    # Named, and not all but the unfinished: those may be a hundred thousand.
                    Suggestion.state.in_(FINISHED),
                    # The lease of a pusher that is alive, or its pause before the next attempt.
                    or_(Suggestion.lease_until.is_(None), Suggestion.lease_until < moment),
                    Suggestion.finished_at < moment - timedelta(seconds=SETTLING_S),
                )
            )
        )
    if ids:
        # Nobody may take jobs from the queue for days: what waits there is not put there again.
        waiting = waiting_row_ids(services.redis, QueueName.INGEST, ids)
        ids = [id_ for id_ in ids if id_ not in waiting]
    enqueue_pushes(services, ids)
    return len(ids)


def _look_after(session: Session, moment: datetime, *, can_ask: bool) -> None:
    """Answers that went out a while ago: pushed like what may have been sent already.

    The pusher asks Label Studio first, and sends what it does not hold: the caller was gone, or
    the web process died before its answer had left.
    """
    due = (Suggestion.delivery == Delivery.ANSWERED) & (Suggestion.lease_until < moment)
    unknown = due if not can_ask else due & Suggestion.task_id.is_(None)
    session.execute(
        update(Suggestion)
        .where(unknown)
        .values(delivery=Delivery.DELIVERED, active_key=None, delivered_at=moment)
    )
    session.execute(update(Suggestion).where(due).values(delivery=Delivery.PUSHING))


def _enqueue_forgotten_events(services: Services) -> int:
    """Queue webhook events that no worker dealt with and for which no job waits."""
    with services.database.reading() as session:
        before = now_in(session) - timedelta(seconds=EVENT_SETTLING_S)
        ids = list(
            session.scalars(
                select(Event.id)
                .where(Event.state == "new", Event.created_at < before)
                # By lot: 500 that wait for good must not keep the others from ever being tried.
                .order_by(func.random())
                .limit(500)
            )
        )
    if not ids:
        return 0
    waiting = waiting_row_ids(services.redis, QueueName.INGEST, ids)
    forgotten = [event_id for event_id in ids if event_id not in waiting]
    for event_id in forgotten:
        # The same job id as the webhook's: enqueued twice, it is one job.
        enqueue(
            services.redis, QueueName.INGEST, Handler.INGEST, [event_id], job_id=f"event-{event_id}"
        )
    return len(forgotten)


def _enqueue_upkeep(services: Services) -> None:
    """Queue the periodic look at Label Studio, and the daily pruning, when their time has come.

    RQ's own cron pickles its jobs, which workers that read nothing but JSON would refuse.
    """
    pause_s = int(60 * services.settings.sync_minutes)
    if pause_s and services.redis.set(UPKEEP_KEY, 1, nx=True, ex=pause_s):
        enqueue(services.redis, QueueName.INGEST, Handler.UPKEEP, [], job_id="upkeep")
    prunes = services.settings.prune_days is not None
    if prunes and services.redis.set(PRUNE_KEY, 1, nx=True, ex=PRUNE_EVERY_S):
        enqueue(services.redis, QueueName.INGEST, Handler.PRUNE, [], job_id="prune")


def recovery(services: Services) -> Periodic:
    """The thread that recovers, and queues the upkeep, every few seconds in one of all workers."""
    return Periodic(services, recover, _enqueue_upkeep, lock=LOCK_KEY, every_s=INTERVAL_S)
