"""Health checks of this machine's processes: `python -m backend.processes.health web|gpu|ingest`.

Exit status 0 when it is. The web process must answer `/health`; a worker must be registered in
Redis, which it is once its model is loaded and as long as it gives signs of life, and its thread
that recovers what others left must have run within the last minutes.
"""

import socket
import sys
import urllib.request
from dataclasses import dataclass
from datetime import UTC

from redis import Redis

from backend.errors import BackendError, QueueError
from backend.settings import Settings, get_settings

TIMEOUT_S = 3
# A thread that runs every few seconds, and may be busy for a while, counts as stuck after this.
STUCK_S = 300
# When the rounds of recovery, the sync and the pruning last went through, by Redis's clock.
LAST_ROUNDS_KEY = "medsam3:last-rounds"


def note_round(redis: Redis, name: str) -> None:
    """Say that a round of the kind `name` went through, in whichever process."""
    redis.hset(LAST_ROUNDS_KEY, name, _seconds(redis))


def last_rounds(redis: Redis) -> dict[str, float]:
    """Seconds since each kind of round last went through; what never did is not there."""
    from rq.utils import as_text

    moment = _seconds(redis)
    return {
        as_text(name): max(0.0, moment - float(at))
        for name, at in redis.hgetall(LAST_ROUNDS_KEY).items()
    }


def note_thread(redis: Redis, worker: str) -> None:
    """Say that the thread beside a worker's jobs is at work; forgotten a day after its end."""
    redis.set(_thread_key(worker), _seconds(redis), ex=24 * 3600)


def thread_age_s(redis: Redis, worker: str) -> float | None:
    """Seconds since the thread of a worker last ran; None where it never did."""
    at = redis.get(_thread_key(worker))
    return None if at is None else max(0.0, _seconds(redis) - float(at))


@dataclass(frozen=True)
class WorkerSign:
    """A worker that gives signs of life.

    Attributes:
        name: of the worker, made of its machine's name and process id.
        queues: on which it listens.
        state: `idle`, `busy`, ...
        heartbeat_s: seconds since its last sign.
        recovery_s: seconds since the thread beside its jobs last ran; None where it never did.
    """

    name: str
    queues: tuple[str, ...]
    state: str
    heartbeat_s: float
    recovery_s: float | None


def worker_signs(redis: Redis) -> list[WorkerSign]:
    """Every worker of every machine that is alive, by queue; RQ forgets those that are silent.

    Raises:
        QueueError: Redis cannot be reached.
    """
    from redis.exceptions import RedisError
    from rq import Worker

    try:
        moment = _seconds(redis)
        signs = [
            WorkerSign(
                worker.name,
                tuple(worker.queue_names()),
                str(worker.get_state()),
                max(0.0, moment - worker.last_heartbeat.replace(tzinfo=UTC).timestamp()),
                thread_age_s(redis, worker.name),
            )
            for worker in Worker.all(connection=redis)
            if worker.last_heartbeat is not None
        ]
    except RedisError as error:
        raise QueueError(f"Redis does not answer ({type(error).__name__})") from error
    return sorted(signs, key=lambda sign: (sign.queues, sign.name))


def _seconds(redis: Redis) -> float:
    # The machines of several workers may disagree about the time; Redis is one.
    seconds, microseconds = redis.time()
    return float(seconds) + float(microseconds) / 1e6


def _thread_key(worker: str) -> str:
    return f"medsam3:thread:{worker}"


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
    return _worker(process, settings)


def _worker(queue_name: str, settings: Settings) -> str:
    from redis.exceptions import RedisError
    from rq import Worker

    from backend.processes.queues import QueueName, queue
    from backend.services import connect_redis

    redis = connect_redis(settings)
    try:
        # RQ forgets a worker that gave no sign of life, so those it lists are alive.
        workers = Worker.all(queue=queue(redis, QueueName(queue_name)))
        host = socket.gethostname()
        ages = {
            worker.name: thread_age_s(redis, worker.name)
            for worker in workers
            if worker.hostname == host
        }
    except RedisError as error:
        raise QueueError(f"Redis does not answer ({type(error).__name__})") from error
    finally:
        redis.close()
    if not ages:
        raise QueueError(f"no worker of this machine listens on {queue_name}")
    # A worker that listens since a moment has not had its first round.
    for name, age in ages.items():
        if age is not None and age > STUCK_S:
            raise QueueError(f"the recovery of worker {name} last ran {age:.0f} s ago: restart it")
    name, age = next(iter(ages.items()))
    ran = "has not run yet" if age is None else f"ran {age:.0f} s ago"
    return f"worker {name} listens on {queue_name}; its recovery {ran}"


def main() -> None:
    """Check the process named on the command line."""
    try:
        print(check(sys.argv[1], get_settings()))  # noqa: T201
    except (BackendError, OSError) as error:
        sys.exit(f"not healthy: {error}")


if __name__ == "__main__":
    main()
