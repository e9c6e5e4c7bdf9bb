"""Threads beside a worker's jobs: one that renews a lease, one that works every few seconds.

A row under way carries a moment until which its worker holds it. A worker that is alive keeps that
moment in the future; one that died does not, and `recover` in predictions and training puts its
rows back on their queue.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from backend.errors import QueueError
from backend.services import Services

log = logging.getLogger(__name__)


@contextmanager
def renewing(renew: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call `renew` every so many seconds, from a thread of its own, while the block runs.

    `every_s` is a fraction of the lease, so that one renewal may fail: it is logged and the next
    one comes in time.
    """
    done = threading.Event()

    def keep() -> None:
        while not done.wait(every_s):
            try:
                renew()
            except SQLAlchemyError as error:
                log.warning("a lease could not be renewed: %s", type(error).__name__)

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Periodic(threading.Thread):
    """Calls a function every few seconds, in one process of all that run such a thread.

    Args:
        services: database and Redis.
        work: called with them. What Redis or the database refuse is logged; the next round tries
            again.
        lock: the key in Redis that says which process works in a round.
        every_s: seconds between two rounds.
    """

    def __init__(
        self, services: Services, work: Callable[[Services], object], *, lock: str, every_s: float
    ) -> None:
        super().__init__(name=lock, daemon=True)
        self._services, self._work = services, work
        self._key, self._every_s = lock, every_s
        self._stopped = threading.Event()

    def run(self) -> None:
        """Loop until `stop`."""
        while not self._stopped.wait(self._every_s):
            try:
                # The lock is never given back: it ends by itself, a little before the next round,
                # so that a round is worked once however many processes wake up for it.
                if self._services.redis.set(self._key, 1, nx=True, px=int(self._every_s * 900)):
                    self._work(self._services)
            except (RedisError, QueueError, SQLAlchemyError) as error:
                log.warning("%s waits: %s", self._key, type(error).__name__)

    def stop(self) -> None:
        """End the loop after the round that is running."""
        self._stopped.set()
