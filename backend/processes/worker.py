"""RQ workers: they never fork, so that a model stays loaded, and listen on one queue each."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import Queue, SimpleWorker
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer

from backend.processes.counters import JobOutcome, job_field, publish
from backend.processes.leases import Periodic
from backend.processes.queues import QueueName, queue
from backend.processes.stopping import stopping
from backend.services import Services, use_services

log = logging.getLogger(__name__)

# Seconds between RQ's own clean-up of registries; ours runs every few seconds beside it.
MAINTENANCE_INTERVAL_S = 60
# RQ gives an idle worker this plus a minute before it counts as gone.
WORKER_TTL_S = 60
HEARTBEAT_S = 1.0


class Worker(SimpleWorker):
    """An RQ worker that runs jobs in its own process.

    `SimpleWorker` does not fork, so CUDA is initialised once and the model stays loaded. What a
    fork would protect from is done by other means: rows carry leases, somebody else picks up a
    killed worker's work, and the process is replaced after a number of jobs.
    """

    def __init__(self, services: Services, name: QueueName) -> None:
        self._last_sign_of_life = 0.0
        super().__init__(
            [queue(services.redis, name)],
            connection=services.redis,
            serializer=JSONSerializer,
            worker_ttl=WORKER_TTL_S,
            maintenance_interval=MAINTENANCE_INTERVAL_S,
            log_job_description=False,
        )

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Tell Redis that this worker lives; around a short job once a second is enough."""
        if pipeline is None and timeout is None:
            moment = time.monotonic()
            if moment - self._last_sign_of_life < HEARTBEAT_S:
                return
            self._last_sign_of_life = moment
        super().heartbeat(timeout, pipeline)

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """Do a job and count what becomes of it, for /metrics."""
        publish(self.connection, {job_field(queue.name, JobOutcome.BEGUN): 1})
        done = super().perform_job(job, queue, execution)
        outcome = JobOutcome.FINISHED if done else JobOutcome.FAILED
        publish(self.connection, {job_field(queue.name, outcome): 1})
        return done

    def check_for_suspension(self, burst: bool) -> None:
        """Wait while workers are suspended (`rq suspend`), as far as Redis can say."""
        with _unless_redis_is_away(self.name):
            super().check_for_suspension(burst)

    def run_maintenance_tasks(self) -> None:
        """Clean up RQ's registries, or leave it to the next time while Redis is away."""
        with _unless_redis_is_away(self.name):
            super().run_maintenance_tasks()

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """On SIGTERM: finish the task at hand, give the rest of the job back, then leave."""
        stopping.set()
        # At work it also notes the time in Redis, whose absence is not the job's fault.
        with _unless_redis_is_away(self.name):
            super().request_stop(signum, frame)


@contextmanager
def _unless_redis_is_away(worker: str) -> Iterator[None]:
    """For what can wait: RQ waits for Redis where it takes a job, and ends a worker elsewhere."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as error:
        log.warning("worker %s: Redis does not answer (%s)", worker, type(error).__name__)


def work(
    services: Services,
    name: QueueName,
    recovery: Periodic,
    *,
    burst: bool = False,
    max_jobs: int | None = None,
) -> None:
    """Do a queue's jobs until told to stop (SIGTERM, SIGINT).

    Args:
        services: the process's database and Redis, which its handlers use too.
        name: the queue.
        recovery: runs beside the jobs: it queues again what killed workers left.
        burst: stop when the queue is empty.
        max_jobs: stop after so many, to be replaced by a fresh process.
    """
    use_services(services)
    stopping.clear()
    worker = Worker(services, name)
    # A job may last for hours, and this worker's thread is busy with it: the other one tells Redis
    # that it lives.
    recovery.start_beside(worker.name, worker.heartbeat)
    log.info("worker %s listens on %s", worker.name, name)
    try:
        worker.work(burst=burst, max_jobs=max_jobs, logging_level="WARNING")
    except RedisError:
        # Told to stop while Redis was away, it could not take its leave; Redis forgets it in time.
        if not stopping.is_set():
            raise
    finally:
        recovery.stop()
