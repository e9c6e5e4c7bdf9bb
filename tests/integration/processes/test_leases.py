"""Threads beside a worker's jobs go on, whatever they meet."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from redis import Redis
from rq import Queue

from backend.errors import QueueError
from backend.predictions.recover import recovery
from backend.processes import queues
from backend.processes.health import (
    STUCK_S,
    _thread_key,
    check,
    last_rounds,
    thread_age_s,
)
from backend.processes.leases import Periodic, renewing
from backend.processes.queues import Handler, QueueName, enqueue, queue, waiting_row_ids
from backend.processes.worker import Worker
from backend.services import Services
from tests.support.waiting import wait_until


@contextmanager
def started(thread: Periodic, worker: str = "w") -> Iterator[None]:
    thread.start_beside(worker, lambda: None)
    try:
        yield
    finally:
        thread.stop()
        thread.join()


@pytest.mark.parametrize("error", [ValueError("odd"), KeyError("x"), MemoryError(), OSError(28)])
def test_an_unforeseen_error_ends_neither_the_thread_nor_the_turn_of_others(
    services: Services, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    calls: list[str] = []

    def broken(_: Services) -> None:
        calls.append("broken")
        raise error

    thread = Periodic(
        services, broken, lambda _: calls.append("next"), lock="medsam3:t", every_s=0.02
    )
    with caplog.at_level(logging.WARNING), started(thread):
        wait_until(lambda: calls.count("next") > 2)
        assert thread.is_alive()
    assert calls.count("broken") > 2
    assert type(error).__name__ in caplog.text
    assert "t" not in last_rounds(services.redis), "a round that failed did not go through"
    assert thread_age_s(services.redis, "w") is not None


def test_rounds_say_when_they_last_went_through(services: Services) -> None:
    thread = Periodic(services, lambda _: None, lock="medsam3:t", every_s=0.02)
    with started(thread):
        wait_until(lambda: "t" in last_rounds(services.redis))
    assert last_rounds(services.redis)["t"] >= 0


def test_a_thread_that_ends_all_the_same_ends_its_process(services: Services) -> None:
    told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())

    def leave(_: Services) -> None:
        raise SystemExit

    try:
        thread = Periodic(services, leave, lock="medsam3:t", every_s=0.02)
        with pytest.raises(SystemExit):
            thread.run()
        wait_until(told.is_set)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("error", [ValueError("odd"), OverflowError()])
def test_a_lease_is_renewed_after_an_error_that_nobody_foresaw(error: Exception) -> None:
    calls: list[int] = []

    def renew() -> None:
        calls.append(1)
        raise error

    with renewing(renew, 0.01):
        wait_until(lambda: len(calls) > 2)


def test_foreign_and_damaged_jobs_stand_for_no_rows_and_stop_no_recovery(
    services: Services,
) -> None:
    redis, name = services.redis, QueueName.GPU
    enqueue(redis, name, Handler.PREDICT, ["ours"], job_id="ours")
    Queue(name, connection=redis).enqueue(os.getcwd)  # a pickle
    target = queue(redis, name)
    for number, data in enumerate(
        [b"", b"\x80\x04pickle", b"[1, 2]", b'["f", null, [5], {}]', b'["f", null, [], {}]', b"{}"]
    ):
        redis.hset(f"rq:job:odd{number}", "data", data)
        redis.rpush(target.key, f"odd{number}")
    redis.hset("rq:job:none", "status", "queued")
    redis.set("rq:job:wrong", "no hash")
    redis.rpush(target.key, "none", "wrong", "gone", b"\xff\xfe")
    assert waiting_row_ids(redis, name) == {"ours"}
    with started(recovery(services)):
        wait_until(lambda: "recovery" in last_rounds(redis))


def test_a_queue_is_read_until_the_rows_are_found(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "READ_TOGETHER", 1)
    redis, name = services.redis, QueueName.GPU
    for row in ("first", "second", "third"):
        enqueue(redis, name, Handler.PREDICT, [row], job_id=row)
    assert waiting_row_ids(redis, name, ["second"]) == {"first", "second"}
    assert waiting_row_ids(redis, name, ["gone"]) == {"first", "second", "third"}


def test_a_job_that_waits_is_not_put_on_its_queue_again(services: Services) -> None:
    for _ in range(3):
        enqueue(services.redis, QueueName.INGEST, Handler.PUSH, ["a"], job_id="push-a")
    assert queue(services.redis, QueueName.INGEST).job_ids == ["push-a"]


def test_a_worker_is_healthy_while_its_thread_runs(services: Services) -> None:
    redis = services.redis
    with pytest.raises(QueueError, match="no worker"):
        check("gpu", services.settings)
    worker = Worker(services, QueueName.GPU)
    worker.register_birth()
    assert "has not run yet" in check("gpu", services.settings)
    thread = Periodic(services, lambda _: None, lock="medsam3:t", every_s=0.02)
    with started(thread, worker.name):
        wait_until(lambda: thread_age_s(redis, worker.name) is not None)
    assert "listens on gpu; its recovery ran" in check("gpu", services.settings)
    _age(redis, worker.name, STUCK_S + 1)
    with pytest.raises(QueueError, match="last ran 30"):
        check("gpu", services.settings)


def test_a_worker_gives_signs_of_life_while_a_job_lasts(services: Services) -> None:
    worker = Worker(services, QueueName.TRAIN)
    worker.register_birth()
    services.redis.expire(worker.key, 1)  # as if the job had begun long ago
    thread = Periodic(services, lambda _: None, lock="medsam3:t", every_s=0.02)
    thread.start_beside(worker.name, worker.heartbeat)
    try:
        wait_until(lambda: services.redis.ttl(worker.key) > 60)
    finally:
        thread.stop()
        thread.join()


def _age(redis: Redis, worker: str, seconds: float) -> None:
    redis.set(_thread_key(worker), float(redis.time()[0]) - seconds)
