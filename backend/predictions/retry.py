"""Failed tasks of pre-annotation: which ones they are, and predicting them again on request.

A row that failed keeps neither the task's data nor its labeling config in force, so both are read
from Label Studio again, and a new row begins; the failed one stays as it is.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from backend.people import audit
from backend.predictions.requests import request_pushes
from backend.processes.queues import Handler, QueueName, enqueue
from backend.services import Services, current_services
from backend.tables import Delivery, Suggestion, SuggestionState

log = logging.getLogger(__name__)

# Tasks of one job: each is asked for at Label Studio.
TOGETHER = 50


def still_failed() -> ColumnElement[bool]:
    """The condition of rows of pre-annotation that failed, and whose task was not asked for since.

    Answers to an annotator's prompt do not count: the annotator was told.
    """
    newer = aliased(Suggestion)
    asked_since = exists(
        select(newer.id).where(
            newer.project_id == Suggestion.project_id,
            newer.task_id == Suggestion.task_id,
            newer.interactive.is_(False),
            newer.state != SuggestionState.CANCELLED,
            newer.delivery != Delivery.PREVIEW,
            # A prediction of some labels does not make up for one of all.
            or_(newer.labels.is_(None), Suggestion.labels.is_not(None)),
            # As an expression: by the index of a project's times, each failed task would be
            # compared with all that were asked for after it, of which only its own are meant.
            func.coalesce(newer.created_at, newer.created_at) > Suggestion.created_at,
        )
    )
    return and_(
        Suggestion.delivery == Delivery.NONE,
        Suggestion.error.is_not(None),
        Suggestion.interactive.is_(False),
        Suggestion.task_id.is_not(None),
        ~asked_since,
    )


def failed_rows(session: Session, limit: int) -> list[Suggestion]:
    """Rows whose task still failed, newest first."""
    rows = select(Suggestion).where(still_failed())
    return list(session.scalars(rows.order_by(Suggestion.created_at.desc()).limit(limit)))


def count_failed(session: Session) -> dict[int, int]:
    """How many tasks of each project still failed."""
    counted = select(Suggestion.project_id, func.count()).where(still_failed())
    return dict(session.execute(counted.group_by(Suggestion.project_id)).all())


def request_retry(services: Services, *, row_id: str | None = None) -> int:
    """Have failed tasks predicted again by the workers: one, or all.

    Returns:
        How many tasks; 0 where none of them failed, or all were asked for again already.

    Raises:
        QueueError: Redis cannot be reached; nothing is asked for.
    """
    rows = select(Suggestion.id).where(still_failed())
    if row_id is not None:
        rows = rows.where(Suggestion.id == row_id)
    with services.database.reading() as session:
        ids = list(session.scalars(rows.order_by(Suggestion.project_id, Suggestion.task_id)))
    for start in range(0, len(ids), TOGETHER):
        chunk = ids[start : start + TOGETHER]
        enqueue(services.redis, QueueName.INGEST, Handler.RETRY, chunk, job_id=f"retry-{chunk[0]}")
    if ids:
        with services.database.session() as session:
            subject = f"{len(ids)} failed task{'s' if len(ids) > 1 else ''}"
            audit.record(session, audit.AuditedAction.RETRY, subject=subject)
    return len(ids)


def retry_failed(ids: Sequence[str]) -> None:
    """Handler on queue `ingest`: read the rows' tasks from Label Studio and ask for them again.

    Done twice, it asks once: what was asked for again did not still fail.
    """
    # Only workers need the client; the web process, which asks for retries, stays smaller.
    from backend.label_studio.client import LabelStudio, task_filter

    services = current_services()
    wanted = select(Suggestion.project_id, Suggestion.task_id, Suggestion.labels)
    with services.database.reading() as session:
        rows = session.execute(wanted.where(Suggestion.id.in_(list(ids)), still_failed())).all()
    tasks_of: defaultdict[tuple[int, tuple[str, ...]], set[int]] = defaultdict(set)
    for project_id, task_id, labels in rows:
        if task_id is not None:
            tasks_of[project_id, tuple(labels or ())].add(task_id)
    with LabelStudio.from_settings(services.settings) as client:
        for (project_id, labels), task_ids in tasks_of.items():
            config = client.project(project_id)["label_config"]
            tasks = [
                task
                for task_id in sorted(task_ids)
                for task in client.tasks(
                    project_id,
                    filters=[task_filter("id", "in", "Number", {"min": task_id, "max": task_id})],
                )
            ]
            batches = request_pushes(services, tasks, project_id, config, labels)
            count = sum(map(len, batches))
            log.info("%s failed tasks of project %s are asked for again", count, project_id)
