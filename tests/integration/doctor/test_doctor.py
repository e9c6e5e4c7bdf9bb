"""`medsam3 doctor` against real parts, healthy and broken."""

import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rq.utils import utcformat
from werkzeug.serving import make_server

from backend.corrections.tables import Image
from backend.doctor import Check, Status, run_checks
from backend.doctor.database import (
    check_events,
    check_failed_tasks,
    check_groups,
    open_existing_database,
)
from backend.doctor.label_studio import check_label_studio, check_token
from backend.doctor.machine import check_data_folder, check_image_sources, check_model, check_web
from backend.doctor.redis import check_redis, check_workers
from backend.label_studio.server import free_port
from backend.processes.queues import QueueName, enqueue
from backend.processes.worker import Worker
from backend.services import Services, load_credentials
from backend.settings import Settings
from backend.tables import Delivery, Event, LabelConfigText, Suggestion, SuggestionState, now
from backend.web.app import create_app
from tests.support.http_server import Site


def named(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def test_on_an_untouched_machine_every_finding_says_what_to_do_and_nothing_is_made(
    tmp_path: Path,
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    settings = Settings(
        _env_file=None, data_dir=tmp_path / "data", port=free_port(), label_studio_url=url
    )
    checks = run_checks(settings)
    troubled = [check for check in checks if check.status is not Status.OK]
    assert {check.name for check in troubled} >= {"data folder", "web", "redis", "database"}
    assert all(check.next_step for check in troubled)
    assert named(checks, "label studio").message.startswith(f"nothing answers at {url}")
    assert not (tmp_path / "data").exists()


def test_a_label_studio_behind_https_or_a_proxy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site()
    site.answers["/api/version"] = (301, {"Location": "https://127.0.0.1:8443/api/version"}, b"")
    settings = Settings(_env_file=None, data_dir=tmp_path, label_studio_url=site.url)
    found = check_label_studio(settings)
    site.close()
    assert found.next_step == "set LABEL_STUDIO_URL=https://127.0.0.1:8443"
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", f"http://me:hidden@127.0.0.1:{free_port()}")
    remote = settings.model_copy(update={"label_studio_url": "http://labels.example.org"})
    found = check_label_studio(remote)
    assert "through the proxy http://127.0.0.1" in found.message
    assert "NO_PROXY" in found.next_step
    monkeypatch.setenv("http_proxy", "nonsense://proxy")
    assert "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY" in check_label_studio(remote).message


def test_an_empty_token_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", " ")
    found = check_token(Settings(_env_file=None, data_dir=tmp_path))
    assert found.message == "LABEL_STUDIO_API_KEY is not set"


def test_torch_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from backend.settings import Settings; from backend.doctor import run_checks;"
        f"run_checks(Settings(_env_file=None, data_dir={str(tmp_path)!r},"
        f" label_studio_url='http://127.0.0.1:{free_port()}', port={free_port()}));"
        "print(sorted({'torch', 'transformers', 'monai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_secrets_that_others_may_read(settings: Settings) -> None:
    load_credentials(settings)
    assert check_data_folder(settings).status is Status.OK
    (settings.data_dir / "credentials.json").chmod(0o644)
    found = check_data_folder(settings)
    assert found.status is Status.WARN
    assert found.next_step.startswith("chmod 600")


def test_a_checkpoint_that_is_not_there(settings: Settings, tmp_path: Path) -> None:
    missing = settings.model_copy(update={"model": str(tmp_path / "sam3.safetensors")})
    found = check_model(missing)
    assert found.status is Status.FAIL
    assert "MEDSAM3_MODEL" in found.message
    (tmp_path / "sam3.safetensors").touch()
    assert check_model(missing).status is Status.OK
    hub = settings.model_copy(update={"model": "facebook/sam3"})
    assert check_model(hub).status is Status.OK


def test_image_sources(settings: Settings, tmp_path: Path) -> None:
    assert list(check_image_sources(settings)) == []
    wrong = settings.model_copy(
        update={
            "allowed_local_roots": (tmp_path, tmp_path / "gone"),
        }
    )
    (roots,) = check_image_sources(wrong)
    assert "gone" in roots.message


def test_groups(services: Services) -> None:
    def image(task: int, project: int, group: str) -> Image:
        facts = {"reference": "/a.png", "hash": "f" * 64, "size_bytes": 1}
        return Image(task_id=task, item_index=0, project_id=project, task_group=group, **facts)

    assert check_groups(services.database) == []
    groups = ["7", "7", "8", "image:1", "image:2"]
    with services.database.session() as session:
        session.add_all([image(task, 1, group) for task, group in enumerate(groups)])
        session.add(image(9, 2, "7"))
    mixed, whole = check_groups(services.database)
    assert mixed.status is Status.WARN
    assert mixed.message.startswith("2 groups, 2 of 5 images have none")
    assert (whole.status, whole.message) == (Status.OK, "1 groups, 0 of 1 images have none")


def test_nothing_at_the_web_port(settings: Settings) -> None:
    found = check_web(settings.model_copy(update={"port": free_port()}))
    assert found.status is Status.FAIL
    assert "medsam3 serve" in found.next_step


def test_redis(services: Services) -> None:
    assert check_redis(services.settings, services.redis).status is Status.OK
    services.redis.config_set("maxmemory-policy", "allkeys-lru")
    found = check_redis(services.settings, services.redis)
    assert found.status is Status.WARN
    assert "allkeys-lru" in found.message


def test_workers_are_counted_while_they_report(services: Services) -> None:
    assert check_workers(services.redis, QueueName.GPU).status is Status.FAIL
    assert check_workers(services.redis, QueueName.TRAIN).status is Status.OK
    enqueue(services.redis, QueueName.TRAIN, "backend.predictions.jobs.nothing", ["a"], job_id="a")
    assert check_workers(services.redis, QueueName.TRAIN).status is Status.WARN
    worker = Worker(services, QueueName.GPU)
    worker.register_birth()
    assert check_workers(services.redis, QueueName.GPU).message == "1 alive, 0 jobs waiting"
    assert check_workers(services.redis, QueueName.INGEST).status is Status.FAIL
    silent = datetime.now(UTC) - timedelta(minutes=10)
    services.redis.hset(worker.key, "last_heartbeat", utcformat(silent))
    assert check_workers(services.redis, QueueName.GPU).status is Status.FAIL


def test_the_database(settings: Settings, services: Services) -> None:
    database, found = open_existing_database(settings)
    assert found.status is Status.OK
    assert database is not None
    database.dispose()
    empty = settings.model_copy(update={"database_url": f"sqlite:///{settings.data_dir / 'e.db'}"})
    assert open_existing_database(empty)[1].status is Status.WARN
    assert not (settings.data_dir / "e.db").exists()
    (settings.data_dir / "e.db").touch()
    database, found = open_existing_database(empty)
    assert found.status is Status.FAIL
    assert "no migration" in found.message
    assert database is not None
    database.dispose()


def test_an_unreachable_database_keeps_its_password(settings: Settings) -> None:
    url = f"postgresql://medsam3:hidden@127.0.0.1:{free_port()}/medsam3"
    database, found = open_existing_database(settings.model_copy(update={"database_url": url}))
    assert database is None
    assert found.status is Status.FAIL
    assert "medsam3:***@127.0.0.1" in found.message
    assert "hidden" not in str(found)


def failed(task_id: int, error: str | None, **fields: object) -> Suggestion:
    values: dict[str, object] = {
        "project_id": 1,
        "task_id": task_id,
        "config_hash": "c",
        "task_data": {},
        "model_version": "v",
        "state": SuggestionState.FAILED,
        "delivery": Delivery.NONE,
        "error": error,
        **fields,
    }
    return Suggestion(**values)


def test_failed_tasks_are_told_with_their_reasons(services: Services) -> None:
    assert check_failed_tasks(services.database).status is Status.OK
    earlier = now() - timedelta(minutes=5)
    with services.database.session() as session:
        session.add(LabelConfigText(hash="c", xml="<View/>"))
        session.flush()
        session.add_all([failed(task, "the uploaded file is missing") for task in (4, 5)])
        session.add(failed(6, "it is not an image"))
        # Failed once, and predicted since.
        session.add(failed(7, "out of memory", created_at=earlier))
        session.add(failed(7, None, state=SuggestionState.DONE))
    found = check_failed_tasks(services.database)
    assert found.status is Status.WARN
    assert found.message.splitlines() == [
        "3 predictions failed:",
        "2 × the uploaded file is missing (task 4)",
        "task 6: it is not an image",
    ]


def test_events_that_wait_with_an_error(services: Services) -> None:
    assert check_events(services.database).status is Status.OK
    with services.database.session() as session:
        for error in ("Label Studio is down", "Label Studio is down", None):
            session.add(
                Event(
                    action="ANNOTATION_CREATED",
                    task_ids=[],
                    annotation_ids=[],
                    error=error,
                )
            )
    found = check_events(services.database)
    assert found.status is Status.WARN
    assert found.message == "2 wait with an error, most often: Label Studio is down"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_the_web_process_is_found_where_it_listens(host: str, services: Services) -> None:
    server = make_server(host, 0, create_app(services))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        listening = {"host": host, "port": server.server_port}
        assert check_web(services.settings.model_copy(update=listening)).status is Status.OK
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
