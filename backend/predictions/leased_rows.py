"""Leased rows: predictions, agents' runs and pre-annotations have one living worker each.

A worker claims a row, renews its lease while it is at work, and stores what came of it. A row whose
lease ran out may be claimed by another worker; every claim counts an attempt, so that the first one
can tell that the row is no longer its own.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, and_, or_, update

from backend.database import now_in, retried
from backend.predictions.tables import Preannotation
from backend.services import Services
from backend.tables import AgentRun, Suggestion, SuggestionState

Row = TypeVar("Row", Suggestion, AgentRun, Preannotation)


@retried
def claim(services: Services, table: type[Row], ids: Sequence[str]) -> list[Row]:
    """Take the rows that are free, in the given order.

    One statement decides: of two workers with the same job, the database lets the second one see
    the state that the first one wrote.
    """
    with services.database.session() as session:
        moment = now_in(session)
        free = or_(
            table.state == SuggestionState.QUEUED,
            (table.state == SuggestionState.RUNNING) & (table.lease_until < moment),
        )
        taken = session.scalars(
            update(table)
            .where(table.id.in_(list(ids)), free)
            .values(
                state=SuggestionState.RUNNING,
                attempts=table.attempts + 1,
                lease_until=moment + timedelta(seconds=services.settings.lease_s),
            )
            .returning(table)
            .execution_options(synchronize_session=False)
        )
        rows = {row.id: row for row in taken}
        session.expunge_all()
    return [rows[id_] for id_ in ids if id_ in rows]


def ours(table: type[Row], *rows: Row) -> ColumnElement[bool]:
    """Rows that no other worker has taken since they were claimed."""
    return and_(
        table.state == SuggestionState.RUNNING,
        or_(*((table.id == row.id) & (table.attempts == row.attempts) for row in rows)),
    )


def renew(services: Services, table: type[Row], rows: Sequence[Row]) -> None:
    """Keep the rows ours: a worker that died stops renewing, and `recover` sees it."""
    if not rows:
        return
    with services.database.session() as session:
        until = now_in(session) + timedelta(seconds=services.settings.lease_s)
        session.execute(
            update(table)
            .where(ours(table, *rows))
            .values(lease_until=until)
            .execution_options(synchronize_session=False)
        )


def put_back(
    services: Services, table: type[Row], row: Row, *, wait_s: float, **values: Any
) -> None:
    """Queue a row again; neither a stop nor a server that is away is the task's fault.

    Args:
        services, table, row: which one; it stays as it is where somebody else took it.
        wait_s: seconds until its next turn.
        values: further columns, such as the reason.
    """
    with services.database.session() as session:
        session.execute(
            update(table)
            .where(ours(table, row))
            .values(
                state=SuggestionState.QUEUED,
                attempts=table.attempts - 1,
                lease_until=now_in(session) + timedelta(seconds=wait_s),
                **values,
            )
            .execution_options(synchronize_session=False)
        )
