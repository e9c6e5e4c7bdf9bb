"""Logs of training runs: what the trainer did, line by line, for those who watch.

They are in Redis like the curves: nothing depends on a line, and one that is lost is no harm. A
line names stages, figures, versions and reasons, as they are in the run's row; never a token or
what is in an image.
"""

import json
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from backend.errors import QueueError
from backend.tables import now
from backend.training.curves import KEPT_S

log = logging.getLogger(__name__)

_KEY = "medsam3:run-log:{}"
# Of a longer run the newest.
MOST_LINES = 200
# An error's sentence may quote what a server answered.
MOST_CHARACTERS = 500


@dataclass(frozen=True)
class LogLine:
    """What a run did at a moment, in UTC."""

    at: datetime
    text: str


class RunLog:
    """A run's log, as the trainer that took the run writes it.

    What a run does again after it waited for Label Studio or the database is said once: a night
    without them would fill the log.
    """

    def __init__(self, redis: Redis, run_id: str) -> None:
        self._redis, self._run_id = redis, run_id
        self._said: set[str] = set()

    def note(self, text: str) -> None:
        """Write a line."""
        note(self._redis, self._run_id, text)

    def note_once(self, text: str) -> None:
        """Write a line, unless this trainer wrote the same one before."""
        if text not in self._said:
            self._said.add(text)
            self.note(text)


def note(redis: Redis, run_id: str, text: str) -> None:
    """Keep a line; without Redis the log lacks it, and training goes on."""
    key = _KEY.format(run_id)
    # One line each, without what a terminal would obey.
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    value = json.dumps([now().isoformat(), " ".join(shown.split())[:MOST_CHARACTERS]])
    try:
        with redis.pipeline(transaction=False) as pipeline:
            pipeline.rpush(key, value)
            pipeline.ltrim(key, -MOST_LINES, -1)
            pipeline.expire(key, KEPT_S)
            pipeline.execute()
    except RedisError as error:
        log.debug("a line of a run's log is not kept: %s", type(error).__name__)


def log_of(redis: Redis, run_id: str) -> list[LogLine]:
    """A run's lines, oldest first; none for a run that has not begun, or ended weeks ago.

    Raises:
        QueueError: Redis cannot be reached.
    """
    try:
        values: list[Any] = redis.lrange(_KEY.format(run_id), 0, -1)
    except RedisError as error:
        raise QueueError(f"Redis does not answer ({type(error).__name__})") from error
    return [LogLine(datetime.fromisoformat(at), text) for at, text in map(json.loads, values)]


def waited(seconds: float) -> str:
    """The end of a line, where the run made way for annotators since the last one."""
    return f"; made way for annotators for {seconds:.0f} s" if seconds >= 1 else ""
