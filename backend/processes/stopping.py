"""Stopping: how this process learns that it is to end, and how it ends the processes it started.

What is at hand is finished, or left where it can be resumed; the rest goes back to its queue.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

# Set when this process was told to stop.
stopping = threading.Event()


def end_processes(processes: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> None:
    """End processes together: SIGTERM to each, SIGKILL to those that are left after `timeout_s`."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + timeout_s
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def dying_with_parent() -> Callable[[], None] | None:
    """What a child calls before it starts, so that Linux ends it when this process is killed.

    Returns:
        None on systems that do not offer it.
    """
    if sys.platform != "linux":
        return None
    parent = os.getpid()

    def ask() -> None:
        # Only calls prctl: nothing that another thread could hold a lock on.
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        # Killed before the call. Compared with its id: in a container it may well be process 1.
        if os.getppid() != parent:
            os._exit(1)

    return ask
