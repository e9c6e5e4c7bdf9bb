"""After a promotion: Label Studio is told, and unlabelled tasks are predicted and ranked anew."""

import logging
from collections.abc import Sequence
from datetime import timedelta
from itertools import islice

from sqlalchemy import func, or_, select

from backend.errors import LabelStudioError
from backend.label_studio.client import LabelStudio
from backend.label_studio.connect import announce_version
from backend.models.promotion import enqueue_roll_out
from backend.predictions import acquisition
from backend.predictions.requests import request_push
from backend.services import Services, current_services
from backend.tables import Promotion, now

log = logging.getLogger(__name__)

RETRY_LATER_S = 30
MOST_ATTEMPTS = 20
_BATCH_TASKS = 200
UNLABELLED = {
    "filter": "filter:tasks:total_annotations",
    "operator": "equal",
    "type": "Number",
    "value": 0,
}


def roll_out(ids: Sequence[str]) -> None:
    """Handler on queue `ingest`; done twice, nothing is predicted or told twice."""
    services = current_services()
    for id_ in ids:
        _roll_out(services, int(id_))


def pending(services: Services) -> list[tuple[int, int]]:
    """Promotions of which Label Studio does not know yet: (id, attempts)."""
    moment = now() - timedelta(seconds=RETRY_LATER_S)
    with services.database.reading() as session:
        newest = select(func.max(Promotion.id)).group_by(Promotion.project_id)
        found = session.execute(
            select(Promotion.id, Promotion.attempts).where(
                Promotion.id.in_(newest),
                Promotion.rolled_out_at.is_(None),
                Promotion.attempts < MOST_ATTEMPTS,
                Promotion.created_at < moment,
                or_(Promotion.tried_at.is_(None), Promotion.tried_at < moment),
            )
        )
        return [(row.id, row.attempts) for row in found]


def enqueue_pending(services: Services) -> int:
    """Queue what `pending` says; returns how many."""
    found = pending(services)
    for id_, attempts in found:
        enqueue_roll_out(services, id_, attempts)
    return len(found)


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
    order = list(dict.fromkeys([one for row in served for one in (row.version, row.previous)]))
    kept, removed = set(order[: keep + 1]), 0
    with LabelStudio.from_settings(services.settings) as client:
        for version in set(order) - kept:
            held = {
                "filter": "filter:tasks:predictions_model_versions",
                "operator": "contains",
                "type": "List",
                "value": [version],
            }
            for task in list(client.tasks(project_id, filters=[held])):
                for prediction in client.predictions(task_id=task["id"]):
                    if prediction.model_version == version:
                        client.delete_prediction(prediction.id)
                        removed += 1
    return removed


def _roll_out(services: Services, promotion_id: int) -> None:
    with services.database.session() as session:
        row = session.get(Promotion, promotion_id, with_for_update=True)
        if row is None or row.rolled_out_at is not None:
            return
        newest = session.scalar(
            select(func.max(Promotion.id)).where(Promotion.project_id == row.project_id)
        )
        if newest != row.id:
            row.rolled_out_at, row.error = now(), "another promotion came first"
            return
        row.attempts += 1
        row.tried_at = now()
        project_id, version = row.project_id, row.version
        strategy = acquisition.strategy_of(session, services.settings, project_id)
    error: str | None = None
    try:
        with LabelStudio.from_settings(services.settings) as client:
            announce_version(client, project_id, services.credentials)
            if strategy == "diversity":
                _rank(services, client, project_id)
            count = _predict(services, client, project_id, version)
        log.info("version %s: project %s told, %s tasks queued", version, project_id, count)
    except LabelStudioError as failure:
        log.warning("promotion %s waits: %s", promotion_id, failure)
        error = str(failure)
    with services.database.session() as session:
        row = session.get_one(Promotion, promotion_id)
        row.error = error
        if error is None:
            row.rolled_out_at = now()


def _predict(services: Services, client: LabelStudio, project_id: int, version: str) -> int:
    """Queue the unlabelled tasks without a prediction of the version; returns how many."""
    config = client.project(project_id)["label_config"]
    missing = {
        "filter": "filter:tasks:predictions_model_versions",
        "operator": "not_contains",
        "type": "List",
        "value": [version],
    }
    tasks = client.tasks(project_id, filters=[UNLABELLED, missing])
    count = 0
    while batch := list(islice(tasks, _BATCH_TASKS)):
        count += len(request_push(services, batch, project_id, config))
    return count


def _rank(services: Services, client: LabelStudio, project_id: int) -> None:
    unlabelled = {task["id"] for task in client.tasks(project_id, filters=[UNLABELLED])}
    acquisition.rank_by_diversity(services, project_id, unlabelled)
