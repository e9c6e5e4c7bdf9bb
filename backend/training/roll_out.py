"""Roll-out: after a promotion Label Studio is told, and unlabelled tasks are predicted again."""

import logging
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, select

from backend.errors import BackendError
from backend.label_studio.client import LabelStudio, task_filter
from backend.label_studio.connect import announce_version
from backend.models.promotion import enqueue_roll_out
from backend.models.serving_order import sampling_of
from backend.predictions.requests import database_time, latest_first, request_pushes
from backend.services import Services, current_services
from backend.tables import Promotion, now

log = logging.getLogger(__name__)

# A roll-out waits this long, then twice as long, and so on, until Label Studio is told.
FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 900.0


def roll_out(ids: Sequence[str]) -> None:
    """Handler on queue `ingest`; done twice, nothing is predicted or told twice."""
    services = current_services()
    for id_ in ids:
        _roll_out(services, int(id_))


def enqueue_pending(services: Services) -> None:
    """Queue the promotions of which Label Studio does not know yet, when it is their turn."""
    with services.database.reading() as session:
        newest = select(func.max(Promotion.id)).group_by(Promotion.project_id)
        pending = session.scalars(
            select(Promotion).where(Promotion.id.in_(newest), Promotion.rolled_out_at.is_(None))
        ).all()
    moment = now()
    for promotion in pending:
        pause_s = min(FIRST_PAUSE_S * 2 ** min(promotion.attempts, 16) / 2, LONGEST_PAUSE_S)
        waits_since = promotion.tried_at or promotion.created_at
        if waits_since + timedelta(seconds=max(pause_s, FIRST_PAUSE_S)) <= moment:
            enqueue_roll_out(services, promotion.id, promotion.attempts)


def prune(services: Services, project_id: int, *, keep: int = 1) -> int:
    """Remove older predictions of unlabelled and labelled tasks from Label Studio.

    Args:
        services: settings.
        project_id: the project.
        keep: how many versions before the one in service keep their predictions.

    Returns:
        How many predictions were removed.
    """
    with services.database.reading() as session:
        served = session.scalars(
            select(Promotion)
            .where(Promotion.project_id == project_id)
            .order_by(Promotion.id.desc())
        ).all()
    newest_first = list(
        dict.fromkeys(name for row in served for name in (row.version, row.previous))
    )
    removed = 0
    with LabelStudio.from_settings(services.settings) as client:
        for version in newest_first[keep + 1 :]:
            held = task_filter("predictions_model_versions", "contains", "List", [version])
            for task in list(client.tasks(project_id, filters=[held])):
                for prediction in client.predictions(task["id"]):
                    if prediction.model_version == version:
                        client.delete_prediction(prediction.id)
                        removed += 1
    return removed


def predict_again(services: Services, client: LabelStudio, project_id: int, version: str) -> int:
    """Queue the unlabelled tasks without a prediction of the version; returns how many.

    The task that was predicted last is the first, because caches still hold its image.
    """
    config = client.project(project_id)["label_config"]
    listed_at = database_time(services)
    tasks = client.tasks_without_version(project_id, version, unlabelled=True)
    ordered, before = latest_first(services, project_id, tasks)
    batches = request_pushes(services, ordered, project_id, config, listed_at=listed_at)
    count = sum(map(len, batches))
    if before:
        log.info(
            "project %s: %s of %s tasks are predicted again, the latest first: those are the "
            "images that the cache of embeddings still holds",
            project_id,
            before,
            count,
        )
    return count


def _roll_out(services: Services, promotion_id: int) -> None:
    with services.database.session() as session:
        row = session.get(Promotion, promotion_id, with_for_update=True)
        if row is None or row.rolled_out_at is not None:
            return
        newest = session.scalar(
            select(func.max(Promotion.id)).where(Promotion.project_id == row.project_id)
        )
        if newest != row.id:
            # Two promotions in a row: the older one must not tell its version after the newer.
            row.rolled_out_at, row.error = now(), "another promotion came first"
            return
        # Counted before Label Studio is asked: a worker that dies there leaves a trace, and the
        # transaction, with its lock on the row, does not last as long as the calls.
        row.attempts += 1
        row.tried_at = now()
        project_id, version = row.project_id, row.version
    error: str | None = None
    try:
        sampling = sampling_of(services.database, services.settings, project_id)
        with LabelStudio.from_settings(services.settings) as client:
            announce_version(client, project_id, services.credentials, sampling)
            count = predict_again(services, client, project_id, version)
        log.info("version %s: project %s told, %s tasks queued", version, project_id, count)
    except BackendError as failure:
        log.warning("promotion %s waits: %s", promotion_id, failure)
        error = str(failure)
    with services.database.session() as session:
        row = session.get_one(Promotion, promotion_id)
        row.error = error
        if error is None:
            row.rolled_out_at = now()
