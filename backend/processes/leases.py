"""Threads beside a worker's jobs: one that renews a lease, one that works every few seconds.

A row under way carries a moment until which its worker holds it. A worker that is alive keeps that
moment in the future; one that died does not, and `recover` in predictions and training puts its
rows back on their queue.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from backend.errors import QueueError
from backend.processes.health import note_round, note_thread
from backend.services import Services

log = logging.getLogger(__name__)

# What passes by itself: the message is enough. Anything else is logged with its traceback.
_EXPECTED = (RedisError, QueueError, SQLAlchemyError)


@contextmanager
def renewing(renew: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call `renew` every so many seconds, from a thread of its own, while the block runs.

    `every_s` is a fraction of the lease, so that one renewal may fail: it is logged and the next
    one comes in time.
    """
    done = threading.Event()

    def keep() -> None:
        while not done.wait(every_s):
            _attempt("the renewal of a lease", renew)

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Periodic(threading.Thread):
    """Calls functions every few seconds, in one process of all that run such a thread.

    No exception ends the thread, and none keeps the other functions from their turn: it is logged,
    and the next round tries again. Should the thread end all the same, it ends its process, which
    is started again; a worker without it would look healthy while nothing is recovered any more.

    Args:
        services: database and Redis.
        works: called with them, one after the other.
        lock: the key in Redis that says which process works in a round.
        every_s: seconds between two rounds.
    """

    def __init__(
        self,
        services: Services,
        *works: Callable[[Services], object],
        lock: str,
        every_s: float,
    ) -> None:
        super().__init__(name=lock, daemon=True)
        self._services, self._works = services, works
        self._key, self._every_s = lock, every_s
        self._stopped = threading.Event()
        self._sign_of_life: Callable[[], object] = lambda: None
        self._worker = ""

    def start_beside(self, worker: str, sign_of_life: Callable[[], object]) -> None:
        """Start the thread of a worker.

        Args:
            worker: its name in Redis, under which `health` finds when this thread last ran.
            sign_of_life: called in every round, also while the worker is busy with a long job.
        """
        self._worker, self._sign_of_life = worker, sign_of_life
        # From here on its age counts: it may get stuck in its first round already.
        _attempt(self._key, note_thread, self._services.redis, worker)
        self.start()

    def run(self) -> None:
        """Loop until `stop`."""
        try:
            while not self._stopped.wait(self._every_s):
                _attempt(f"the sign of life beside {self._key}", self._sign_of_life)
                _attempt(self._key, self._round)
        finally:
            if not self._stopped.is_set():
                log.critical("%s ended; its process ends too, to be started again", self._key)
                os.kill(os.getpid(), signal.SIGTERM)

    def stop(self) -> None:
        """End the loop after the round that is running."""
        self._stopped.set()

    def _round(self) -> None:
        redis = self._services.redis
        # The lock is never given back: it ends by itself, a little before the next round,
        # so that a round is worked once however many processes wake up for it.
        if redis.set(self._key, 1, nx=True, px=int(self._every_s * 900)):
            results = [_attempt(self._key, work, self._services) for work in self._works]
            if all(results):
                note_round(redis, self._key.partition(":")[2])
        if self._worker:
            note_thread(redis, self._worker)


def _attempt(what: str, work: Callable[..., object], *arguments: object) -> bool:
    """Call `work`; an exception is logged. Returns whether there was none."""
    try:
        work(*arguments)
    except _EXPECTED as error:
        log.warning("%s waits: %s", what, type(error).__name__)
    except Exception:
        log.exception("%s met an unforeseen error; the next round tries again", what)
    else:
        return True
    return False
