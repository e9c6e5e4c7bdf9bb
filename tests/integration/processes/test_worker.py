"""A worker's end."""

from backend.processes.health import worker_signs
from backend.processes.redis_server import RedisServer
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
