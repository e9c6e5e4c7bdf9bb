"""Training runs, versions and policies over HTTP."""

from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from backend.models import versions
from backend.training import runs
from backend.training.tables import RunState
from backend.training.trainer import train_run
from backend.web.app import create_app
from tests.support.training_stage import TrainingStage

API = "/api/v1"


@pytest.fixture
def script(stage: TrainingStage) -> FlaskClient:
    """A caller with the token for scripts."""
    client = create_app(stage.services).test_client()
    token = stage.services.credentials.api_token
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    return client


def start(client: FlaskClient, **body: object) -> TestResponse:
    return client.post(f"{API}/training-runs", json=body)


def run_of(client: FlaskClient, id_: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"{API}/training-runs/{id_}").get_json()
    return found


def test_a_run_is_asked_for_once_watched_and_ends_in_service(
    stage: TrainingStage, script: FlaskClient
) -> None:
    stage.annotate(train=14, val=6)
    first = start(script, project=7, steps=48, learning_rate=2e-3)
    again = start(script, project=7)
    assert (first.status_code, again.status_code) == (201, 200)
    id_ = first.get_json()["id"]
    assert again.get_json() == {"id": id_, "new": False}
    waiting = run_of(script, id_)
    assert (waiting["state"], waiting["step"], waiting["steps"]) == ("queued", 0, 48)
    assert waiting["options"]["learning_rate"] == 2e-3
    assert waiting["trigger"] == "api"

    seen: list[tuple[str, int, float | None]] = []
    report = runs.report

    def watched(*arguments: Any, **values: Any) -> None:
        report(*arguments, **values)
        now = run_of(script, id_)
        seen.append((now["stage"], now["step"], now["loss"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "report", watched)
        train_run(stage.services, id_)
    assert list(dict.fromkeys(one for one, _, _ in seen)) == [
        "snapshot",
        "training",
        "gate",
        "promotion",
    ]
    steps = [(step, loss) for at, step, loss in seen if at == "training" and step]
    assert steps[-1][0] == 48
    assert all(loss is not None and loss > 0 for _, loss in steps)

    ended = run_of(script, id_)
    assert (ended["state"], ended["stage"], ended["error"]) == ("done", None, None)
    assert ended["validation_dice"] > 0
    assert ended["gate"]["passed"], ended["gate"]["reasons"]
    listed = script.get(f"{API}/training-runs?project=7").get_json()["training_runs"]
    assert listed == [ended]
    assert script.get(f"{API}/training-runs?project=8").get_json()["training_runs"] == []

    found = script.get(f"{API}/models").get_json()
    assert found["in_service"] == {"7": ended["candidate"]}
    (version,) = [one for one in found["models"] if one["version"] == ended["candidate"]]
    assert (version["parent"], version["run"]) == (found["default"], id_)
    assert version["card"]["data"]["training_images"] == 14

    back = script.post(f"{API}/models/rollback", json={"project": 7})
    assert back.get_json()["version"] == found["default"]
    forth = script.post(f"{API}/models/promote", json={"project": 7, "version": version["version"]})
    assert forth.get_json() == {
        "project": 7,
        "version": version["version"],
        "previous": found["default"],
        "kind": "manual",
    }
    assert versions.in_service(stage.services, 7) == version["version"]


def test_cancelling(stage: TrainingStage, script: FlaskClient) -> None:
    id_ = start(script, project=7).get_json()["id"]
    assert script.post(f"{API}/training-runs/{id_}/cancel").get_json()["state"] == "cancelled"
    stage.annotate(train=2)
    id_ = start(script, project=7, steps=500).get_json()["id"]
    report = runs.report

    def cancelled_at_work(*arguments: Any, **values: Any) -> None:
        if values.get("step") == 1:
            assert script.post(f"{API}/training-runs/{id_}/cancel").get_json()["state"] == "running"
        report(*arguments, **values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "report", cancelled_at_work)
        train_run(stage.services, id_)
    ended = run_of(script, id_)
    assert ended["state"] == RunState.CANCELLED
    assert ended["step"] < 500
    assert ended["candidate"] is None
    assert script.post(f"{API}/training-runs/unknown/cancel").status_code == 409
    assert script.get(f"{API}/training-runs/unknown").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"project": "7"},
        {"project": True},
        {"project": 7, "steps": 0},
        {"project": 7, "steps": "many"},
        {"project": 7, "steps": 2**63},
        {"project": 7, "minutes": float("inf")},
        {"project": 2**70},
        {"project": -1},
        {"project": 7, "learning_rate": -1},
        {"project": 7, "consensus": "loudest"},
        {"project": 7, "damage": True},
    ],
)
def test_what_makes_no_sense_is_refused(
    script: FlaskClient, stage: TrainingStage, body: dict[str, Any]
) -> None:
    answer = start(script, **body)
    assert answer.status_code == 400
    assert answer.get_json()["error"]
    assert script.get(f"{API}/training-runs").get_json() == {"training_runs": []}


def test_a_version_that_is_not_there_or_never_served(script: FlaskClient) -> None:
    body = {"project": 7, "version": "tiny-p7-00000000"}
    answer = script.post(f"{API}/models/promote", json=body)
    assert answer.status_code == 409
    assert "tiny-p7-00000000" in answer.get_json()["error"]
    assert script.post(f"{API}/models/rollback", json={"project": 7}).status_code == 409


def test_a_project_has_choices_of_its_own(stage: TrainingStage, script: FlaskClient) -> None:
    address = f"{API}/projects/7/training"
    chosen = {"strategy": "random", "after_corrections": 5, "schedule": "0 3 * * 1"}
    answer = script.put(address, json=chosen)
    rest = {"consensus": None, "auto_promote": None, "agent": None, "adapter": None}
    assert answer.get_json() == {"project": 7, **chosen, **rest}
    assert script.put(address, json={"schedule": None}).get_json()["strategy"] == "random"
    for wrong in (
        {"strategy": "guess"},
        {"strategy": "diversity"},
        {"schedule": "at dawn"},
        {"schedule": "0 0 30 2 *"},
        {"schedule": "0 0 1 1 * 0 2020"},
        {"schedule": "0 3 * * *" + 100 * " "},
        {"after_corrections": 2**31},
        {"after_corrections": -1},
        {"after_corrections": True},
        {"colour": "red"},
    ):
        assert script.put(address, json=wrong).status_code == 400, wrong
    assert script.put(f"{API}/projects/{2**70}/training", json={}).status_code == 400


def test_nothing_without_credentials(stage: TrainingStage) -> None:
    stranger = create_app(stage.services).test_client()
    calls = [
        stranger.post(f"{API}/training-runs", json={"project": 7}),
        stranger.get(f"{API}/training-runs"),
        stranger.get(f"{API}/training-runs/any"),
        stranger.post(f"{API}/training-runs/any/cancel"),
        stranger.get(f"{API}/models"),
        stranger.post(f"{API}/models/promote", json={"project": 7, "version": "any"}),
        stranger.post(f"{API}/models/rollback", json={"project": 7}),
        stranger.put(f"{API}/projects/7/training", json={}),
    ]
    assert {one.status_code for one in calls} == {401}
    with stage.services.database.reading() as session:
        assert runs.list_runs(session) == []
