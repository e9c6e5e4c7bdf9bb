"""Stopping: how this process learns that it is to end, and how it ends the processes it started.

What is at hand is finished, or left where it can be resumed; the rest goes back to its queue.
"""

import subprocess
import threading
import time
from collections.abc import Sequence

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
