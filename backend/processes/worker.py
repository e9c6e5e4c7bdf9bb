"""RQ workers that keep the model warm: they never fork, and listen on one queue each."""

import logging
import time
from types import FrameType
from typing import Any

from rq import SimpleWorker
from rq.serializers import JSONSerializer

from backend.predictions.jobs import stopping
from backend.predictions.recover import Reconciler
from backend.processes.queues import QueueName, queue
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
    fork would protect from is done by other means: rows carry leases, a killed worker's work is
    picked up by `backend.predictions.recover`, and the process is replaced after a number of jobs.
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

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """On SIGTERM: finish the task at hand, give the rest of the job back, then leave."""
        stopping.set()
        super().request_stop(signum, frame)


def run_worker(services: Services, name: QueueName, *, burst: bool = False) -> None:
    """Work until told to stop (SIGTERM, SIGINT) or until the worker has done its share of jobs.

    Args:
        services: the process's database and Redis.
        name: the queue; `gpu` loads the model before the first job.
        burst: stop when the queue is empty.
    """
    use_services(services)
    stopping.clear()
    if name == QueueName.GPU:
        from backend.predictions.inference import current_inference

        current_inference()
    reconciler = Reconciler(services)
    reconciler.start()
    worker = Worker(services, name)
    log.info("worker %s listens on %s", worker.name, name)
    try:
        worker.work(
            burst=burst, max_jobs=services.settings.worker_max_jobs, logging_level="WARNING"
        )
    finally:
        reconciler.stop()
