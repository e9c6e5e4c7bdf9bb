"""No query on the way of a prediction, or behind a list or page of them, reads the whole table."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, insert

from backend.corrections.baselines import suggestions_of
from backend.predictions import retry
from backend.predictions.leased_rows import claim, put_back, renew
from backend.predictions.pushing import push
from backend.predictions.recover import recover
from backend.predictions.requests import latest_first, request_pushes
from backend.processes.redis_server import RedisServer
from backend.services import Services, open_services
from backend.settings import Settings
from backend.tables import (
    Delivery,
    LabelConfigText,
    Suggestion,
    SuggestionState,
    config_hash,
    now,
)
from backend.web.app import create_app
from backend.web.console.work import work_in_hand
from tests.support.stand_in_label_studio import StandInLabelStudio

CONFIG = '<View><Image name="i" value="$image"/></View>'
PROJECTS, TASKS = 40, 500


def fill(services: Services) -> None:
    """Delivered rows of many projects, as they are after months."""
    began = now() - timedelta(days=100)
    hashed = config_hash(CONFIG)
    rows = [
        {
            "id": f"{project * TASKS + task:032x}",
            "request_id": f"{project * TASKS + task:032x}",
            "project_id": project,
            "task_id": project * TASKS + task,
            "interactive": False,
            "config_hash": hashed,
            "task_data": {},
            "model_version": "tiny",
            "state": SuggestionState.DONE,
            "delivery": Delivery.DELIVERED,
            "attempts": 1,
            "result": [{"id": "r", "value": {"rle": [1, 2, 3] * 20}}],
            "image_hash": f"{task:064x}",
            "created_at": began + timedelta(seconds=task * PROJECTS + project),
            "finished_at": began + timedelta(seconds=task * PROJECTS + project),
        }
        for project in range(1, PROJECTS + 1)
        for task in range(TASKS)
    ]
    with services.database.session() as session:
        session.add(LabelConfigText(hash=hashed, xml=CONFIG))
        session.flush()
        session.execute(insert(Suggestion), rows)
    if services.database.engine.dialect.name == "postgresql":
        # As its autovacuum does. Nobody does so for SQLite, whose planner goes by the indices.
        with services.database.engine.begin() as connection:
            connection.exec_driver_sql("ANALYZE")


@contextmanager
def recorded(services: Services) -> Iterator[dict[str, Any]]:
    """The statements of the block that read or change rows of suggestions, with their values."""
    statements: dict[str, Any] = {}

    def note(_: Any, __: Any, statement: str, values: Any, ___: Any, many: bool) -> None:
        if "suggestions" in statement and not statement.startswith("INSERT"):
            statements[statement] = values[0] if many else values

    event.listen(services.database.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(services.database.engine, "before_cursor_execute", note)


def scans(services: Services, statement: str, values: Any) -> list[str]:
    """The lines of a statement's plan that read the whole table."""
    sqlite = services.database.engine.dialect.name == "sqlite"
    explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
    with services.database.engine.connect() as connection:
        rows = connection.exec_driver_sql(explain + statement, values).all()
        connection.rollback()
    lines = [str(row[-1]) for row in rows]
    if sqlite:
        # Along an index a query may stop early, or never sees the masks.
        return [line for line in lines if "SCAN suggestions" in line and "INDEX" not in line]
    return [line for line in lines if "Seq Scan on suggestions" in line]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_hot_path_reads_all_suggestions(
    redis_server: RedisServer, settings: Settings, request: pytest.FixtureRequest, kind: str
) -> None:
    address = request.getfixturevalue("postgres_database") if kind == "postgresql" else None
    with StandInLabelStudio(CONFIG) as label_studio:
        update = {"label_studio_url": label_studio.url, "database_url": address}
        services = open_services(settings.model_copy(update=update))
        fill(services)
        client = create_app(services).test_client()
        header = {"Authorization": f"Bearer {services.credentials.api_token}"}
        tasks = [{"id": 7 * TASKS + number, "data": {"image": "x"}} for number in range(8)]
        with recorded(services) as statements:
            latest_first(services, 7, tasks)
            (ids,) = request_pushes(services, tasks, 7, CONFIG)
            rows = claim(services, Suggestion, ids)
            renew(services, Suggestion, rows)
            put_back(services, Suggestion, rows[0], wait_s=0)
            label_studio.down = True
            push(services, [f"{7 * TASKS:032x}", *ids])
            recover(services)
            with services.database.reading() as session:
                suggestions_of(session, 7, 7 * TASKS)
                retry.failed_rows(session, 50)
            work_in_hand(services)
            last = f"before={7 * TASKS:032x}"
            for query in ("", "project=7", f"project=7&task={7 * TASKS}", "state=failed", last):
                answer = client.get(f"/api/v1/predictions?{query}", headers=header)
                assert answer.status_code == 200, answer.text
        assert len(statements) >= 15
        found = {
            statement: lines
            for statement, values in statements.items()
            if (lines := scans(services, statement, values))
        }
        services.close()
    assert not found, found


def test_a_failed_task_is_compared_with_its_own_rows_alone(services: Services) -> None:
    """And not with all rows of its project that came after it, however much shorter that looks."""
    fill(services)
    with recorded(services) as statements, services.database.reading() as session:
        retry.failed_rows(session, 50)
        retry.count_failed(session)
    assert len(statements) == 2
    for statement, values in statements.items():
        with services.database.engine.connect() as connection:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
        (line,) = [row[-1] for row in plan if "SEARCH suggestions_1" in row[-1]]
        assert "task_id=?" in line, plan
