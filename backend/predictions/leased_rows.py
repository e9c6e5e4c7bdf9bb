"""Leased rows: predictions, agents' runs and pre-annotations have one living worker each.

A worker claims a row, renews its lease while it is at work, and stores what came of it. A row whose
lease ran out may be claimed by another worker; every claim counts an attempt, so that the first one
can tell that the row is no longer its own.
"""

from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Executable, and_, bindparam, or_, update

from backend.database import now_in, retried
from backend.predictions.tables import Preannotation
from backend.services import Services
from backend.tables import AgentRun, Suggestion, SuggestionState, table_of

Row = TypeVar("Row", Suggestion, AgentRun, Preannotation)


@retried
def claim(services: Services, table: type[Row], ids: Sequence[str]) -> list[Row]:
    """Take the rows that are free, in the given order.

    One statement decides: of two workers with the same job, the database lets the second one see
    the state that the first one wrote.
    """
    with services.database.transaction() as connection:
        moment = now_in(connection)
        lease = timedelta(seconds=services.settings.lease_s)
        values = {"free_ids": list(ids), "moment": moment, "until": moment + lease}
        taken = connection.execute(_claiming(table), values).mappings()
        rows = {row["id"]: table(**row) for row in taken}
    return [rows[id_] for id_ in ids if id_ in rows]


@cache
def _claiming(table: type[Row]) -> Executable:
    """The statement of `claim`, made once: an annotator waits for it."""
    columns = table_of(table).c
    free = or_(
        columns.state == SuggestionState.QUEUED,
        (columns.state == SuggestionState.RUNNING) & (columns.lease_until < bindparam("moment")),
    )
    return (
        update(table_of(table))
        .where(columns.id.in_(bindparam("free_ids", expanding=True)), free)
        .values(
            state=SuggestionState.RUNNING,
            attempts=columns.attempts + 1,
            lease_until=bindparam("until"),
        )
        .returning(*columns)
    )


def ours(table: type[Row], *rows: Row) -> ColumnElement[bool]:
    """Rows that no other worker has taken since they were claimed."""
    columns = table_of(table).c
    return and_(
        columns.state == SuggestionState.RUNNING,
        or_(*((columns.id == row.id) & (columns.attempts == row.attempts) for row in rows)),
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
