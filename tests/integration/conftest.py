"""Real parts for one test each: a Redis, a database, the web application, workers that can die."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from backend.processes.redis_server import RedisServer
from backend.services import Services, open_services, use_services
from backend.settings import Settings, get_settings
from backend.web.app import create_app
from tests.support.corrections_stage import CONFIG, HEIGHT, WIDTH, Stage, stage_at
from tests.support.described_api import watched_answers
from tests.support.images import ellipse_file
from tests.support.postgres import new_database, postgres_server
from tests.support.processes import StartWorker, WorkerProcess
from tests.support.stand_in_label_studio import StandInLabelStudio


@pytest.fixture(autouse=True)
def _described_answers() -> Iterator[None]:
    """Whatever a test asks the web application, the answer is one that the API describes."""
    with watched_answers():
        yield


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """A command that a test runs reads that test's environment, not that of one before it."""
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


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


@pytest.fixture
def start_worker(services: Services) -> Iterator[StartWorker]:
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
    return stage.label_studio.add_task(ellipse_file(0, HEIGHT, WIDTH))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server of this run's own."""
    with postgres_server() as address:
        yield address


@pytest.fixture
def postgres_database(postgres: str) -> str:
    """The address of an empty database on that server."""
    return new_database(postgres)
