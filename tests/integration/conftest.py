"""Real parts for one test each: a Redis, a database, the web application, workers that can die."""

import base64
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from backend.processes.redis_server import RedisServer
from backend.services import Services, open_services, use_services
from backend.settings import Settings
from backend.web.app import create_app
from tests.support.corrections_stage import CONFIG, HEIGHT, WIDTH, Stage, stage_at
from tests.support.stand_in_label_studio import StandInLabelStudio

BRUSH_CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image">
    <Label value="Brain" prompt="brain"/>
    <Label value="White" prompt="white matter"/>
  </BrushLabels>
</View>
"""


@pytest.fixture
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a short name: a Unix socket's path holds about 100 characters."""
    return tmp_path_factory.mktemp("d")


@pytest.fixture
def redis_server(data_dir: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own; the test may stop and start it."""
    with RedisServer(data_dir / "redis.sock") as server:
        yield server


@pytest.fixture
def settings(data_dir: Path) -> Settings:
    """Settings that keep everything below the test's folder; short leases, so deaths show soon,
    and all the time that a busy machine may need."""
    return Settings(
        data_dir=data_dir, lease_s=2, predict_budget_s=95, label_studio_api_key="0" * 40
    )


@pytest.fixture
def services(redis_server: RedisServer, settings: Settings) -> Iterator[Services]:
    """The services of the test's process; handlers called directly use them too."""
    opened = open_services(settings)
    use_services(opened)
    yield opened
    use_services(None)
    opened.close()


@pytest.fixture
def web(services: Services) -> FlaskClient:
    """A client of the web application with the right password."""
    client = create_app(services).test_client()
    credentials = services.credentials
    basic = base64.b64encode(f"{credentials.user}:{credentials.password}".encode()).decode()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Basic {basic}"
    return client


class WorkerProcess:
    """`medsam3 worker` as a process of its own."""

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

    def stop(self) -> None:
        """SIGTERM, then wait."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)


@pytest.fixture
def start_worker(services: Services) -> Iterator[Callable[..., WorkerProcess]]:
    """Start workers; those that still run are killed at the end."""
    started: list[WorkerProcess] = []

    def start(queue: str = "gpu") -> WorkerProcess:
        worker = WorkerProcess(services.settings, queue)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        if worker.process.poll() is None:
            worker.kill()


def inline_image(seed: int, height: int = 96, width: int = 128) -> str:
    """A `data:` address of `image_file`."""
    content = base64.b64encode(image_file(seed, height, width)).decode()
    return f"data:image/png;base64,{content}"


def image_file(seed: int, height: int, width: int) -> bytes:
    """A PNG with one bright ellipse on noise; different for every seed."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    centre = random.uniform(0.35, 0.65, 2) * (height, width)
    distance = ((rows - centre[0]) / (height / 4)) ** 2 + ((columns - centre[1]) / (width / 4)) ** 2
    grey = random.integers(0, 40, (height, width)) + 150 * (distance < 1)
    buffer = io.BytesIO()
    Image.fromarray(grey.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def tasks(count: int, first_id: int = 1) -> list[dict[str, object]]:
    """Label Studio's tasks with inline images."""
    return [
        {"id": first_id + index, "data": {"image": inline_image(first_id + index)}}
        for index in range(count)
    ]


@pytest.fixture
def stage(redis_server: RedisServer, data_dir: Path) -> Iterator[Stage]:
    """A store of corrections beside a stand-in for Label Studio."""
    with StandInLabelStudio(CONFIG) as label_studio:
        settings = Settings(
            data_dir=data_dir, label_studio_url=label_studio.url, label_studio_api_key="0" * 40
        )
        services = open_services(settings)
        with stage_at(services, label_studio) as opened:
            yield opened
        services.close()


@pytest.fixture
def task(stage: Stage) -> int:
    """A task with an image, nothing drawn on it yet."""
    return stage.label_studio.add_task(image_file(0, HEIGHT, WIDTH))
