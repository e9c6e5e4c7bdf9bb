"""Runs and roll-outs outlast a Label Studio that is away, and trainers that are restarted."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from backend.processes.queues import QueueName, queue
from backend.processes.stopping import stopping
from backend.services import Services
from backend.tables import Promotion, now
from backend.training import roll_out, runs, trainer
from backend.training.run_log import log_of
from backend.training.tables import RunState, TrainingRun, Trigger
from tests.support.training_stage import TrainingStage
from tests.support.waiting import wait_until


def run_of(services: Services, id_: str) -> TrainingRun:
    with services.database.reading() as session:
        return session.get_one(TrainingRun, id_)


@contextmanager
def training(services: Services, id_: str) -> Iterator[threading.Thread]:
    """A trainer at work on a run, in a thread."""
    thread = threading.Thread(target=trainer.train_run, args=(services, id_))
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(trainer, "LONGEST_PAUSE_S", 0.2)


@pytest.fixture
def told_to_stop() -> Iterator[threading.Event]:
    yield stopping
    stopping.clear()


@pytest.mark.usefixtures("short_pauses")
def test_a_run_waits_for_label_studio_and_ends_well(stage: TrainingStage) -> None:
    services = stage.services
    stage.annotate(train=2, val=1)
    id_ = runs.request_run(services, 7, Trigger.COMMAND, steps=2).run_id
    stage.label_studio.down = True
    with training(services, id_):
        wait_until(lambda: "waiting for Label Studio" in (run_of(services, id_).error or ""))
        waiting = run_of(services, id_)
        assert (waiting.state, waiting.attempts) == (RunState.RUNNING, 0)
        stage.label_studio.down = False
    ended = run_of(services, id_)
    assert (ended.state, ended.error) == (RunState.DONE, None)
    lines = [line.text for line in log_of(services.redis, id_)]
    assert any(line.startswith("waiting for Label Studio") for line in lines)
    assert lines.count("collects corrections") == 1
    assert lines[-1] == "done"


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("order", ["cancel", "stop"])
def test_a_run_that_waits_can_be_ended(
    stage: TrainingStage, told_to_stop: threading.Event, order: str
) -> None:
    services = stage.services
    stage.annotate(train=2)
    id_ = runs.request_run(services, 7, Trigger.COMMAND, steps=2).run_id
    stage.label_studio.down = True
    with training(services, id_):
        wait_until(lambda: run_of(services, id_).error is not None)
        if order == "cancel":
            runs.cancel(services, id_)
        else:
            told_to_stop.set()
    ended = run_of(services, id_).state
    assert ended == (RunState.CANCELLED if order == "cancel" else RunState.QUEUED)


def test_restarts_of_the_trainer_are_no_attempts(
    stage: TrainingStage, told_to_stop: threading.Event
) -> None:
    services = stage.services
    stage.annotate(train=2)
    id_ = runs.request_run(services, 7, Trigger.COMMAND, steps=2).run_id
    told_to_stop.set()
    for _ in range(4):
        trainer.train_run(services, id_)
        assert (run_of(services, id_).state, run_of(services, id_).attempts) == ("queued", 0)
    # Killed before it came to an end, after it was told to stop.
    for _ in range(2 * runs.MOST_DEATHS):
        assert runs.claim(services, id_)
        runs.renew(services, id_)
        services.database.update(TrainingRun, lease_until=now())
    told_to_stop.clear()
    trainer.train_run(services, id_)
    assert run_of(services, id_).state == RunState.DONE


def test_a_run_that_kills_its_trainer_again_and_again_is_given_up(stage: TrainingStage) -> None:
    services = stage.services
    id_ = runs.request_run(services, 7, Trigger.COMMAND).run_id
    for _ in range(runs.MOST_DEATHS):
        assert runs.claim(services, id_)
        services.database.update(TrainingRun, lease_until=now())
    trainer.train_run(services, id_)
    ended = run_of(services, id_)
    assert ended.state == RunState.FAILED
    assert f"died {runs.MOST_DEATHS} times" in (ended.error or "")
    (line,) = log_of(services.redis, id_)
    assert line.text == f"failed: {ended.error}"


def test_a_step_beyond_the_last_trainer_s_counts_as_progress(stage: TrainingStage) -> None:
    services = stage.services
    stage.annotate(train=2)
    id_ = runs.request_run(services, 7, Trigger.COMMAND, steps=2).run_id
    services.database.update(TrainingRun, attempts=runs.MOST_DEATHS - 1)
    trainer.train_run(services, id_)
    assert (run_of(services, id_).state, run_of(services, id_).attempts) == (RunState.DONE, 0)


@pytest.mark.parametrize(
    ("attempts", "minutes", "its_turn"),
    [(1, 1, True), (5, 1, False), (20, 1, False), (20, 16, True), (10**6, 16, True)],
)
def test_a_roll_out_is_tried_until_label_studio_is_told(
    stage: TrainingStage, attempts: int, minutes: int, its_turn: bool
) -> None:
    services = stage.services
    moment = now() - timedelta(minutes=minutes)
    with services.database.session() as session:
        session.add(
            Promotion(
                project_id=7,
                version="tiny-2",
                previous="tiny-1",
                kind="gate",
                attempts=attempts,
                created_at=moment - timedelta(days=2),
                tried_at=moment,
            )
        )
    for _ in range(2):
        roll_out.enqueue_pending(services)
    assert queue(services.redis, QueueName.INGEST).count == (1 if its_turn else 0)
