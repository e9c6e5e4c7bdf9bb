"""What no log may hold, and what no other user of the machine may read."""

import logging
import stat
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from sqlalchemy.exc import SQLAlchemyError

from backend.database import private_folder
from backend.label_studio.client import LabelStudio
from backend.label_studio.images import fetch_image
from backend.services import Services
from backend.tables import Event, Suggestion
from tests.support.http_server import Handler, HttpServer
from tests.support.images import ellipse_file
from tests.support.label_configs import BRAIN_CONFIG
from tests.support.processes import StartWorker

SECRETS = ("sIgNaTuRe", "Mustermann", "pAsSwOrD")


class _Images(Handler):
    """Serves a picture, and nothing below `/gone`."""

    def answer(self) -> None:
        """Answer by the path alone."""
        if self.path.startswith("/gone"):
            self.send(404, {}, b"sIgNaTuRe")
        else:
            self.send(200, {"Content-Type": "image/png"}, ellipse_file(0, 64, 64))


def open_to_others(folder: Path) -> list[tuple[str, str]]:
    """Files and folders that another user may read."""
    found = [folder, *folder.rglob("*")]
    return [
        (str(path), stat.filemode(path.stat().st_mode))
        for path in found
        if path.suffix != ".log" and path.stat().st_mode & 0o077
    ]


def test_a_worker_that_says_all_it_does_says_no_secret_and_keeps_its_files(
    web: FlaskClient,
    services: Services,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = HttpServer(_Images)
    monkeypatch.setenv("MEDSAM3_ALLOWED_IMAGE_HOSTS", f'["{images.url.rpartition("/")[2]}"]')
    links = [
        f"{images.url}/a.png?X-Amz-Signature=sIgNaTuRe",
        f"{images.url}/gone.png?X-Amz-Signature=sIgNaTuRe",
        f"http://user:pAsSwOrD@{images.url.rpartition('/')[2]}/a.png?sig=sIgNaTuRe",
        "https://elsewhere.example/a.png?sig=sIgNaTuRe",
        "data:image/png;base64,sIgNaTuRe",
    ]
    tasks = [
        {"id": number, "data": {"image": link, "patient": "Mustermann"}}
        for number, link in enumerate(links, 1)
    ]
    worker = start_worker("gpu")
    body = {"tasks": tasks, "project": "7.1", "label_config": BRAIN_CONFIG, "params": {}}
    assert web.post("/predict", json=body).status_code == 200
    images.close()
    with services.database.reading() as session:
        states = {row.task_id: row.state for row in session.query(Suggestion)}
    assert states[1] == "done"
    assert set(states.values()) == {"done", "failed"}
    said = worker.log_path.read_text()
    assert "INFO" in said
    assert [secret for secret in SECRETS if secret in said] == []
    kept = services.settings.data_dir
    assert open_to_others(kept) == []
    assert any(path.suffix == ".db" for path in kept.iterdir())


def test_a_database_that_refuses_says_no_values(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    row = Event(action="Mustermann", task_ids=[], annotation_ids=[], attempts={"a": "sIgNaTuRe"})
    with pytest.raises(SQLAlchemyError) as refused, services.database.session() as session:
        session.add(row)
    logging.getLogger("backend").error("it failed", exc_info=refused.value)
    assert [secret for secret in SECRETS if secret in caplog.text + str(refused.value)] == []


def test_the_http_client_says_no_address(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    images = HttpServer(_Images)
    host = images.url.rpartition("/")[2]
    settings = services.settings.model_copy(update={"allowed_image_hosts": (host,)})
    caplog.set_level(logging.DEBUG)
    with LabelStudio.from_settings(settings) as client:
        link = f"{images.url}/a.png?X-Amz-Signature=sIgNaTuRe"
        assert fetch_image(link, client=client, settings=settings)
    images.close()
    lines = [line for line in caplog.text.splitlines() if "werkzeug" not in line]
    assert "sIgNaTuRe" not in "\n".join(lines)


def test_a_folder_that_was_open_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    private_folder(folder)
    assert stat.filemode(folder.stat().st_mode) == "drwx------"
