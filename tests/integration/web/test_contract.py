"""Label Studio's contract against the web application with a real database and Redis."""

import json
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from backend.processes.queues import QueueName, queue
from backend.processes.redis_server import RedisServer
from backend.services import WEBHOOK_SECRET_HEADER, Services
from backend.tables import Event, Project
from backend.web.app import create_app
from backend.web.auth import is_console
from tests.support.label_configs import BRAIN_CONFIG

WEBHOOK_EVENTS = json.loads(
    (Path(__file__).parents[2] / "data" / "webhook_events.json").read_text()
)


def test_health_needs_no_credentials_and_everything_else_does(services: Services) -> None:
    stranger = create_app(services).test_client()
    assert stranger.get("/health").get_json()["status"] == "UP"
    for rule in stranger.application.url_map.iter_rules():
        # The console leads to its login: see tests/integration/web/console. Bootstrap's files are
        # those of every installation.
        if rule.rule == "/health" or rule.endpoint == "bootstrap.static" or is_console(rule.rule):
            continue
        path = rule.rule.replace("<int:", "<").partition("<")[0]
        method = "POST" if "POST" in (rule.methods or ()) else "GET"
        answer = stranger.open(path, method=method, json={})
        assert answer.status_code in (401, 404), rule.rule
        wrong = stranger.open(path, method=method, json={}, auth=("label-studio", "guess"))
        assert wrong.status_code in (401, 404), rule.rule


def test_the_bearer_token_opens_the_api_and_a_wrong_one_does_not(services: Services) -> None:
    client = create_app(services).test_client()
    token = services.credentials.api_token
    right = client.get("/api/v1/queues", headers={"Authorization": f"Bearer {token}"})
    assert set(right.get_json()["queues"]) == {"agent", "gpu", "ingest", "train"}
    wrong = client.get("/api/v1/queues", headers={"Authorization": f"Bearer {token}x"})
    assert wrong.status_code == 401


@pytest.mark.parametrize("extra_params", [None, {}, {"threshold": 0.5}, '{"threshold": 0.5}'])
def test_setup_answers_a_version_and_remembers_the_project(
    web: FlaskClient, services: Services, extra_params: Any
) -> None:
    body = {
        "project": "28.1795421465",
        "schema": BRAIN_CONFIG,
        "hostname": "http://localhost:18080",
        "access_token": "must-not-be-kept",
        "extra_params": extra_params,
    }
    first, second = (web.post("/setup", json=body).get_json() for _ in range(2))
    assert first == second
    assert isinstance(first["model_version"], str)
    assert first["model_version"].startswith("tiny-")
    with services.database.reading() as session:
        project = session.get(Project, 28)
        assert project is not None
        assert project.label_config == BRAIN_CONFIG
        assert "must-not-be-kept" not in repr(vars(project))
    assert web.get("/versions").get_json() == {"versions": [first["model_version"]]}


@pytest.mark.parametrize("body", [b"", b"[]", b"{not json", b'{"tasks": 3}', b'{"tasks": [3]}'])
def test_a_malformed_predict_is_refused_with_a_sentence(web: FlaskClient, body: bytes) -> None:
    answer = web.post("/predict", data=body, content_type="application/json")
    assert answer.status_code == 400
    assert len(answer.get_json()["error"]) > 10


def test_no_tasks_and_a_deleted_prompt_are_answered_at_once(web: FlaskClient) -> None:
    empty = {"tasks": [], "project": "7.1", "label_config": BRAIN_CONFIG, "params": {}}
    assert web.post("/predict", json=empty).get_json() == {"results": []}
    deleted = {
        "tasks": [{"id": 1, "data": {"image": "/data/upload/1/x.png"}}],
        "project": "7.1",
        "label_config": BRAIN_CONFIG,
        "params": {"context": {"result": []}},
    }
    (result,) = web.post("/predict", json=deleted).get_json()["results"]
    assert result["result"] == []


@pytest.mark.parametrize("name", sorted(WEBHOOK_EVENTS))
def test_a_webhook_keeps_the_event_without_its_secrets(services: Services, name: str) -> None:
    recorded = WEBHOOK_EVENTS[name]
    client = create_app(services).test_client()
    secret = {WEBHOOK_SECRET_HEADER: services.credentials.webhook_secret}
    answer = client.post("/webhook", json=recorded["body"], headers=secret)
    assert answer.status_code == 201
    with services.database.reading() as session:
        event = session.scalars(select(Event)).one()
    assert event.action == recorded["body"]["action"]
    assert event.project_id == recorded["project_id"]
    assert event.task_ids == recorded["task_ids"]
    assert event.annotation_ids == recorded["annotation_ids"]
    assert queue(services.redis, QueueName.INGEST).count == 1
    dump = b"".join(path.read_bytes() for path in services.settings.data_dir.glob("medsam3.db*"))
    stored = b"".join(
        services.redis.dump(key) or b""
        for key in services.redis.scan_iter()  # type: ignore[misc]
    )
    assert b"project-token" not in dump + stored


def new_events(services: Services) -> list[str]:
    with services.database.reading() as session:
        return list(session.scalars(select(Event.id).where(Event.state == "new")))


def test_a_webhook_without_the_secret_is_refused(services: Services) -> None:
    client = create_app(services).test_client()
    for headers in ({}, {WEBHOOK_SECRET_HEADER: "guess"}):
        answer = client.post("/webhook", json={"action": "ANNOTATION_CREATED"}, headers=headers)
        assert answer.status_code == 401
    assert new_events(services) == []


def test_a_webhook_is_kept_while_redis_is_down(
    web: FlaskClient, services: Services, redis_server: RedisServer
) -> None:
    redis_server.stop()
    answer = web.post("/webhook", json={"action": "ANNOTATION_CREATED", "annotation": {"id": 5}})
    assert answer.status_code == 201
    assert new_events(services) == [answer.get_json()["event"]]


def test_metrics_are_prometheus_text_even_while_redis_is_down(
    web: FlaskClient, redis_server: RedisServer
) -> None:
    assert "medsam3_redis_up 1.0" in web.get("/metrics").text
    redis_server.stop()
    assert "medsam3_redis_up 0.0" in web.get("/metrics").text
