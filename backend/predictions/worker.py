"""The workers of predictions and corrections: queue `gpu` with the model loaded, queue `ingest`."""

from backend.errors import SettingsError
from backend.predictions.recover import recovery
from backend.processes.memory import limit_memory, ran_out_of_memory
from backend.processes.queues import QueueName
from backend.processes.worker import work
from backend.services import Services, use_services


def run_worker(services: Services, name: QueueName, *, burst: bool = False) -> None:
    """Work until told to stop, or until the worker has done its share of jobs.

    Args:
        services: the process's database and Redis.
        name: the queue; for `gpu` the model is loaded before the first job.
        burst: stop when the queue is empty.

    Raises:
        SettingsError: the model does not fit into the memory that a worker may use.
    """
    use_services(services)
    limit_memory(services.settings)
    if name == QueueName.GPU:
        try:
            from backend.predictions.inference import current_inference

            current_inference()
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            raise SettingsError(
                "the model needs more memory than a worker may use: raise MEDSAM3_WORKER_MEMORY_MB"
            ) from error
    max_jobs = services.settings.worker_max_jobs
    work(services, name, recovery(services), burst=burst, max_jobs=max_jobs)
