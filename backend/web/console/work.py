"""The page *Work*: what waits, runs and failed, and who is at work on it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flask import flash, redirect, render_template, request, url_for
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from backend.errors import QueueError
from backend.predictions import preannotate, retry
from backend.predictions.requests import UNFINISHED
from backend.processes.health import STUCK_S, WorkerSign, worker_signs
from backend.processes.queues import QueueCounts, count_jobs
from backend.services import Services
from backend.settings import Settings
from backend.tables import Delivery, Event, Project, Suggestion, SuggestionState
from backend.training import runs
from backend.training.tables import TrainingRun
from backend.web.console.access import blueprint
from backend.web.console.shown import seconds_since, task_address
from backend.web.requests import checked_row_id, services

# Failed tasks that the page lists; it says how many there are.
MOST_LISTED = 50


@dataclass(frozen=True)
class ProjectWork:
    """Tasks of one project by what becomes of them.

    Attributes:
        title: of the project, where it is known.
        waiting, running: to be predicted, and being predicted.
        to_deliver: predicted, and not in Label Studio yet.
        failed: which were not asked for again.
        cancellable: of the waiting ones, those of pre-annotation.
        oldest_s: seconds that the oldest of the waiting and running ones is there.
    """

    project_id: int
    title: str | None
    waiting: int = 0
    running: int = 0
    to_deliver: int = 0
    failed: int = 0
    cancellable: int = 0
    oldest_s: float | None = None


@dataclass(frozen=True)
class FailedTask:
    """A task without a prediction, with the reason; `address` leads into Label Studio."""

    row_id: str
    project_id: int
    task_id: int
    reason: str
    age_s: float | None
    address: str


@dataclass(frozen=True)
class WorkInHand:
    """All that the page shows; `queue_error` says why queues and workers are not known."""

    projects: list[ProjectWork]
    training: Sequence[TrainingRun]
    failed: list[FailedTask]
    failed_count: int
    events: int
    queues: list[QueueCounts]
    workers: list[WorkerSign]
    queue_error: str | None


@blueprint.get("")
def work() -> str:
    """What waits, runs and failed, by project and queue; the workers; failed tasks."""
    template = "_work.html" if "fragment" in request.args else "work.html"
    return render_template(f"console/{template}", work=work_in_hand(services()), stuck_s=STUCK_S)


@blueprint.post("/retry")
def retry_tasks() -> AnyResponse:
    """Have failed tasks predicted again: the one of the form's `row`, else all of them."""
    row_id = request.form.get("row")
    if row_id is not None:
        checked_row_id(row_id, "prediction")
    count = retry.request_retry(services(), row_id=row_id)
    tasks = "1 task is" if count == 1 else f"{count} tasks are"
    flash(f"{tasks} predicted again." if count else "No such task failed any more.")
    return redirect(url_for("console.work"))


def work_in_hand(opened: Services) -> WorkInHand:
    """What is under way now."""
    with opened.database.reading() as session:
        projects = project_work(session)
        training = runs.under_way(session)
        failed = [
            _failed_task(opened.settings, row) for row in retry.failed_rows(session, MOST_LISTED)
        ]
        events = session.scalar(select(func.count(Event.id)).where(Event.state == "new")) or 0
    queues: list[QueueCounts] = []
    workers: list[WorkerSign] = []
    queue_error = None
    try:
        queues, workers = count_jobs(opened.redis), worker_signs(opened.redis)
    except QueueError as error:
        queue_error = str(error)
    failed_count = sum(project.failed for project in projects)
    return WorkInHand(
        projects, training, failed, failed_count, events, queues, workers, queue_error
    )


def project_work(session: Session) -> list[ProjectWork]:
    """Every known project with its tasks, by id."""
    by_project = Suggestion.project_id
    under_way = session.execute(
        select(
            by_project,
            Suggestion.state,
            func.count(),
            func.min(Suggestion.created_at),
            func.sum(case((preannotate.waits(), 1), else_=0)),
        )
        .where(Suggestion.state.in_(UNFINISHED))
        .group_by(by_project, Suggestion.state)
    ).all()
    to_deliver = select(by_project, func.count()).where(
        Suggestion.delivery.in_((Delivery.PUSH, Delivery.PUSHING)),
        Suggestion.state == SuggestionState.DONE,
    )
    delivering = dict(session.execute(to_deliver.group_by(by_project)).all())
    failed = retry.count_failed(session)
    counts = {(project_id, state): count for project_id, state, count, _, _ in under_way}
    cancellable: Counter[int] = Counter()
    oldest: dict[int, float] = {}
    for project_id, _, _, created_at, waiting in under_way:
        cancellable[project_id] += waiting
        oldest[project_id] = max(oldest.get(project_id, 0.0), seconds_since(created_at) or 0.0)
    titles = dict(session.execute(select(Project.id, Project.title)).all())
    return [
        ProjectWork(
            project_id,
            titles.get(project_id),
            waiting=counts.get((project_id, SuggestionState.QUEUED), 0),
            running=counts.get((project_id, SuggestionState.RUNNING), 0),
            to_deliver=delivering.get(project_id, 0),
            failed=failed.get(project_id, 0),
            cancellable=cancellable[project_id],
            oldest_s=oldest.get(project_id),
        )
        for project_id in sorted({*titles, *oldest, *delivering, *failed})
    ]


def _failed_task(settings: Settings, row: Suggestion) -> FailedTask:
    task_id = row.task_id or 0
    return FailedTask(
        row.id,
        row.project_id,
        task_id,
        row.error or "",
        seconds_since(row.finished_at or row.created_at),
        task_address(settings, row.project_id, task_id),
    )
