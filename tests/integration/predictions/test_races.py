"""Requests and workers that meet in the database, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import OperationalError

from backend import tables
from backend.database import now_in, retried
from backend.predictions import jobs
from backend.predictions.leased_rows import claim, put_back, renew
from backend.predictions.requests import PredictRequest, predict, request_pushes
from backend.processes.queues import wake
from backend.processes.redis_server import RedisServer
from backend.services import Services, open_services
from backend.settings import Settings
from backend.tables import (
    Delivery,
    Suggestion,
    SuggestionState,
    new_id,
)
from tests.support.chart import CHART, one, rendered
from tests.support.waiting import wait_until

TASKS = 40


@pytest.fixture(params=["sqlite", "postgresql"])
def services(
    request: pytest.FixtureRequest, data_dir: Path, redis_server: RedisServer
) -> Iterator[Services]:
    settings = Settings(data_dir=data_dir, label_studio_api_key="0" * 40)
    if request.param == "postgresql":
        address = request.getfixturevalue("postgres_database")
        settings = settings.model_copy(update={"database_url": address})
    opened = open_services(settings)
    yield opened
    opened.close()


def rows(services: Services) -> int:
    with services.database.reading() as session:
        return session.scalar(select(func.count()).select_from(Suggestion)) or 0


def test_requests_for_the_same_tasks_in_opposite_orders(services: Services) -> None:
    tasks = [{"id": id_, "data": {"image": f"/data/{id_}.png"}} for id_ in range(1, TASKS + 1)]

    def ask(backwards: bool) -> list[str]:
        ordered = tasks[::-1] if backwards else tasks
        (ids,) = request_pushes(services, ordered, 7, "<View/>")
        return ids[::-1] if backwards else ids

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [False, True] * 12))
    assert rows(services) == TASKS, "one row a task"
    assert all(ids == answers[0] for ids in answers)


def test_a_batch_claimed_by_several_workers_in_any_order_has_one_owner_a_row(
    services: Services,
) -> None:
    tasks = [{"id": id_, "data": {}} for id_ in range(1, TASKS + 1)]
    (ids,) = request_pushes(services, tasks, 7, "<View/>")
    with ThreadPoolExecutor(8) as pool:
        claimed = list(
            pool.map(
                lambda turn: claim(services, Suggestion, ids[:: 1 - 2 * (turn % 2)]), range(16)
            )
        )
    assert sorted(row.id for taken in claimed for row in taken) == sorted(ids)


@pytest.mark.parametrize("services", ["postgresql"], indirect=True)
def test_leases_follow_the_clock_of_the_database(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ids,) = request_pushes(services, [{"id": 1, "data": {}}], 7, "<View/>")
    early = tables.now() - timedelta(seconds=60)
    for module in (tables, jobs):
        monkeypatch.setattr(module, "now", lambda: early)
    (row,) = claim(services, Suggestion, ids)
    with services.database.reading() as session:
        left = session.get_one(Suggestion, row.id).lease_until - now_in(session)
    lease = timedelta(seconds=services.settings.lease_s)
    assert lease - timedelta(seconds=10) < left <= lease, "not shortened by this machine's clock"


def test_a_worker_that_overslept_changes_nothing_of_the_next_ones_row(services: Services) -> None:
    (ids,) = request_pushes(services, [{"id": 1, "data": {}}], 7, "<View/>")
    (slow,) = claim(services, Suggestion, ids)
    with services.database.session() as session:
        session.execute(update(Suggestion).values(lease_until=tables.now() - timedelta(seconds=1)))
    (quick,) = claim(services, Suggestion, ids)
    renew(services, Suggestion, [slow])
    jobs._store(services, slow, state=SuggestionState.FAILED, error="too late")
    put_back(services, Suggestion, slow, wait_s=0)
    with services.database.reading() as session:
        row = session.get_one(Suggestion, ids[0])
    assert (row.state, row.attempts) == (SuggestionState.RUNNING, 2)
    assert row.lease_until == quick.lease_until


@pytest.mark.parametrize("services", ["postgresql"], indirect=True)
def test_a_transaction_that_was_ended_for_another_is_tried_again(services: Services) -> None:
    """Two transactions that lock two rows in opposite orders, each after the other's first."""
    (ids,) = request_pushes(services, [{"id": 1, "data": {}}, {"id": 2, "data": {}}], 7, "<View/>")
    tried = []

    @retried
    def change(first: str, second: str, name: str) -> None:
        tried.append(name)
        with services.database.session() as session:
            for id_ in (first, second):
                session.execute(
                    update(Suggestion).where(Suggestion.id == id_).values(error=new_id())
                )
                session.execute(select(func.pg_sleep(0.3)))

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(change, *ids, "a"), pool.submit(change, *ids[::-1], "b")]
        for call in both:
            call.result()
    assert len(tried) == 3, "one of the two had to begin again"


def test_other_errors_of_the_database_are_not_tried_again(services: Services) -> None:
    tried = []

    @retried
    def fail() -> None:
        tried.append(1)
        raise OperationalError("SELECT 1", {}, Exception("disk full"))

    with pytest.raises(OperationalError):
        fail()
    assert len(tried) == 1


def test_who_asks_again_before_an_answer_arrived_gets_the_same_prediction(
    services: Services,
) -> None:
    services.settings.predict_budget_s = 0.1
    asked = PredictRequest([{"id": 1, "data": {"image": "/data/1.png"}}], 7, "<View/>")
    assert predict(services, asked).errors
    with services.database.session() as session:
        result = [{"id": "mine"}]
        session.execute(update(Suggestion).values(state=SuggestionState.DONE, result=result))
    answers = [predict(services, asked).predictions for _ in range(2)]
    assert [one["result"] for (one,) in answers] == [result, result]
    assert rows(services) == 1, "two would both be brought to Label Studio"
    with services.database.reading() as session:
        assert session.scalars(select(Suggestion.delivery)).all() == [Delivery.ANSWERED]


def test_of_two_requests_at_once_one_brings_the_prediction(services: Services) -> None:
    asked = PredictRequest([{"id": 1, "data": {"image": "/data/1.png"}}], 7, "<View/>")
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(predict, services, asked) for _ in range(2)]
        wait_until(lambda: services.redis.info("clients")["blocked_clients"] == 2)
        with services.database.session() as session:
            result = [{"id": "mine"}]
            session.execute(update(Suggestion).values(state=SuggestionState.DONE, result=result))
            (row,) = session.scalars(select(Suggestion))
        # As a worker does: the request that made the row answers first, the other one looks later.
        wake(services.redis, [row.request_id or ""])
        answers = [request.result() for request in waiting]
    brought = [answer for answer in answers if answer.predictions]
    (left,) = [answer for answer in answers if not answer.predictions]
    assert len(brought) == 1, "Label Studio would store both"
    assert left.errors == ["another request is bringing these predictions"]


def test_of_a_task_only_what_its_prediction_needs_is_stored(services: Services) -> None:
    config = '<View><Image name="i" value="$scans[0].url"/></View>'
    data = {"scans": [{"url": "data:,x"}], "patient": "Ada", "prompts": "tumor"}
    (ids,) = request_pushes(services, [{"id": 1, "data": data}], 7, config)
    (row,) = claim(services, Suggestion, ids)
    assert row.task_data == {**data, "patient": None}
    jobs._store(services, row, state=SuggestionState.DONE, result=[])
    with services.database.reading() as session:
        assert session.get_one(Suggestion, row.id).task_data == {"prompts": "tumor"}


@pytest.mark.parametrize("services", ["postgresql"], indirect=True)
def test_the_chart_scales_by_what_is_unfinished_also_when_it_is_taken(services: Services) -> None:
    scaled = one(rendered(CHART / "examples" / "gpu.yaml"), "ScaledObject", "gpu")
    query = text(scaled["spec"]["triggers"][0]["metadata"]["query"])
    (ids,) = request_pushes(services, [{"id": n, "data": {}} for n in range(5)], 7, "<View/>")

    def unfinished() -> int | None:
        with services.database.reading() as session:
            return session.scalar(query)

    assert unfinished() == 5
    taken = claim(services, Suggestion, ids[:3])
    assert unfinished() == 5, "a worker is at work on them"
    for row, state in zip(taken, (SuggestionState.DONE, SuggestionState.FAILED), strict=False):
        jobs._store(services, row, state=state)
    assert unfinished() == 3
