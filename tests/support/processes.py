"""Processes of the backend: a worker, all of them for a real Label Studio, some to be measured."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from backend.label_studio.server import LabelStudioServer, free_port
from backend.processes.redis_server import RedisServer
from backend.services import Services, load_credentials, open_services
from backend.settings import Settings
from tests.support.http_server import Handler, HttpServer
from tests.support.images import ellipse_file
from tests.support.waiting import wait_until


class WorkerProcess:
    """`medsam3 worker` of one queue, which a test may kill.

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


class BackendServer:
    """`medsam3 serve`: all processes of the backend, as a user starts them.

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

    def command(self, *arguments: object) -> str:
        """What `medsam3` says on standard output, typed beside the running backend."""
        done = subprocess.run(
            [sys.executable, "-m", "backend.cli.main", *map(str, arguments)],
            env=self._environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        """SIGTERM, as a service manager does."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None


@dataclass(frozen=True)
class Running:
    """Processes under test.

    Attributes:
        services: this process's own database and Redis connections.
        url: the web process's address.
        client: an HTTP client with the right password and one kept-alive connection.
        web: the web process.
        ready_s: seconds from its start to its first answer.
    """

    services: Services
    url: str
    client: httpx2.Client
    web: subprocess.Popen[bytes]
    ready_s: float


@contextmanager
def running(
    *, with_worker: bool = True, with_trainer: bool = False, agent_url: str | None = None
) -> Iterator[Running]:
    """Start Redis, web and (unless told otherwise) a GPU worker; stop them at the end.

    With `agent_url` an agent looks at every answer whose label asks for one.
    """
    with tempfile.TemporaryDirectory(prefix="m3-") as folder:
        port = free_port()
        settings = Settings(data_dir=Path(folder), port=port)
        images = HttpServer(_Images)
        environment = os.environ | {
            "MEDSAM3_DATA_DIR": folder,
            "MEDSAM3_PORT": str(port),
            # Where relative addresses of images lead; Label Studio itself is not measured here.
            "LABEL_STUDIO_URL": images.url,
            "LABEL_STUDIO_API_KEY": "0" * 40,
        }
        if agent_url is not None:
            environment |= {
                "MEDSAM3_AGENT_URL": agent_url,
                "MEDSAM3_AGENT_MODEL": "scripted",
                "MEDSAM3_AGENT_SEND_IMAGES": "true",
                "MEDSAM3_AGENT_BELOW": "1",
                "MEDSAM3_AGENT_TASK_S": "600",
                "MEDSAM3_AGENT_REQUEST_TIMEOUT_S": "60",
            }
        processes: list[subprocess.Popen[bytes]] = []

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "backend.cli.main", *arguments]
            processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
            return processes[-1]

        with RedisServer(settings.redis_socket):
            services = open_services(settings)
            credentials = load_credentials(settings)
            url = f"http://127.0.0.1:{port}"
            started = time.perf_counter()
            web = start("web")
            try:
                wait_until(lambda: answers(url), pause_s=0.005)
                ready_s = time.perf_counter() - started
                if with_worker:
                    start("worker", "--queue", "gpu")
                if with_trainer:
                    start("trainer")
                if agent_url is not None:
                    start("worker", "--queue", "agent")
                auth = (credentials.user, credentials.password)
                with httpx2.Client(base_url=url, auth=auth, timeout=120) as client:
                    yield Running(services, url, client, web, ready_s)
            finally:
                for process in processes:
                    process.terminate()
                for process in processes:
                    process.wait(30)
                images.close()
                services.close()


class _Images(Handler):
    """Serves `/data/upload/<seed>.png`: a 512-pixel ellipse on noise."""

    def answer(self) -> None:
        """Answer with the image of the seed in the path."""
        content = ellipse_file(int(Path(self.path).stem), 512, 512)
        self.send(200, {"Content-Type": "image/png"}, content)


def memory_mb(process: subprocess.Popen[bytes]) -> float:
    """Resident memory of a process and its children in MB, shared pages counted in each."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    total = 0
    for pid in [str(process.pid), *children]:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total / 1024


def answers(url: str) -> bool:
    """Whether the web process at an address says that it is up, or anything at all."""
    try:
        httpx2.get(f"{url}/health")
    except httpx2.TransportError:
        return False
    return True
