"""`medsam3 serve` as its own process, for tests against a real Label Studio."""

import os
import subprocess
import sys
from pathlib import Path

from backend.label_studio.server import LabelStudioServer, free_port
from backend.settings import Settings
from tests.support.running import answers
from tests.support.waiting import wait_until


class BackendServer:
    """All processes of the backend, started as a user starts them.

    Attributes:
        settings: the same settings, for code that runs in the test's process.
        url: where Label Studio reaches it.
    """

    def __init__(self, data_dir: Path, studio: LabelStudioServer, **settings: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = data_dir / "serve.log"
        self._environment = os.environ | {
            "MEDSAM3_DATA_DIR": str(data_dir),
            "MEDSAM3_PORT": str(port),
            "LABEL_STUDIO_URL": studio.url,
            "LABEL_STUDIO_API_KEY": studio.token,
            **settings,
        }
        self.settings = Settings(
            data_dir=data_dir,
            port=port,
            label_studio_url=studio.url,
            label_studio_api_key=studio.token,
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start `medsam3 serve` and wait until the web process answers."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "backend.cli.main", "-v", "serve"],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(
            lambda: answers(self.url),
            pause_s=0.1,
            otherwise=lambda: self.log_path.read_text()[-2000:],
        )

    def stop(self) -> None:
        """SIGTERM, as a service manager does."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None
