"""Preview: some tasks predicted for a sheet of pictures, before all of them are.

GPU workers predict them as they do any others, first of all. Nothing goes to Label Studio, no agent
is asked, and the rows are removed with the end of the wait; those of the console's page, which
nobody closes, by recovery after an hour.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from backend.errors import BackendError
from backend.labeling.config import LabelConfig, parse_label_config
from backend.models import versions
from backend.predictions.asked_labels import check_labels
from backend.predictions.preannotate_options import PreannotateOptions
from backend.predictions.requests import UNFINISHED, PredictRequest, request_previews
from backend.predictions.tables import Preannotation
from backend.services import Services
from backend.tables import Delivery, Suggestion

POLL_S = 0.3
# Tasks of a preview where nobody says how many, and the first ones that it is spread over.
SAMPLE, _AMONG = 12, 600
MOST_TASKS = 60
# Wishes of a project among which the latest one for a sample is looked for.
_LOOKED_THROUGH = 50


@dataclass(frozen=True)
class PreviewedTask:
    """One task of a preview.

    Attributes:
        data: of the task.
        regions: what Label Studio would get.
        score: of the prediction.
        error: why there is none; None: there is one.
    """

    task_id: int
    data: Mapping[str, Any]
    regions: Sequence[Mapping[str, Any]]
    score: float
    error: str | None


@dataclass(frozen=True)
class Preview:
    """What the version in service brings on a sample of a project's tasks."""

    project_id: int
    model_version: str
    config: LabelConfig
    tasks: tuple[PreviewedTask, ...]


def preview(
    services: Services,
    project_id: int,
    options: PreannotateOptions,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    timeout_s: float | None = None,
) -> Preview:
    """Predict a sample of the tasks that pre-annotation would predict; nothing is pushed.

    Args:
        services: database and Redis.
        project_id: Label Studio's project.
        options: which tasks; `limit` is the size of the sample.
        on_progress: called with the tasks that are done, and of how many.
        timeout_s: seconds to wait; None waits until all is done.

    Raises:
        BackendError: no such label, no task, too many tasks, or `timeout_s` went by.
        LabelStudioError: the project or its tasks cannot be read.
    """
    request = _sample(services, project_id, options)
    version = versions.in_service(services, project_id)
    ids = request_previews(services, request)
    try:
        rows = _finished(services, ids, on_progress, timeout_s)
        previewed = tuple(
            PreviewedTask(
                task["id"],
                task["data"],
                rows[id_].result or [],
                rows[id_].score or 0.0,
                rows[id_].error,
            )
            for task, id_ in zip(request.tasks, ids, strict=True)
        )
    finally:
        with services.database.session() as session:
            session.execute(delete(Suggestion).where(Suggestion.id.in_(ids)))
    return Preview(project_id, version, parse_label_config(request.label_config), previewed)


def request_sample(
    services: Services, project_id: int, options: PreannotateOptions, wish: str
) -> list[str]:
    """Have a sample predicted for the page that shows what became of a wish.

    Args:
        services, project_id, options: as for `preview`.
        wish: id of the `Preannotation`, by which `sampled` finds the rows.

    Returns:
        Ids of the rows.

    Raises:
        BackendError, LabelStudioError: as `preview`.
    """
    with services.database.reading() as session:
        there = list(session.scalars(select(Suggestion.id).where(Suggestion.request_id == wish)))
    # A worker that died right after it wrote them down left them to recovery.
    return there or request_previews(services, _sample(services, project_id, options), wish)


def sampled(session: Session, project_id: int) -> tuple[Preannotation | None, list[Suggestion]]:
    """The latest wish for a sample of a project, and its rows so far, by task."""
    wishes = session.scalars(
        select(Preannotation)
        .where(Preannotation.project_id == project_id)
        .order_by(Preannotation.created_at.desc())
        .limit(_LOOKED_THROUGH)
    )
    wish = next((wish for wish in wishes if wish.options.get("sample")), None)
    if wish is None:
        return None, []
    mine = select(Suggestion).where(
        Suggestion.request_id == wish.id, Suggestion.delivery == Delivery.PREVIEW
    )
    return wish, list(session.scalars(mine.order_by(Suggestion.task_id)))


def _sample(services: Services, project_id: int, options: PreannotateOptions) -> PredictRequest:
    """Ask for tasks of a project that are spread over the first ones."""
    # Only commands and workers need the client; the web process stays smaller.
    from backend.label_studio.client import UNLABELLED, LabelStudio
    from backend.label_studio.tabs import only_in_tab

    size = options.limit or SAMPLE
    if size > MOST_TASKS:
        raise BackendError(f"A preview has at most {MOST_TASKS} tasks: lower the limit.")
    with LabelStudio.from_settings(services.settings) as client:
        project = client.project(project_id)
        check_labels(project["label_config"], options.labels)
        filters = [UNLABELLED] if options.unlabelled else []
        listed = client.tasks(project_id, filters=filters)
        tasks = list(islice(only_in_tab(client, project_id, options.tab, listed), _AMONG))
    if not tasks:
        raise BackendError(f"Project {project_id} has no such task to look at.")
    step = max(1, len(tasks) // size)
    config = project["label_config"]
    return PredictRequest(tasks[::step][:size], project_id, config, labels=options.labels)


def _finished(
    services: Services,
    ids: Sequence[str],
    on_progress: Callable[[int, int], None],
    timeout_s: float | None,
) -> dict[str, Suggestion]:
    """The rows once none is under way any more."""
    deadline = time.monotonic() + timeout_s if timeout_s is not None else None
    while True:
        with services.database.reading() as session:
            rows = {
                row.id: row
                for row in session.scalars(select(Suggestion).where(Suggestion.id.in_(ids)))
            }
        waiting = sum(row.state in UNFINISHED for row in rows.values())
        on_progress(len(ids) - waiting, len(ids))
        if not waiting:
            return rows
        if deadline is not None and time.monotonic() > deadline:
            raise BackendError(
                f"{waiting} of {len(ids)} tasks of the preview are not predicted yet; is a GPU "
                "worker running (`medsam3 doctor`)?"
            )
        time.sleep(POLL_S)
