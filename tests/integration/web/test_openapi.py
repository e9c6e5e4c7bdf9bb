"""The API's description is valid and complete, and says what the endpoints do."""

import json
from typing import Any

import pytest
from flask.testing import FlaskClient
from openapi_spec_validator import validate

from backend.services import Services
from backend.web.app import create_app
from backend.web.auth import OPEN_PATHS, is_console
from tests.support.described_api import validator
from tests.support.repository import ROOT

API = "/api/v1"
WRITES = {"post", "put", "patch", "delete"}


@pytest.fixture
def described(web: FlaskClient) -> dict[str, Any]:
    """The description as a caller gets it."""
    found: dict[str, Any] = web.get(f"{API}/openapi.json").get_json()
    return found


def operations(described: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """By method and path."""
    return {
        (method, path): operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }


def test_it_is_valid_and_has_every_endpoint(web: FlaskClient, described: dict[str, Any]) -> None:
    validate(described)
    assert described["openapi"].startswith("3.1")
    expected = {
        (method.lower(), rule.rule.replace("<int:", "{").replace("<", "{").replace(">", "}"))
        for rule in web.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if not rule.endpoint.endswith("static") and not is_console(rule.rule)
    }
    shown = operations(described)
    assert set(shown) == expected
    assert ("get", f"{API}/openapi.json") in shown
    names = [operation["operationId"] for operation in shown.values()]
    assert len(names) == len(set(names))


def test_every_operation_says_what_it_takes_answers_and_refuses(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    assert set(described["components"]["securitySchemes"]) == {"bearer", "basic", "webhook"}
    for (method, path), operation in operations(described).items():
        where, responses = f"{method} {path}", set(operation["responses"])
        assert len(operation["summary"]) > 15, where
        assert responses & {"200", "201"}, where
        assert ("401" in responses) == (path not in OPEN_PATHS), where
        assert (operation.get("security") == []) == (path in OPEN_PATHS), where
        assert ({"403", "415"} <= responses) == (method in WRITES), where
        places = {one["name"]: one["in"] for one in operation.get("parameters", ())}
        assert {name for name in places if f"{{{name}}}" in path} == {
            name for name, place in places.items() if place == "path"
        }, where
        checked = "requestBody" in operation or any(
            one["in"] == "query" or one["schema"]["type"] == "integer"
            for one in operation.get("parameters", ())
        )
        assert ("400" in responses) == checked, where
    # Said in the class, where its readers look for it.
    figures = schemas["CorrectionFigures"]
    assert figures["properties"]["hd95"]["description"] == "their median, in pixels."
    assert "`edited`" in figures["properties"]["edited"]["description"]
    assert "Attributes" not in figures["description"]
    assert "A mean or rate of nothing is None." in figures["description"]
    # What a body's fields are called is said once: by the model that reads it.
    assert schemas["TrainingWish"]["additionalProperties"] is False
    assert "minimum" in str(schemas["TrainingWish"]["properties"]["steps"])


def test_it_is_nobodys_without_credentials(services: Services) -> None:
    stranger = create_app(services).test_client()
    assert stranger.get(f"{API}/openapi.json").status_code == 401


def test_every_argument_and_field_is_read_by_its_endpoint(
    web: FlaskClient, described: dict[str, Any]
) -> None:
    """What none of them can be is refused by name, so the endpoint looks at it."""
    schemas = described["components"]["schemas"]
    looked_at = 0
    for (method, path), operation in operations(described).items():
        address = path.replace("{", "").replace("}", "").replace("project_id", "7")
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "query":
                answer = web.get(address, query_string={parameter["name"]: "\0"})
                assert answer.status_code in (400, 404), (address, parameter["name"])
                looked_at += 1
        if "requestBody" not in operation:
            continue
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        for field in schemas[reference.rpartition("/")[2]]["properties"]:
            answer = web.open(address, method=method, json={field: [[]]})
            assert answer.status_code == 400, (address, field)
            looked_at += 1
            if path.startswith(API):
                answer = web.open(address, method=method, json={f"{field}_": None})
                assert answer.status_code == 400, (address, field)
    assert looked_at > 40


def test_what_label_studio_sends_fits_the_description(
    web: FlaskClient, described: dict[str, Any]
) -> None:
    events = json.loads((ROOT / "tests" / "data" / "webhook_events.json").read_text())
    project = {"project": "28.1795421465"}
    task = {"id": 5, "data": {"image": "/data/upload/7/slice.png"}, "annotations": []}
    sent: dict[str, list[dict[str, Any]]] = {
        "/webhook": [recorded["body"] for recorded in events.values()],
        "/setup": [{**project, "schema": "<View/>", "hostname": "", "extra_params": None}],
        "/predict": [{**project, "tasks": [task], "label_config": "<View/>", "params": {}}],
    }
    assert len(sent["/webhook"]) > 5
    for path, bodies in sent.items():
        body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        described_as = validator(web.application, body["schema"]["$ref"], closed=False)
        for one in bodies:
            mistakes = [error.message for error in described_as.iter_errors(one)]
            assert not mistakes, (path, mistakes)
