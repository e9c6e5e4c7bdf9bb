"""A job of RQ that does nothing, done by RQ's own worker: what a queue costs at least here and now.

Measured in turn with what else goes through a queue, it takes the machine's mood out of it.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from rq import Queue, SimpleWorker

_NAME = "empty"
_LONGEST_S = 30


def nothing() -> None:
    """The job."""


@contextmanager
def empty_jobs(socket: Path) -> Iterator[Callable[[], float]]:
    """Start a worker on the Redis server at a socket; gives a function that does one empty job.

    The function returns the seconds from before the job is queued until its result is here. The
    worker does not fork, as ours don't: one that forks would be slower.
    """
    worker = subprocess.Popen([sys.executable, "-m", "tests.perf.empty_job", str(socket)])
    queue = Queue(_NAME, connection=Redis(unix_socket_path=str(socket)))

    def done_s() -> float:
        started = time.perf_counter()
        result = queue.enqueue(nothing).latest_result(timeout=_LONGEST_S)
        assert result is not None, "RQ's own worker does not answer"
        return time.perf_counter() - started

    try:
        yield done_s
    finally:
        worker.terminate()
        worker.wait(30)


if __name__ == "__main__":
    connection = Redis(unix_socket_path=sys.argv[1])
    SimpleWorker([_NAME], connection=connection).work(logging_level="ERROR")
