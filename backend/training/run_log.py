"""Logs of training runs: what the trainer did, line by line, for those who watch.

They are in Redis like the curves: nothing depends on a line, and one that is lost is no harm. A
line names stages, figures, versions and reasons, as they are in the run's row; never a token or
what is in an image.
"""

from dataclasses import dataclass
from datetime import datetime

from redis import Redis

from backend.tables import now
from backend.training.newest import NewestEntries

_KEY = "medsam3:run-log:{}"
# Of a longer run the newest.
MOST_LINES = 200
_LINES = NewestEntries(MOST_LINES)
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
    # One line each, without what a terminal would obey.
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    entry = [now().isoformat(), " ".join(shown.split())[:MOST_CHARACTERS]]
    _LINES.add(redis, _KEY.format(run_id), entry)


def log_of(redis: Redis, run_id: str) -> list[LogLine]:
    """A run's lines, oldest first; none for a run that has not begun, or ended weeks ago.

    Raises:
        QueueError: Redis cannot be reached.
    """
    lines = _LINES.all(redis, _KEY.format(run_id))
    return [LogLine(datetime.fromisoformat(at), text) for at, text in lines]


def waited(seconds: float) -> str:
    """The end of a line, where the run made way for annotators since the last one."""
    return f"; made way for annotators for {seconds:.0f} s" if seconds >= 1 else ""
