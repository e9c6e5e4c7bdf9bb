"""The supervisor of `medsam3 serve`: starts every process on one machine, restarts what ends."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType

from backend.processes.queues import QueueName
from backend.processes.redis_server import RedisServer
from backend.processes.stopping import end_processes
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
    """A process that the supervisor started: its command, and when to start it again."""

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
        self.children = [
            Child("web", ["web"]),
            Child("gpu worker", ["worker", "--queue", QueueName.GPU]),
            Child("ingest worker", ["worker", "--queue", QueueName.INGEST]),
            Child("trainer", ["trainer"]),
        ]

    def start(self) -> None:
        """Start Redis (when it is ours) and every process."""
        self._settings.data_dir.mkdir(parents=True, exist_ok=True)
        if self._redis:
            self._redis.start()
        for child in self.children:
            self._launch(child)

    def watch(self) -> None:
        """Restart what ends, until `request_stop`."""
        while not self._stop.wait(0.2):
            if self._redis and self._redis.process and self._redis.process.poll() is not None:
                log.warning("the embedded Redis ended; starting it again")
                self._redis.start()
            for child in self.children:
                self._revive(child)

    def request_stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Make `watch` return; usable as a signal handler."""
        self._stop.set()

    def stop(self) -> None:
        """End every process, politely first."""
        end_processes([child.process for child in self.children if child.process], STOP_TIMEOUT_S)
        for child in self.children:
            child.process = None
        if self._redis:
            self._redis.stop()

    def _launch(self, child: Child) -> None:
        child.started_at = time.monotonic()
        child.process = subprocess.Popen(
            [sys.executable, "-m", "backend.cli.main", *child.arguments],
            # A group of its own: Ctrl-C reaches the supervisor alone, which stops them in order.
            start_new_session=True,
            # Only calls prctl: nothing that another thread could hold a lock on.
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
        )

    def _revive(self, child: Child) -> None:
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                return
            child.process = None
            healthy = code == 0 or time.monotonic() - child.started_at > HEALTHY_S
            child.pause_s = FIRST_PAUSE_S if healthy else min(child.pause_s * 2, LONGEST_PAUSE_S)
            child.due_at = time.monotonic() + child.pause_s
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


def _die_with_parent() -> None:
    """In the child, before it starts: ask Linux to end it when the supervisor is killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() == 1:
        os._exit(1)
