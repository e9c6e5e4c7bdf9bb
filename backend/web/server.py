"""The web process: gunicorn with threads, one process, no torch."""

from typing import Any

from gunicorn.app.base import BaseApplication

from backend.settings import Settings
from backend.web.connections import MOST_WAITING, HeadFirstWorker

# Longer than the longest /predict; gunicorn kills a worker that is silent for longer.
TIMEOUT_S = 120


class WebServer(BaseApplication):  # type: ignore[misc]
    """Gunicorn with `backend.web.app.create_app`.

    A request that waits for the GPU holds a thread and nothing else, so one process with many
    threads serves all annotators in little memory.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Give gunicorn its options; no configuration file is read."""
        options: dict[str, Any] = {
            "bind": f"{self._settings.host}:{self._settings.port}",
            "workers": 1,
            "worker_class": HeadFirstWorker,
            "threads": self._settings.web_threads,
            "worker_connections": self._settings.web_threads + MOST_WAITING,
            "timeout": TIMEOUT_S,
            "keepalive": 75,
            "graceful_timeout": 10,
            "accesslog": None,
            "loglevel": "warning",
            "control_socket_disable": True,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Build the application in the serving process, after gunicorn forked."""
        from backend.services import open_services
        from backend.web.app import create_app

        return create_app(open_services(self._settings))


def run_web(settings: Settings) -> None:
    """Serve until told to stop."""
    WebServer(settings).run()
