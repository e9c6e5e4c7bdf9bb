"""Training runs as rows: requested, claimed, reported on, cancelled; one per project at a time.

A request while a run waits is that run; a request while one is at work makes another one follow.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from backend.corrections.tables import Annotation, DatasetItem, Revision, is_correction
from backend.database import insert_or_ignore, now_in
from backend.errors import CancelledError, QueueError, StoppedError, TrainingError
from backend.people import audit
from backend.processes.queues import Handler, QueueName, enqueue
from backend.processes.stopping import stopping
from backend.services import Services
from backend.settings import Settings
from backend.tables import GateVerdict, new_id, now
from backend.training.options import options_of
from backend.training.tables import RunState, Stage, TrainingRun, Trigger

log = logging.getLogger(__name__)

UNDER_WAY = (RunState.QUEUED, RunState.RUNNING)
ENDED = (RunState.DONE, RunState.FAILED, RunState.CANCELLED)
# Longer than a trainer may be busy between two signs of life: they come from a thread of its own.
LEASE_S = 20.0
# Deaths of the trainer, one after the other and without a step in between, that a run may cause.
# A machine that is switched off looks the same, so it is not a few.
MOST_DEATHS = 10


@dataclass(frozen=True)
class Requested:
    """What became of a request: `run_id`, and whether it is a `new` run or one under way."""

    run_id: str
    new: bool


def request_run(
    services: Services, project_id: int, trigger: Trigger, **overrides: Any
) -> Requested:
    """Ask for a training run of a project.

    Args:
        services: database and Redis; with Redis down the row waits until `recover` queues it.
        project_id: Label Studio's project.
        trigger: who asks.
        overrides: fields of `RunOptions` that shall differ from settings and policy.
    """
    with services.database.session() as session:
        requested = add_run(session, services.settings, project_id, trigger, **overrides)
    enqueue_run(services, requested.run_id)
    return requested


def add_run(
    session: Session, settings: Settings, project_id: int, trigger: Trigger, **overrides: Any
) -> Requested:
    """`request_run` as a part of a transaction; `enqueue_run` is to be called after it."""
    options = options_of(session, settings, project_id, **overrides)
    run_id = new_id()
    run = None
    while run is None:
        insert_or_ignore(
            session,
            TrainingRun,
            {
                "id": run_id,
                "project_id": project_id,
                "active_key": str(project_id),
                "trigger": trigger,
                "options": options.as_json(),
                "steps": options.steps,
            },
        )
        # Locked, so that a run that is just ending either hears of this request or has ended:
        # then there is none under way any more, and the next turn makes one.
        run = session.scalars(
            select(TrainingRun).where(TrainingRun.active_key == str(project_id)).with_for_update()
        ).one_or_none()
    if run.id != run_id and run.dataset_id is not None:
        # Its dataset version does not hold what the caller wants trained on.
        run.again = trigger
    audit.record(
        session,
        audit.AuditedAction.TRAIN,
        project_id=project_id,
        subject=run.id,
        detail=str(trigger),
    )
    return Requested(run.id, run.id == run_id)


def enqueue_run(services: Services, run_id: str, attempt: int = 0) -> None:
    """Put a run's job on the queue; the same job twice is one job."""
    try:
        enqueue(
            services.redis,
            QueueName.TRAIN,
            Handler.TRAIN,
            [run_id],
            job_id=f"train-{run_id}-{attempt}",
            timeout_s=-1,
        )
    except QueueError as error:
        log.warning("training run %s: %s", run_id, error)


def claim(services: Services, run_id: str) -> TrainingRun | None:
    """Take a run that nobody is working on; None when it is taken or over."""
    with services.database.session() as session:
        moment = now_in(session)
        free = or_(
            TrainingRun.state == RunState.QUEUED,
            (TrainingRun.state == RunState.RUNNING) & (TrainingRun.lease_until < moment),
        )
        taken = session.scalar(
            update(TrainingRun)
            .where(TrainingRun.id == run_id, free)
            .values(
                state=RunState.RUNNING,
                attempts=TrainingRun.attempts + 1,
                lease_until=moment + timedelta(seconds=LEASE_S),
                started_at=moment,
            )
            .returning(TrainingRun.id)
        )
        return session.get(TrainingRun, run_id) if taken else None


def renew(services: Services, run_id: str) -> None:
    """Say that the run's worker is alive."""
    # A trainer that was told to stop may be killed before it comes to an end: not the run's fault.
    forgiven = {"attempts": 0} if stopping.is_set() else {}
    _update(services, run_id, lease_until=_lease_end(services), **forgiven)


def put_back(services: Services, run_id: str) -> None:
    """Give a run back to the queue: its worker was told to stop. What it did so far is kept."""
    _update(services, run_id, state=RunState.QUEUED, lease_until=None, attempts=0)


def report(services: Services, run_id: str, **values: Any) -> None:
    """Store progress (columns of `TrainingRun`).

    Raises:
        CancelledError: somebody wants the run to end.
    """
    with services.database.session() as session:
        cancelled = session.scalar(
            update(TrainingRun)
            .where(TrainingRun.id == run_id, TrainingRun.state == RunState.RUNNING)
            .values(**values)
            .returning(TrainingRun.cancel_requested)
        )
    if cancelled is None or cancelled:
        raise CancelledError(f"training run {run_id} was cancelled")


def finish(services: Services, run_id: str, state: RunState, error: str | None = None) -> None:
    """End a run; starts the one that was asked for in the meantime."""
    with services.database.session() as session:
        run = session.get(TrainingRun, run_id, with_for_update=True)
        if run is None or run.state in ENDED:
            return
        follow_up = run.again if state != RunState.CANCELLED else None
        run.state, run.error = state, error
        run.active_key = run.lease_until = run.eta_s = None
        run.finished_at = now()
        if follow_up is None:
            return
        # In the same transaction: a trainer that dies now has either not ended this run, or
        # asked for the next one.
        session.flush()
        requested = add_run(session, services.settings, run.project_id, Trigger(follow_up))
    enqueue_run(services, requested.run_id)


def cancel(services: Services, run_id: str) -> TrainingRun:
    """End a run: at once while it waits, at its next step while it is at work; an ended one stays.

    Raises:
        TrainingError: there is no such run.
    """
    with services.database.session() as session:
        run = session.get(TrainingRun, run_id, with_for_update=True)
        if run is None:
            raise TrainingError(f"There is no training run {run_id}: `medsam3 train --list`.")
        if run.state in ENDED:
            return run
        audit.record(
            session, audit.AuditedAction.CANCEL_TRAINING, project_id=run.project_id, subject=run_id
        )
        run.cancel_requested = True
        if run.state == RunState.QUEUED:
            run.state, run.active_key, run.finished_at = RunState.CANCELLED, None, now()
        return run


def list_runs(
    session: Session, project_id: int | None = None, limit: int = 50
) -> Sequence[TrainingRun]:
    """Runs, newest first."""
    query = select(TrainingRun).order_by(TrainingRun.created_at.desc(), TrainingRun.id)
    if project_id is not None:
        query = query.where(TrainingRun.project_id == project_id)
    return session.scalars(query.limit(limit)).all()


def under_way(session: Session) -> Sequence[TrainingRun]:
    """The runs of all projects that wait or are at work, oldest first."""
    waiting_or_running = select(TrainingRun).where(TrainingRun.state.in_(UNDER_WAY))
    return session.scalars(waiting_or_running.order_by(TrainingRun.created_at)).all()


def new_corrections(session: Session, project_id: int) -> int:
    """How many annotations changed since the project's last dataset version for a run.

    A run that failed has learned nothing, so its dataset version does not count.
    """
    last = session.scalar(
        select(TrainingRun.dataset_id)
        .where(
            TrainingRun.project_id == project_id,
            TrainingRun.dataset_id.is_not(None),
            TrainingRun.state != RunState.FAILED,
        )
        .order_by(TrainingRun.created_at.desc())
        .limit(1)
    )
    known = select(DatasetItem.revision_id).where(DatasetItem.dataset_id == (last or 0))
    return (
        session.scalar(
            select(func.count())
            .select_from(Annotation)
            .join(Revision, Revision.id == Annotation.revision_id)
            .where(
                Annotation.project_id == project_id,
                is_correction(),
                Annotation.revision_id.not_in(known),
            )
        )
        or 0
    )


def orphans(services: Services) -> list[tuple[str, int]]:
    """Runs that wait without a job, or whose worker is gone: (id, attempts)."""
    with services.database.reading() as session:
        moment = now_in(session)
        rows = session.execute(
            select(TrainingRun.id, TrainingRun.attempts).where(
                or_(
                    TrainingRun.state == RunState.QUEUED,
                    (TrainingRun.state == RunState.RUNNING) & (TrainingRun.lease_until < moment),
                )
            )
        )
        return [(row.id, row.attempts) for row in rows]


def summary(run: TrainingRun, verdict: GateVerdict | None = None) -> dict[str, Any]:
    """A run as the API and `--json` show it."""
    return {
        "id": run.id,
        "project": run.project_id,
        "trigger": run.trigger,
        "state": run.state,
        "stage": run.stage if run.state == RunState.RUNNING else None,
        "step": run.step,
        "steps": run.steps,
        "loss": run.loss,
        "validation_dice": run.validation_dice,
        "eta_s": run.eta_s,
        "stopped": run.stopped,
        "attempts": run.attempts,
        "incumbent": run.incumbent,
        "candidate": run.candidate,
        "options": run.options,
        "error": run.error,
        "gate": None
        if verdict is None
        else {"passed": verdict.passed, "reasons": verdict.reasons, "figures": verdict.figures},
        "created_at": run.created_at.isoformat(),
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
    }


def at_stage(services: Services, run_id: str, stage: Stage) -> None:
    """Say what the run does next.

    Raises:
        CancelledError: somebody wants the run to end.
        StoppedError: this trainer is to end.
    """
    if stopping.is_set():
        raise StoppedError("the trainer was told to stop")
    report(services, run_id, stage=stage, lease_until=_lease_end(services), error=None)


def _lease_end(services: Services) -> datetime:
    with services.database.reading() as session:
        return now_in(session) + timedelta(seconds=LEASE_S)


def _update(services: Services, run_id: str, **values: Any) -> None:
    ours = (TrainingRun.id == run_id, TrainingRun.state == RunState.RUNNING)
    services.database.update(TrainingRun, *ours, **values)
