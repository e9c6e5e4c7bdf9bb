"""`MedSAM3Backend` under the server of the released package `label-studio-ml`.

The package pins a Flask of 2020 and does not declare all that it imports, so it is installed
without its requirements into a folder of its own, which only the server's process sees.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from backend.label_studio.server import REPOSITORY, free_port
from backend.models import versions
from backend.services import Services
from backend.tables import Event
from tests.support.images import inline_tasks
from tests.support.label_configs import BRAIN_CONFIG
from tests.support.processes import StartWorker
from tests.support.waiting import wait_until

# The release, and what it needs beside this backend's own packages.
PACKAGES = ["label-studio-ml==1.0.9", "label-studio-tools==0.0.4", "colorama==0.4.6"]
FOLDER = REPOSITORY / ".cache" / "label-studio-ml-1.0.9"

SERVER = """
import logging
import sys

from label_studio_ml.api import init_app
from label_studio_ml.model import LabelStudioMLBase

from backend.model import MedSAM3Backend

if __name__ == "__main__":
    folder, port = sys.argv[1:]
    backend = MedSAM3Backend(label_config="<View/>")
    assert isinstance(backend, LabelStudioMLBase), MedSAM3Backend.__mro__
    assert LabelStudioMLBase.__module__ == "label_studio_ml.model"
    app = init_app(model_class=MedSAM3Backend, model_dir=folder)
    app.run(port=int(port), threaded=True)
"""


@pytest.fixture(scope="module")
def label_studio_ml() -> Path:
    """The folder with the package; installed once, kept between runs."""
    if not FOLDER.exists():
        FOLDER.parent.mkdir(exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix="label-studio-ml-", dir=FOLDER.parent))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*command, "--target", str(draft), *PACKAGES], check=True)
        try:
            draft.rename(FOLDER)
        except OSError:
            # Another process was quicker: its folder is as good.
            shutil.rmtree(draft)
    return FOLDER


@pytest.fixture
def server(
    label_studio_ml: Path, services: Services, data_dir: Path, tmp_path: Path
) -> Iterator[httpx2.Client]:
    """A client of the package's server, which runs in a process of its own."""
    port = free_port()
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    log = tmp_path / "server.log"
    environment = os.environ | {
        "PYTHONPATH": f"{label_studio_ml}:{REPOSITORY}",
        "MEDSAM3_DATA_DIR": str(data_dir),
        "LABEL_STUDIO_API_KEY": "0" * 40,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, script, tmp_path / "models", str(port)],
            env=environment,
            stdout=output,
            stderr=output,
        )
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=100, trust_env=False) as client:
        wait_until(
            lambda: process.poll() is not None or _answers(client), 120, otherwise=log.read_text
        )
        assert process.poll() is None, log.read_text()
        yield client
    process.terminate()
    process.wait(10)


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx2.TransportError:
        return False


def set_up(server: httpx2.Client) -> None:
    """POST /setup as Label Studio does; this server predicts nothing before."""
    body = {"project": "7.1795421465", "schema": BRAIN_CONFIG, "hostname": "http://localhost:8080"}
    answer = server.post("/setup", json={**body, "access_token": "", "model_version": None})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_version"]


def predict(server: httpx2.Client, batch: list[dict[str, Any]], context: Any = None) -> Any:
    """POST /predict as Label Studio does; the results."""
    params = {"login": None, "password": None, "context": context}
    body = {"tasks": batch, "project": "7.1795421465", "label_config": BRAIN_CONFIG}
    answer = server.post("/predict", json={**body, "params": params})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def in_project(count: int) -> list[dict[str, Any]]:
    """Tasks with the project's id, as Label Studio sends them."""
    return [{**task, "project": 7} for task in inline_tasks(count)]


def test_its_server_finds_our_class_healthy(server: httpx2.Client) -> None:
    assert server.get("/health").json()["status"] == "UP"
    set_up(server)


def test_its_server_predicts_through_our_queue_and_worker(
    server: httpx2.Client, services: Services, start_worker: StartWorker
) -> None:
    start_worker("gpu")
    set_up(server)
    results = predict(server, in_project(3))
    assert len(results) == 3
    version = versions.default_version(services)
    assert [result["model_version"] for result in results] == [version] * 3
    regions = [region for result in results for region in result["result"]]
    assert {region["from_name"] for region in regions} <= {"mask"}
    ids = [region["id"] for region in regions]
    assert len(ids) == len(set(ids))


def test_its_server_passes_the_smart_tools_context_on(
    server: httpx2.Client, start_worker: StartWorker
) -> None:
    start_worker("gpu")
    set_up(server)
    box = {"x": 25, "y": 25, "width": 50, "height": 50, "rotation": 0, "brushlabels": ["Brain"]}
    drawn = {
        "id": "drawn",
        "type": "rectanglelabels",
        "from_name": "mask",
        "to_name": "image",
        "original_width": 128,
        "original_height": 96,
        "value": {**box, "rectanglelabels": ["Brain"]},
    }
    (result,) = predict(server, in_project(1), {"result": [drawn]})
    labels = [region["value"]["brushlabels"] for region in result["result"]]
    assert labels
    assert labels == [["Brain"]] * len(labels)
    (gone,) = predict(server, in_project(1), {"result": []})
    assert gone["result"] == []


def test_its_server_hands_events_to_fit(server: httpx2.Client, services: Services) -> None:
    event = {
        "action": "ANNOTATION_CREATED",
        "project": {"id": 7, "label_config": BRAIN_CONFIG},
        "task": {"id": 5},
        "annotation": {"id": 11, "result": []},
    }
    assert server.post("/webhook", json=event).status_code == 201
    assert wait_until(lambda: _events(services)) == [("ANNOTATION_CREATED", 7, [5], [11])]


def _events(services: Services) -> list[tuple[str, int | None, list[int], list[int]]]:
    with services.database.reading() as session:
        return [
            (event.action, event.project_id, event.task_ids, event.annotation_ids)
            for event in session.scalars(select(Event))
        ]
