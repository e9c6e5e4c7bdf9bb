"""Predictions reach Label Studio exactly once, whatever it answers meanwhile."""

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from backend.predictions.pushing import GIVE_UP_H, push
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


def test_what_waits_for_label_studio_for_a_day_is_given_up_with_the_reason(
    services: Services, label_studio: StandInLabelStudio
) -> None:
    ids = finished_rows(services, [label_studio.add_task(b""), label_studio.add_task(b"")])
    label_studio.down = True
    push(services, ids)
    assert deliveries(services) == {Delivery.PUSHING: 2}
    with services.database.session() as session:
        row = session.get_one(Suggestion, ids[0])
        row.finished_at = now() - timedelta(hours=GIVE_UP_H + 1)
    push_again(services, ids)
    assert deliveries(services) == {Delivery.PUSHING: 1, Delivery.NONE: 1}
    with services.database.reading() as session:
        assert "503" in str(session.get_one(Suggestion, ids[0]).error)
    label_studio.down = False
    push_again(services, ids)
    assert deliveries(services) == {Delivery.DELIVERED: 1, Delivery.NONE: 1}
