"""`medsam3 worker` as a process of its own, which a test may kill."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

from backend.settings import Settings


class WorkerProcess:
    """A worker of one queue.

    Attributes:
        process: the running process.
        log_path: where it writes what it says.
    """

    def __init__(self, settings: Settings, queue: str) -> None:
        environment = os.environ | {
            "MEDSAM3_DATA_DIR": str(settings.data_dir),
            "MEDSAM3_LEASE_S": str(settings.lease_s),
            "LABEL_STUDIO_URL": settings.label_studio_url,
            "LABEL_STUDIO_API_KEY": "0" * 40,
            "DATABASE_URL": settings.database,
        }
        self.log_path = settings.data_dir / f"worker-{queue}.log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "backend.cli.main", "-v", "worker", "--queue", queue],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is cleaned up."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


StartWorker = Callable[..., WorkerProcess]
