"""Health checks of this machine's processes: `python -m backend.processes.health web|gpu|ingest`.

Exit status 0 when it is. The web process must answer `/health`; a worker must be registered in
Redis, which it is once its model is loaded and as long as it gives signs of life.
"""

import socket
import sys
import urllib.request

from backend.errors import BackendError, QueueError
from backend.settings import Settings, get_settings

TIMEOUT_S = 3


def check(process: str, settings: Settings) -> str:
    """Return a sentence that says that a process of this machine is at work.

    Args:
        process: `web`, or the name of a worker's queue.
        settings: where the web process listens, and which Redis the workers use.

    Raises:
        OSError: the web process does not answer.
        QueueError: Redis does not answer, or no worker of this machine listens on the queue.
    """
    if process == "web":
        with urllib.request.urlopen(
            f"http://127.0.0.1:{settings.port}/health", timeout=TIMEOUT_S
        ) as answer:
            return f"the web process answers with status {answer.status}"
    return f"worker {_worker(process, settings)} listens on {process}"


def _worker(queue_name: str, settings: Settings) -> str:
    from redis.exceptions import RedisError
    from rq import Worker

    from backend.processes.queues import QueueName, queue
    from backend.services import connect_redis

    redis = connect_redis(settings)
    try:
        # RQ forgets a worker that gave no sign of life, so those it lists are alive.
        workers = Worker.all(queue=queue(redis, QueueName(queue_name)))
    except RedisError as error:
        raise QueueError(f"Redis does not answer ({type(error).__name__})") from error
    finally:
        redis.close()
    host = socket.gethostname()
    here = [worker.name for worker in workers if worker.hostname == host]
    if not here:
        raise QueueError(f"no worker of this machine listens on {queue_name}")
    return here[0]


def main() -> None:
    """Check the process named on the command line."""
    try:
        print(check(sys.argv[1], get_settings()))  # noqa: T201
    except (BackendError, OSError) as error:
        sys.exit(f"not healthy: {error}")


if __name__ == "__main__":
    main()
