"""Pushing: finished predictions go to Label Studio through its API, each exactly once."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import or_, select

from backend.errors import (
    LabelStudioAuthError,
    LabelStudioError,
    LabelStudioUnavailableError,
)
from backend.label_studio.client import LabelStudio
from backend.predictions.requests import prediction_of
from backend.services import Services
from backend.tables import Delivery, Suggestion, SuggestionState, now

log = logging.getLogger(__name__)

PUSH_LEASE_S = 120
RETRY_LATER_S = 30
GIVE_UP_H = 24


def push(services: Services, ids: Sequence[str]) -> None:
    """Push the rows whose turn it is; what cannot be pushed now stays for the next attempt.

    A row is marked before it is sent. If the process dies in between, the next attempt asks
    Label Studio whether the prediction arrived before it sends it again.
    """
    rows, doubtful = _claim(services, ids)
    if rows:
        with LabelStudio.from_settings(services.settings) as client:
            _push(services, client, rows, doubtful)


def _push(
    services: Services, client: LabelStudio, rows: list[Suggestion], doubtful: set[str]
) -> None:
    """Send the rows, `doubtful` ones only if Label Studio does not hold them already."""
    by_project: dict[int, list[Suggestion]] = defaultdict(list)
    for row in rows:
        try:
            arrived = row.id in doubtful and _arrived(client, row)
        except LabelStudioError as error:
            log.warning("the prediction of task %s waits: %s", row.task_id, error)
            _postpone(services, [row], error)
            continue
        if arrived:
            _settle(services, [row.id], Delivery.DELIVERED)
        else:
            by_project[row.project_id].append(row)
    for project_id, project_rows in by_project.items():
        _push_project(services, client, project_id, project_rows)


def _push_project(
    services: Services, client: LabelStudio, project_id: int, rows: list[Suggestion]
) -> None:
    try:
        client.push_predictions(
            project_id, [{"task": row.task_id, **prediction_of(row)} for row in rows]
        )
    except (LabelStudioUnavailableError, LabelStudioAuthError) as error:
        log.warning("predictions of project %s wait: %s", project_id, error)
        _postpone(services, rows, error)
    except LabelStudioError as error:
        # Label Studio answers 500 when its database is busy, at times after it stored everything.
        broken = (error.status_code or 0) >= 500
        if len(rows) == 1 and broken:
            log.warning("the prediction of task %s waits: %s", rows[0].task_id, error)
            _postpone(services, rows, error)
        elif len(rows) == 1:
            log.warning("the prediction of task %s was refused: %s", rows[0].task_id, error)
            _settle(services, [rows[0].id], Delivery.NONE, error=f"not pushed: {error}")
        else:
            # One task that is gone fails the whole call: find it by sending them one by one.
            for row in rows:
                _push(services, client, [row], doubtful={row.id} if broken else set())
    else:
        _settle(services, [row.id for row in rows], Delivery.DELIVERED)


def _claim(services: Services, ids: Sequence[str]) -> tuple[list[Suggestion], set[str]]:
    """Take the rows that wait to be pushed; also say which ones somebody may have sent already."""
    moment = now()
    expired = or_(Suggestion.lease_until.is_(None), Suggestion.lease_until < moment)
    with services.database.session() as session:
        rows = list(
            session.scalars(
                select(Suggestion)
                .where(
                    Suggestion.id.in_(list(ids)),
                    Suggestion.state == SuggestionState.DONE,
                    Suggestion.delivery.in_((Delivery.PUSH, Delivery.PUSHING)),
                    expired,
                )
                .order_by(Suggestion.task_id)
                .with_for_update()
            )
        )
        # Marked before and not settled: the process that sent it died, or the answer was lost.
        doubtful = {row.id for row in rows if row.delivery == Delivery.PUSHING}
        for row in rows:
            row.delivery = Delivery.PUSHING
            row.lease_until = moment + timedelta(seconds=PUSH_LEASE_S)
    return rows, doubtful


def _arrived(client: LabelStudio, row: Suggestion) -> bool:
    """Whether Label Studio already holds a prediction of this version for the task."""
    stored = client.predictions(row.task_id) if row.task_id is not None else []
    return any(prediction.model_version == row.model_version for prediction in stored)


def _settle(
    services: Services, ids: list[str], delivery: Delivery, error: str | None = None
) -> None:
    settled = {"delivery": delivery, "active_key": None, "lease_until": None, "error": error}
    services.database.update(Suggestion, Suggestion.id.in_(ids), **settled)


def _postpone(services: Services, rows: list[Suggestion], error: LabelStudioError) -> None:
    """Try again later; what could not be pushed for a day is given up, with the reason."""
    old = now() - timedelta(hours=GIVE_UP_H)
    hopeless = [row.id for row in rows if row.finished_at and row.finished_at < old]
    if hopeless:
        _settle(services, hopeless, Delivery.NONE, error=f"not pushed: {error}")
    waiting = [row.id for row in rows if row.id not in hopeless]
    # Still marked as being sent: the answer may be lost while the predictions arrived.
    later = now() + timedelta(seconds=RETRY_LATER_S)
    services.database.update(Suggestion, Suggestion.id.in_(waiting), lease_until=later)
