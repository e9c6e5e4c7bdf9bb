"""`MedSAM3Backend` under the manners of label-studio-ml 2.x."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from backend.models import versions
from backend.services import Services
from backend.tables import Event, Project, Suggestion
from tests.support import label_studio_ml_2
from tests.support.images import inline_tasks
from tests.support.label_configs import BRAIN_CONFIG
from tests.support.processes import StartWorker

PROJECT = {"project": "7.1795421465"}


@pytest.fixture
def server(services: Services) -> Iterator[FlaskClient]:
    """A client of the package's server; its handlers find this test's services."""
    with label_studio_ml_2.installed():
        backend = importlib.import_module("backend.model").MedSAM3Backend
        yield label_studio_ml_2.server(backend).test_client()


@pytest.mark.parametrize("extra_params", [None, {"threshold": 0.5}, '{"threshold": 0.5}'])
def test_setup_answers_our_version_and_remembers_the_project(
    server: FlaskClient, services: Services, extra_params: Any
) -> None:
    assert server.get("/health").get_json() == {"status": "UP", "model_class": "MedSAM3Backend"}
    body = {**PROJECT, "schema": BRAIN_CONFIG, "extra_params": extra_params}
    answer = server.post("/setup", json=body)
    assert answer.get_json() == {"model_version": versions.default_version(services)}
    with services.database.reading() as session:
        assert session.get_one(Project, 7).label_config == BRAIN_CONFIG
    assert label_studio_ml_2.Base.cache == {}


def test_predictions_come_from_our_queue_and_worker(
    server: FlaskClient, services: Services, start_worker: StartWorker
) -> None:
    start_worker("gpu")
    tasks = [{**task, "project": 7} for task in inline_tasks(2)]
    body = {**PROJECT, "tasks": tasks, "label_config": BRAIN_CONFIG}
    credentials = {"login": None, "password": None}
    # Without a context, and with the one that a batch has: neither is a prompt that was deleted.
    for params in ({}, {"params": {**credentials, "context": None}}):
        results = server.post("/predict", json={**body, **params}).get_json()["results"]
        version = versions.default_version(services)
        assert [result["model_version"] for result in results] == [version] * 2
        assert any(result["result"] for result in results)
    with services.database.reading() as session:
        assert {row.project_id for row in session.scalars(select(Suggestion))} == {7}
    deleted = {"params": {**credentials, "context": {"result": []}}}
    (result,) = server.post("/predict", json={**body, **deleted}).get_json()["results"]
    assert result["result"] == []


@pytest.mark.parametrize("action", ["ANNOTATION_CREATED", "START_TRAINING"])
def test_events_are_kept(server: FlaskClient, services: Services, action: str) -> None:
    event = {
        "action": action,
        "project": {"id": 7, "label_config": BRAIN_CONFIG},
        "task": {"id": 5},
        "annotation": {"id": 11},
    }
    answer = server.post("/webhook", json=event)
    assert answer.status_code == 201
    with services.database.reading() as session:
        (kept,) = session.scalars(select(Event))
    assert answer.get_json()["result"] == {"event": kept.id}
    assert (kept.action, kept.project_id) == (action, 7)
    assert (kept.task_ids, kept.annotation_ids) == ([5], [11])


@pytest.mark.parametrize("project", ["7", "7.1795421465", 7, None, "", "None"])
def test_a_project_is_read_in_every_form(services: Services, project: Any) -> None:
    with label_studio_ml_2.installed():
        backend = importlib.import_module("backend.model").MedSAM3Backend
        assert backend(project, label_config=BRAIN_CONFIG).get("model_version")
        with pytest.raises(ValueError, match="a project is its id"):
            backend("seven", label_config=BRAIN_CONFIG)
