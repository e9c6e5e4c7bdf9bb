"""Pushing: finished predictions go to Label Studio through its API, each exactly once."""

import logging
import threading
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import or_, select, update

from backend.database import now_in, retried
from backend.errors import (
    LabelStudioAuthError,
    LabelStudioError,
    LabelStudioUnavailableError,
)
from backend.label_studio.client import LabelStudio
from backend.predictions.replacing import WAIT_S, replaced
from backend.predictions.requests import needed_later, prediction_of
from backend.processes.counters import StageTimes, WorkStage, publish
from backend.processes.leases import renewing
from backend.services import Services
from backend.tables import Delivery, Suggestion, SuggestionState

log = logging.getLogger(__name__)

# A prediction waits for a Label Studio that is away for as long as it takes: first half a minute
# until the next attempt, then a tenth of its age, at most this long.
RETRY_LATER_S = 30
LONGEST_PAUSE_S = 900
# Of this process, which does one job at a time.
_times = StageTimes()


def push(services: Services, ids: Sequence[str]) -> None:
    """Push the rows whose turn it is; what cannot be pushed now stays for the next attempt.

    A row is marked before it is sent. If the process dies in between, the next attempt asks
    Label Studio whether the prediction arrived before it sends it again.
    """
    if services.settings.label_studio_api_key is None:
        log.warning("%s predictions wait: LABEL_STUDIO_API_KEY is not set", len(ids))
        return
    rows, doubtful = _claim(services, ids)
    if not rows:
        return
    lease = Lease(services, rows)
    with (
        renewing(lease.renew, services.settings.lease_s / 3),
        LabelStudio.from_settings(services.settings) as client,
    ):
        _push(services, client, lease, rows, doubtful)
    publish(services.redis, _times.take())


class Lease:
    """The rows that this process is pushing, held for as long as it renews them.

    The moment until which a row is held says by whom: a process that was asleep for longer finds
    another moment there and leaves the row to whoever took it meanwhile.
    """

    def __init__(self, services: Services, rows: Sequence[Suggestion]) -> None:
        self._services = services
        self._ids = [row.id for row in rows]
        self._until = rows[0].lease_until
        self._lock = threading.Lock()

    def renew(self) -> None:
        """Hold the rows that are still ours a little longer."""
        with self._lock:
            self._renew()

    def held(self, rows: Sequence[Suggestion]) -> list[Suggestion]:
        """Those of the rows that nobody else has taken, with a whole lease before them."""
        with self._lock:
            self._renew()
            with self._services.database.reading() as session:
                ours = select(Suggestion.id).where(
                    Suggestion.id.in_(self._ids), Suggestion.lease_until == self._until
                )
                kept = set(session.scalars(ours))
        return [row for row in rows if row.id in kept]

    @retried
    def _renew(self) -> None:
        with self._services.database.session() as session:
            until = now_in(session) + timedelta(seconds=self._services.settings.lease_s)
            session.execute(
                update(Suggestion)
                .where(Suggestion.id.in_(self._ids), Suggestion.lease_until == self._until)
                .values(lease_until=until)
            )
        self._until = until


def _push(
    services: Services,
    client: LabelStudio,
    lease: Lease,
    rows: list[Suggestion],
    doubtful: set[str],
) -> None:
    """Send the rows, `doubtful` ones only if Label Studio does not hold them already."""
    by_project: dict[int, list[Suggestion]] = defaultdict(list)
    for row in rows:
        if row.agent_run_id is not None or row.labels is not None:
            _replace(services, client, lease, row)
            continue
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
        _push_project(services, client, lease, project_id, project_rows)


def _replace(services: Services, client: LabelStudio, lease: "Lease", row: Suggestion) -> None:
    """Put an answer in the place of an earlier one, or try again later."""
    if not lease.held([row]):
        return
    try:
        with _times.measured(WorkStage.PUSH):
            delivery = replaced(services, client, row)
    except LabelStudioError as error:
        refused = 400 <= (error.status_code or 0) < 500 and not isinstance(
            error, LabelStudioAuthError
        )
        if refused:
            log.warning("the answer for task %s was refused: %s", row.task_id, error)
            _settle(services, [row.id], Delivery.NONE, error=f"not pushed: {error}")
        else:
            log.warning("the answer for task %s waits: %s", row.task_id, error)
            _postpone(services, [row], error)
        return
    if delivery == Delivery.PUSHING:
        _hold(services, row)
    else:
        _settle(services, [row.id], delivery)


def _push_project(
    services: Services,
    client: LabelStudio,
    lease: Lease,
    project_id: int,
    rows: list[Suggestion],
) -> None:
    # Asked before each sending: if this process was halted for longer than its lease, another one
    # has sent them meanwhile.
    rows = lease.held(rows)
    if not rows:
        return
    try:
        with _times.measured(WorkStage.PUSH):
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
                _push(services, client, lease, [row], doubtful={row.id} if broken else set())
    else:
        _settle(services, [row.id for row in rows], Delivery.DELIVERED)


@retried
def _claim(services: Services, ids: Sequence[str]) -> tuple[list[Suggestion], set[str]]:
    """Take the rows that wait to be pushed; also say which ones somebody may have sent already."""
    with services.database.session() as session:
        moment = now_in(session)
        expired = or_(Suggestion.lease_until.is_(None), Suggestion.lease_until < moment)
        rows = list(
            session.scalars(
                select(Suggestion)
                .where(
                    Suggestion.id.in_(list(ids)),
                    Suggestion.state == SuggestionState.DONE,
                    Suggestion.delivery.in_((Delivery.PUSH, Delivery.PUSHING)),
                    expired,
                )
                .order_by(Suggestion.id)
                .with_for_update()
            )
        )
        # Marked before and not settled: the process that sent it died, or the answer was lost.
        doubtful = {row.id for row in rows if row.delivery == Delivery.PUSHING}
        for row in rows:
            row.delivery = Delivery.PUSHING
            row.lease_until = moment + timedelta(seconds=services.settings.lease_s)
    return rows, doubtful


def _arrived(client: LabelStudio, row: Suggestion) -> bool:
    """Whether Label Studio already holds this prediction: one with these very regions.

    One without regions is like any other of its version without regions.
    """
    stored = client.predictions(row.task_id) if row.task_id is not None else []
    regions = frozenset(str(region.get("id")) for region in row.result or [])
    return any(
        prediction.model_version == row.model_version and prediction.region_ids == regions
        for prediction in stored
    )


@retried
def _settle(
    services: Services, ids: Sequence[str], delivery: Delivery, error: str | None = None
) -> None:
    with services.database.session() as session:
        rows = session.scalars(
            select(Suggestion)
            .where(Suggestion.id.in_(ids))
            .order_by(Suggestion.id)
            .with_for_update()
        )
        for row in rows:
            row.delivery, row.active_key = delivery, None
            if delivery == Delivery.DELIVERED:
                # In the transaction that frees the key: whoever finds it free finds this.
                row.delivered_at = now_in(session)
            row.lease_until, row.error = None, error
            row.task_data = needed_later(row.task_data)


def _postpone(services: Services, rows: list[Suggestion], error: LabelStudioError) -> None:
    """Try again later, and say why it waits."""
    with services.database.session() as session:
        moment = now_in(session)
        for row in sorted(rows, key=lambda row: row.id):
            # Still marked as being sent: the answer may be lost while the prediction arrived.
            session.execute(
                update(Suggestion)
                .where(Suggestion.id == row.id, Suggestion.delivery == Delivery.PUSHING)
                .values(lease_until=moment + _pause(row, moment), error=f"waits: {error}")
            )


def _hold(services: Services, row: Suggestion) -> None:
    """Look again soon: the prediction that this one replaces is on its way."""
    with services.database.session() as session:
        session.execute(
            update(Suggestion)
            .where(Suggestion.id == row.id, Suggestion.delivery == Delivery.PUSHING)
            .values(lease_until=now_in(session) + timedelta(seconds=WAIT_S))
        )


def _pause(row: Suggestion, moment: datetime) -> timedelta:
    age = moment - (row.finished_at or moment)
    longest = timedelta(seconds=LONGEST_PAUSE_S)
    return min(max(timedelta(seconds=RETRY_LATER_S), age / 10), longest)
