"""What starts a run starts it once, whoever is killed or away meanwhile."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, update

from backend.corrections.events import receive
from backend.processes.queues import QueueName, queue
from backend.processes.redis_server import RedisServer
from backend.services import Services
from backend.settings import Settings
from backend.tables import Event, TrainingPolicy, now
from backend.training import examples, runs, trainer, triggers
from backend.training.tables import RunState, TrainingRun, Trigger
from tests.support.training_stage import TrainingStage

BUTTON = {"action": "START_TRAINING", "project": {"id": 7}}


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@contextmanager
def killed_at_commit(services: Services, number: int) -> Iterator[None]:
    """The process ends right before the commit of so many that the block makes."""
    left = number

    def tick(_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    event.listen(services.database.engine, "commit", tick)
    try:
        with pytest.raises(Killed):
            yield
    finally:
        event.remove(services.database.engine, "commit", tick)


def all_runs(services: Services, project_id: int = 7) -> list[tuple[str, str]]:
    """State and trigger of a project's runs, oldest first."""
    with services.database.reading() as session:
        rows = runs.list_runs(session, project_id)
        return [(row.state, row.trigger) for row in reversed(rows)]


def state_of(services: Services, event_id: str) -> str:
    with services.database.reading() as session:
        return session.get_one(Event, event_id).state


def choose(services: Services, project_id: int = 7, **choices: Any) -> None:
    with services.database.session() as session:
        session.merge(TrainingPolicy(project_id=project_id, **choices))


def train_and_fail(services: Services, run_id: str) -> None:
    """A run that makes its dataset version and fails then."""
    assert runs.claim(services, run_id)
    with services.database.session() as session:
        examples.take(session, session.get_one(TrainingRun, run_id))
    runs.finish(services, run_id, RunState.FAILED, "on purpose")


def test_the_button_starts_one_run_however_often_its_event_is_handled(
    stage: TrainingStage,
) -> None:
    services = stage.services
    event_id = receive(services, BUTTON)
    triggers.ingest_events([event_id])
    assert state_of(services, event_id) == "done"
    (run_id,) = queue(services.redis, QueueName.TRAIN).jobs[0].args[0]
    runs.claim(services, run_id)
    runs.finish(services, run_id, RunState.DONE)
    triggers.ingest_events([event_id])
    assert all_runs(services) == [("done", "button")]


def test_the_button_needs_no_token_and_no_label_studio(stage: TrainingStage) -> None:
    services = stage.services
    services.settings.label_studio_api_key = None
    stage.label_studio.down = True
    button, other = receive(services, BUTTON), receive(services, {"action": "ANNOTATION_CREATED"})
    for _ in range(3):
        triggers.ingest_events([other, button])
    assert all_runs(services) == [("queued", "button")]
    assert (state_of(services, button), state_of(services, other)) == ("done", "new")


def test_a_worker_killed_at_the_button_leaves_event_and_run_or_neither(
    stage: TrainingStage,
) -> None:
    services = stage.services
    event_id = receive(services, BUTTON)
    with killed_at_commit(services, 1):
        triggers.ingest_events([event_id])
    assert (state_of(services, event_id), all_runs(services)) == ("new", [])
    triggers.ingest_events([event_id])
    # Killed after the commit, before the job is queued: recovery queues it.
    queue(services.redis, QueueName.TRAIN).empty()
    triggers.ingest_events([event_id])
    assert queue(services.redis, QueueName.TRAIN).count == 0
    assert trainer.recover(services) == 1
    assert (state_of(services, event_id), all_runs(services)) == ("done", [("queued", "button")])


def test_a_click_during_a_run_is_kept_whenever_the_trainer_is_killed(
    stage: TrainingStage,
) -> None:
    services = stage.services
    id_ = runs.request_run(services, 7, Trigger.COMMAND).run_id
    runs.claim(services, id_)
    services.database.update(TrainingRun, TrainingRun.id == id_, dataset_id=1)
    triggers.ingest_events([receive(services, BUTTON)])
    with killed_at_commit(services, 1):
        runs.finish(services, id_, RunState.DONE)
    assert all_runs(services) == [("running", "command")]
    runs.finish(services, id_, RunState.DONE)
    assert all_runs(services) == [("done", "command"), ("queued", "button")]


def test_enough_corrections_start_one_run(stage: TrainingStage) -> None:
    services = stage.services
    choose(services, after_corrections=3)
    stage.annotate(train=2)
    assert triggers.start_due(services) == []
    stage.annotate(train=1)
    (requested,) = triggers.start_due(services)
    assert requested.new
    assert triggers.start_due(services) == []
    assert all_runs(services) == [("queued", "corrections")]


def test_a_failed_run_has_learned_nothing(stage: TrainingStage) -> None:
    services = stage.services
    choose(services, after_corrections=3)
    stage.annotate(train=3)
    (first,) = triggers.start_due(services)
    train_and_fail(services, first.run_id)
    with services.database.reading() as session:
        assert runs.new_corrections(session, 7) == 3
    assert triggers.start_due(services) == [], "not at once: it may fail for the same reason"
    (second,) = triggers.start_due(services, now() + timedelta(minutes=61))
    train_and_fail(services, second.run_id)
    assert triggers.start_due(services, now() + timedelta(minutes=61)) == []
    assert len(triggers.start_due(services, now() + timedelta(minutes=121))) == 1


def test_the_schedule_starts_what_a_failed_run_has_not_learned(stage: TrainingStage) -> None:
    services = stage.services
    stage.annotate(train=2)
    train_and_fail(services, runs.request_run(services, 7, Trigger.COMMAND).run_id)
    choose(services, schedule="0 3 * * *")
    assert triggers.start_due(services) == []
    tomorrow = now() + timedelta(days=1)
    with killed_at_commit(services, 1):
        triggers.start_due(services, tomorrow)
    assert len(triggers.start_due(services, tomorrow)) == 1
    assert triggers.start_due(services, tomorrow) == []
    assert all_runs(services) == [("failed", "command"), ("queued", "schedule")]


def test_a_schedule_that_never_comes_due_keeps_no_other_project_waiting(
    stage: TrainingStage, caplog: pytest.LogCaptureFixture
) -> None:
    services = stage.services
    stage.annotate(train=1)
    choose(services, schedule="0 0 30 2 *", scheduled_at=now())
    with caplog.at_level(logging.ERROR):
        assert triggers.start_due(services) == []
    assert "project 7 never comes due" in caplog.text
    choose(services, schedule="0 0 30 2 *", scheduled_at=now(), after_corrections=1)
    with services.database.session() as session:
        session.execute(update(TrainingPolicy).values(schedule=""))
    assert len(triggers.start_due(services)) == 1


@pytest.mark.parametrize("line", ["0 0 30 2 *", "0 0 31 4,6 *", "at dawn", "61 * * * *", "@reboot"])
def test_a_schedule_is_checked_where_it_is_set(data_dir: Any, line: str) -> None:
    with pytest.raises(ValueError, match="cron line"):
        Settings(data_dir=data_dir, train_schedule=line)


def test_a_run_that_waits_is_queued_once(redis_server: RedisServer, stage: TrainingStage) -> None:
    services = stage.services
    for _ in range(3):
        runs.request_run(services, 7, Trigger.COMMAND)
    assert queue(services.redis, QueueName.TRAIN).count == 1
    with services.database.reading() as session:
        assert len(session.scalars(select(TrainingRun)).all()) == 1
