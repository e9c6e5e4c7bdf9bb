"""Pre-annotation: every task of a project gets a prediction of the version in service."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import func, select

from backend.database import chunked
from backend.errors import BackendError
from backend.label_studio.client import LabelStudio
from backend.models import versions
from backend.people import audit
from backend.predictions.requests import request_pushes
from backend.services import Services
from backend.tables import Delivery, Suggestion, SuggestionState

POLL_S = 0.5


@dataclass(frozen=True)
class PreannotationProgress:
    """How far a project is, in tasks: `predicted` and `failed` add up to `total` at the end."""

    total: int
    predicted: int
    failed: int

    @property
    def done(self) -> int:
        """Tasks that are not under way any more."""
        return self.predicted + self.failed


@dataclass(frozen=True)
class PreannotateReport:
    """What came of it; `errors` maps a task's id to the sentence that says why it failed."""

    model_version: str
    progress: PreannotationProgress
    errors: dict[int, str]


def preannotate(
    services: Services,
    project_id: int,
    *,
    on_progress: Callable[[PreannotationProgress], None] = lambda progress: None,
    timeout_s: float | None = None,
) -> PreannotateReport:
    """Have every task without a prediction of the version in service predicted and pushed.

    The rows are in the database before the first job runs, so the command may be interrupted: the
    workers go on, and running it again adds nothing twice.

    Args:
        services: database and Redis.
        project_id: Label Studio's project.
        on_progress: called about twice a second.
        timeout_s: stop waiting (not working) after this long; None waits until all is done.

    Raises:
        LabelStudioError: the project or its tasks cannot be read.
        BackendError: `timeout_s` went by.
    """
    with LabelStudio.from_settings(services.settings) as client:
        project = client.project(project_id)
        version = versions.in_service(services, project_id)
        tasks = client.tasks_without_version(project_id, version)
        with services.database.session() as session:
            audit.record(
                session, audit.AuditedAction.PREANNOTATE, project_id=project_id, subject=version
            )
        ids: list[str] = []
        for batch in request_pushes(services, tasks, project_id, project["label_config"]):
            ids += batch
            on_progress(_progress(services, ids))
    deadline = time.monotonic() + timeout_s if timeout_s is not None else None
    while (progress := _progress(services, ids)).done < progress.total:
        on_progress(progress)
        if deadline is not None and time.monotonic() > deadline:
            raise BackendError(
                f"{progress.total - progress.done} of {progress.total} tasks are not predicted "
                "yet; is a GPU worker running (`medsam3 doctor`)? They stay queued."
            )
        time.sleep(POLL_S)
    on_progress(progress)
    return PreannotateReport(version, progress, _errors(services, ids))


def _progress(services: Services, ids: list[str]) -> PreannotationProgress:
    counted = {"predicted": 0, "failed": 0}
    with services.database.reading() as session:
        for chunk in chunked(ids):
            rows = session.execute(
                select(Suggestion.state, Suggestion.delivery, Suggestion.error, func.count())
                .where(Suggestion.id.in_(chunk))
                .group_by(Suggestion.state, Suggestion.delivery, Suggestion.error)
            )
            for state, delivery, error, count in rows:
                if state == SuggestionState.FAILED or (error and delivery == Delivery.NONE):
                    counted["failed"] += count
                elif delivery in (Delivery.DELIVERED, Delivery.ANSWERED):
                    counted["predicted"] += count
    return PreannotationProgress(len(ids), **counted)


def _errors(services: Services, ids: list[str]) -> dict[int, str]:
    with services.database.reading() as session:
        return {
            task_id: error
            for chunk in chunked(ids)
            for task_id, error in session.execute(
                select(Suggestion.task_id, Suggestion.error).where(
                    Suggestion.id.in_(chunk), Suggestion.error.is_not(None)
                )
            )
            if task_id is not None and error is not None
        }
