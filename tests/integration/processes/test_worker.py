"""A worker's end, and what it does while Redis is away."""

import signal
from contextlib import nullcontext

import pytest
from rq.exceptions import StopRequested
from rq.worker import WorkerStatus

from backend.processes.health import worker_signs
from backend.processes.queues import QueueName
from backend.processes.redis_server import RedisServer
from backend.processes.stopping import stopping
from backend.processes.worker import Worker
from backend.services import Services
from tests.support.processes import StartWorker
from tests.support.waiting import wait_until


def test_a_worker_that_is_told_to_stop_while_redis_is_away_ends_well(
    services: Services, start_worker: StartWorker, redis_server: RedisServer
) -> None:
    worker = start_worker("ingest")
    wait_until(lambda: worker_signs(services.redis))
    redis_server.stop()
    # It has noticed, and waits between two attempts.
    wait_until(lambda: "could not connect to Redis" in worker.log_path.read_text())
    worker.process.terminate()
    assert worker.process.wait(240) == 0, worker.log_path.read_text()


def test_a_worker_that_loses_redis_before_it_takes_a_job_waits_for_it(
    services: Services, redis_server: RedisServer
) -> None:
    worker = Worker(services, QueueName.INGEST)
    redis_server.stop()
    worker.check_for_suspension(burst=False)
    worker.run_maintenance_tasks()
    redis_server.start()
    assert worker.should_run_maintenance_tasks, "it is to be done when Redis is back"


@pytest.mark.parametrize("state", [WorkerStatus.IDLE, WorkerStatus.BUSY])
def test_a_stop_while_redis_is_away_leaves_the_loop_and_not_the_job(
    services: Services, redis_server: RedisServer, state: WorkerStatus
) -> None:
    worker = Worker(services, QueueName.INGEST)
    worker.set_state(state)
    redis_server.stop()
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    leaves = pytest.raises(StopRequested) if state == WorkerStatus.IDLE else nullcontext()
    try:
        with leaves:
            worker.request_stop(signal.SIGTERM, None)
        assert stopping.is_set()
    finally:
        stopping.clear()
        for number, handler in kept.items():
            signal.signal(number, handler)
