"""The workers of predictions and corrections: queue `gpu` with the model loaded, queue `ingest`."""

from backend.predictions.recover import recovery
from backend.processes.memory import limit_memory
from backend.processes.queues import QueueName
from backend.processes.spinning import spin_briefly
from backend.processes.worker import work
from backend.services import Services, use_services


def run_worker(services: Services, name: QueueName, *, burst: bool = False) -> None:
    """Work until told to stop, or until the worker has done its share of jobs.

    Args:
        services: the process's database and Redis.
        name: the queue; for `gpu` the model is loaded before the first job.
        burst: stop when the queue is empty.

    Raises:
        SettingsError: the worker takes more memory than it may use before its first job.
    """
    use_services(services)
    if name == QueueName.GPU:
        spin_briefly()
        from backend.predictions.inference import current_inference

        current_inference()
    # Afterwards: what libraries and model take is no task's fault, and is known only then.
    limit_memory(services.settings)
    max_jobs = services.settings.worker_max_jobs
    work(services, name, recovery(services), burst=burst, max_jobs=max_jobs)
