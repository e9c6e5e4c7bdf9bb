"""The supervisor of `medsam3 serve`: starts every process on one machine, restarts what ends."""

import logging
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType

from backend.database import private_folder
from backend.errors import QueueError
from backend.processes.queues import QueueName
from backend.processes.redis_server import RedisServer
from backend.processes.stopping import dying_with_parent, end_processes
from backend.settings import Settings

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 20.0
# A process that dies at once is started again after this long, doubled each time up to the limit.
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# After this long a process counts as healthy, and its next death is restarted at once.
HEALTHY_S = 30.0


@dataclass
class Child:
    """A process that the supervisor started: its command, and when to start it again.

    The embedded Redis, which has no command of ours, is one without arguments.
    """

    name: str
    arguments: list[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    due_at: float = 0.0


class Supervisor:
    """Starts the processes, restarts those that end, stops all of them together.

    Args:
        settings: passed on to the children through the environment they inherit.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis = None if settings.redis_url else RedisServer(settings.redis_socket)
        self._stop = threading.Event()
        self._redis_child = Child("embedded Redis", [])
        self.children = [
            Child("web", ["web"]),
            Child("gpu worker", ["worker", "--queue", QueueName.GPU]),
            Child("ingest worker", ["worker", "--queue", QueueName.INGEST]),
            Child("trainer", ["trainer"]),
        ]
        if settings.agent_url and settings.agent_send_images:
            self.children.append(Child("agent worker", ["worker", "--queue", QueueName.AGENT]))

    def start(self) -> None:
        """Start Redis (when it is ours) and every process.

        Raises:
            QueueError: Redis does not start, or another supervisor has this data folder.
        """
        private_folder(self._settings.data_dir)
        for child in self._all:
            self._launch(child)

    def watch(self) -> None:
        """Restart what ends, until `request_stop`."""
        while not self._stop.wait(0.2):
            for child in self._all:
                try:
                    self._revive(child)
                except (QueueError, OSError) as error:
                    # Memory or disk may be short for a while: everything else goes on.
                    log.error("the %s did not start: %s", child.name, error)
                    _pause(child)

    def request_stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Make `watch` return; usable as a signal handler."""
        self._stop.set()

    def stop(self) -> None:
        """End every process, politely first."""
        end_processes([child.process for child in self.children if child.process], STOP_TIMEOUT_S)
        for child in self._all:
            child.process = None
        if self._redis:
            self._redis.stop()

    @property
    def _all(self) -> list[Child]:
        return [*([self._redis_child] if self._redis else []), *self.children]

    def _launch(self, child: Child) -> None:
        child.started_at = time.monotonic()
        if child is self._redis_child and self._redis:
            child.process = self._redis.start()
            return
        child.process = subprocess.Popen(
            [sys.executable, "-m", "backend.cli.main", *child.arguments],
            # A group of its own: Ctrl-C reaches the supervisor alone, which stops them in order.
            start_new_session=True,
            preexec_fn=dying_with_parent(),  # noqa: PLW1509 it calls prctl only
        )

    def _revive(self, child: Child) -> None:
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                return
            child.process = None
            if code == 0 or time.monotonic() - child.started_at > HEALTHY_S:
                child.pause_s = FIRST_PAUSE_S / 2
            _pause(child)
            log.warning(
                "the %s ended with code %s; starting it again in %.1f s",
                child.name,
                code,
                child.pause_s,
            )
        elif time.monotonic() >= child.due_at:
            self._launch(child)


def serve(settings: Settings) -> None:
    """Run everything until SIGINT or SIGTERM."""
    supervisor = Supervisor(settings)
    signal.signal(signal.SIGINT, supervisor.request_stop)
    signal.signal(signal.SIGTERM, supervisor.request_stop)
    try:
        supervisor.start()
        supervisor.watch()
    finally:
        supervisor.stop()


def _pause(child: Child) -> None:
    """Start it again a little later, twice as late as the last time."""
    child.pause_s = min(child.pause_s * 2, LONGEST_PAUSE_S)
    child.due_at = time.monotonic() + child.pause_s
