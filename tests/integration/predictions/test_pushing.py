"""Predictions reach Label Studio exactly once, whatever it answers meanwhile."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from backend.label_studio.client import LabelStudio
from backend.predictions import pushing
from backend.predictions.pushing import push
from backend.predictions.recover import recover
from backend.processes.counters import COUNTERS_KEY
from backend.services import Services
from backend.tables import Delivery, LabelConfigText, Suggestion, SuggestionState, now
from tests.support.stand_in_label_studio import StandInLabelStudio

CONFIG = "<View/>"


@pytest.fixture
def label_studio(services: Services) -> Iterator[StandInLabelStudio]:
    with StandInLabelStudio(CONFIG) as server:
        services.settings.label_studio_url = server.url
        yield server


def finished_rows(services: Services, task_ids: list[int]) -> list[str]:
    with services.database.session() as session:
        session.add(LabelConfigText(hash="c", xml=CONFIG))
        session.flush()
        rows = [
            Suggestion(
                project_id=StandInLabelStudio.project_id,
                task_id=task_id,
                config_hash="c",
                task_data={},
                model_version="tiny-1",
                state=SuggestionState.DONE,
                delivery=Delivery.PUSH,
                result=[],
                score=0.5,
                finished_at=now(),
            )
            for task_id in task_ids
        ]
        session.add_all(rows)
        session.flush()
        return [row.id for row in rows]


def push_again(services: Services, ids: list[str]) -> None:
    """As `recover` does it when the leases have ended."""
    with services.database.session() as session:
        session.execute(update(Suggestion).values(lease_until=now() - timedelta(seconds=1)))
    push(services, ids)


def deliveries(services: Services) -> Counter[str]:
    with services.database.reading() as session:
        return Counter(session.scalars(select(Suggestion.delivery)))


def arrived(label_studio: StandInLabelStudio) -> Counter[int]:
    return Counter(one["task"] for one in label_studio.predictions.values())


@pytest.mark.parametrize(
    "faults", [["before"], ["after"], ["before", "after", "before"], ["before", "after"]]
)
def test_internal_errors_of_label_studio_lose_nothing_and_double_nothing(
    services: Services, label_studio: StandInLabelStudio, faults: list[str]
) -> None:
    tasks = [label_studio.add_task(b"") for _ in range(5)]
    ids = finished_rows(services, tasks)
    label_studio.faults = list(faults)
    push(services, ids)
    push_again(services, ids)
    assert label_studio.faults == []
    assert arrived(label_studio) == Counter(tasks)
    assert deliveries(services) == {Delivery.DELIVERED: 5}


def test_a_task_that_is_gone_harms_none_of_the_others(
    services: Services, label_studio: StandInLabelStudio
) -> None:
    tasks = [label_studio.add_task(b"") for _ in range(3)]
    push(services, finished_rows(services, [*tasks, 9999]))
    assert arrived(label_studio) == Counter(tasks)
    assert deliveries(services) == {Delivery.DELIVERED: 3, Delivery.NONE: 1}
    # Requests that brought something are timed, one for each task here; those refused are not.
    counted = services.redis.hgetall(COUNTERS_KEY)
    timed = [name for name in counted if name.startswith(b"push_seconds:") and b"sum" not in name]
    assert sum(float(counted[name]) for name in timed) == 3


def test_what_waits_for_label_studio_is_pushed_however_long_it_was_away(
    services: Services, label_studio: StandInLabelStudio
) -> None:
    ids = finished_rows(services, [label_studio.add_task(b""), label_studio.add_task(b"")])
    label_studio.down = True
    push(services, ids)
    with services.database.session() as session:
        row = session.get_one(Suggestion, ids[0])
        row.finished_at = now() - timedelta(days=4)
    push_again(services, ids)
    assert deliveries(services) == {Delivery.PUSHING: 2}
    with services.database.reading() as session:
        old, young = (session.get_one(Suggestion, id_) for id_ in ids)
        assert "503" in str(old.error)
        assert old.lease_until is not None
        assert young.lease_until is not None
        assert old.lease_until - young.lease_until > timedelta(minutes=10), "it is asked less often"
    label_studio.down = False
    push_again(services, ids)
    assert deliveries(services) == {Delivery.DELIVERED: 2}


def region(id_: str) -> dict[str, object]:
    return {"id": id_, "type": "brushlabels", "value": {}}


def test_another_prediction_of_the_same_version_is_not_taken_for_this_one(
    services: Services, label_studio: StandInLabelStudio
) -> None:
    task = label_studio.add_task(b"")
    earlier = {"task": task, "model_version": "tiny-1", "result": [region("a")], "score": 0.1}
    label_studio.predictions[1] = {"id": 1, **earlier}
    (id_,) = finished_rows(services, [task])
    services.database.update(
        Suggestion, Suggestion.id == id_, result=[region("b")], delivery=Delivery.PUSHING
    )
    for _ in range(2):
        push_again(services, [id_])
    held = [one["result"][0]["id"] for one in label_studio.predictions.values()]
    assert held == ["a", "b"]


def test_two_workers_and_a_slow_label_studio_send_each_prediction_once(
    services: Services, label_studio: StandInLabelStudio
) -> None:
    services.settings.lease_s = 1.2
    tasks = [label_studio.add_task(b"") for _ in range(6)]
    ids = finished_rows(services, [*tasks, 9999])
    # One task that is gone: the others are sent one by one, each slower than half a lease.
    label_studio.pause_s = 0.5
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(push, services, ids)
        while not first.done():
            pool.submit(push, services, ids).result()
            time.sleep(0.2)
        first.result()
    assert arrived(label_studio) == Counter(tasks)


@pytest.mark.parametrize("stored", [True, False])
def test_an_answer_that_went_out_is_looked_up_and_sent_where_it_did_not_arrive(
    services: Services, label_studio: StandInLabelStudio, stored: bool
) -> None:
    task = label_studio.add_task(b"")
    (id_,) = finished_rows(services, [task])
    long_ago = now() - timedelta(minutes=5)
    services.database.update(
        Suggestion,
        Suggestion.id == id_,
        result=[region("mine")],
        delivery=Delivery.ANSWERED,
        lease_until=long_ago,
        finished_at=long_ago,
        task_data={"image": "data:image/png;base64,AAAA", "text": "tumor"},
    )
    if stored:
        label_studio.predictions[1] = {
            "id": 1,
            "task": task,
            "model_version": "tiny-1",
            "result": [region("mine")],
        }
    assert recover(services).pushed == 1
    push(services, [id_])
    assert arrived(label_studio) == {task: 1}
    assert deliveries(services) == {Delivery.DELIVERED: 1}
    with services.database.reading() as session:
        kept = session.get_one(Suggestion, id_).task_data
    assert kept == {"text": "tumor"}, "nothing is kept that nobody needs any more"


def test_an_answer_is_left_time_to_arrive(
    services: Services, label_studio: StandInLabelStudio
) -> None:
    (id_,) = finished_rows(services, [label_studio.add_task(b"")])
    services.database.update(
        Suggestion,
        Suggestion.id == id_,
        delivery=Delivery.ANSWERED,
        lease_until=now() + timedelta(seconds=20),
    )
    assert recover(services).pushed == 0
    assert deliveries(services) == {Delivery.ANSWERED: 1}


def test_a_worker_that_was_halted_for_longer_than_its_lease_sends_nothing(
    services: Services, label_studio: StandInLabelStudio
) -> None:
    task = label_studio.add_task(b"")
    (id_,) = finished_rows(services, [task])
    rows, _ = pushing._claim(services, [id_])
    halted = pushing.Lease(services, rows)
    push_again(services, [id_])
    with LabelStudio.from_settings(services.settings) as client:
        pushing._push(services, client, halted, rows, doubtful=set())
    assert arrived(label_studio) == {task: 1}


def test_without_a_token_predictions_wait_quietly(services: Services) -> None:
    ids = finished_rows(services, [1])
    services.settings.label_studio_api_key = None
    push(services, ids)
    assert deliveries(services) == {Delivery.PUSH: 1}
