"""Requests that no honest caller sends: each is refused with a sentence, and nothing is kept."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug.test import TestResponse

from backend.services import Services
from backend.tables import Event, Project, Suggestion
from backend.web import requests as door
from tests.support.label_configs import BRAIN_CONFIG

API = "/api/v1"
RUN = f"{API}/training-runs"
POLICY = f"{API}/projects/7/training"
TASK = {"id": 1, "data": {"image": "/data/upload/1/x.png"}}
# Beyond INTEGER of PostgreSQL, of SQLite, and of every float.
TOO_LARGE = (2**31, 2**63, 2**70, -1)
NO_IDS: tuple[Any, ...] = (*TOO_LARGE, 1.5, True, "seven", "٧", [7], {"id": {}}, {"id": 2**70})


def predict(**changes: Any) -> dict[str, Any]:
    """A /predict that a change spoils."""
    sent = {"tasks": [TASK], "project": "7.1795421465", "label_config": BRAIN_CONFIG, "params": {}}
    return {**sent, **changes}


def task(**changes: Any) -> dict[str, Any]:
    """A /predict of one task that a change spoils."""
    return predict(tasks=[{**TASK, **changes}])


BODIES: list[tuple[str, str, Any]] = [
    *(("POST", "/setup", {"project": id_, "schema": BRAIN_CONFIG}) for id_ in NO_IDS),
    *(
        ("POST", "/setup", {"project": uid})
        for uid in ("", "7.x", "-7.1", "7 ", "1e3", f"{2**63}.1")
    ),
    ("POST", "/setup", {"schema": BRAIN_CONFIG}),
    ("POST", "/setup", {"project": None, "schema": BRAIN_CONFIG}),
    *(("POST", "/setup", {"project": "7.1", "schema": schema}) for schema in (3, [], {}, "a\0b")),
    ("POST", "/setup", {"project": "7.1", "schema": "\ud800"}),
    *(("POST", "/predict", predict(project=id_)) for id_ in NO_IDS),
    *(("POST", "/predict", task(id=id_)) for id_ in (*NO_IDS, {}, "5")),
    *(("POST", "/predict", task(project=id_)) for id_ in NO_IDS),
    *(("POST", "/predict", task(data=data)) for data in (None, 3, "x", [], [{}], True)),
    ("POST", "/predict", task(data={"image": "\0"})),
    ("POST", "/predict", task(data={"\0": "x"})),
    ("POST", "/predict", task(data={"image": "\udfff"})),
    ("POST", "/predict", predict(tasks=[{"id": 1}])),
    *(
        ("POST", "/predict", predict(tasks=tasks))
        for tasks in (None, 3, "x", {}, [3], [None], [[]])
    ),
    ("POST", "/predict", {"project": "7.1"}),
    *(("POST", "/predict", predict(label_config=config)) for config in (3, [], {}, "\0")),
    *(("POST", "/predict", predict(params=params)) for params in (3, "x", [], [{}])),
    *(("POST", "/predict", predict(params={"context": it})) for it in (3, "x", [], [{}], True)),
    *(
        ("POST", "/predict", predict(params={"context": {"result": result}}))
        for result in (3, "x", {"id": "a"}, [3], [None], [[]])
    ),
    *(
        ("POST", "/webhook", {"action": "ANNOTATION_CREATED", name: {"id": id_}})
        for name in ("project", "task", "annotation")
        for id_ in (*NO_IDS[:-2], {})
    ),
    (
        "POST",
        "/webhook",
        {"action": "ANNOTATION_CREATED", "annotation": [{"id": 5}, {"id": 2**70}]},
    ),
    ("POST", "/webhook", {"action": "ANNOTATION_CREATED", "annotation": [[5]]}),
    ("POST", "/webhook", {"action": "TASKS_DELETED", "tasks": {"id": "5"}}),
    ("POST", "/webhook", {"action": "TASKS_DELETED", "tasks": "5"}),
    *(("POST", "/webhook", {"action": action}) for action in (None, "", 3, [], "A" * 65, "A\0")),
    *(
        ("POST", f"{API}/models/promote", {"project": id_, "version": "tiny-1"})
        for id_ in (*NO_IDS, None, "7")
    ),
    *(
        ("POST", f"{API}/models/promote", {"project": 7, "version": version})
        for version in (None, "", 3, [], "\0", "\ud800", "v" * 201)
    ),
    ("POST", f"{API}/models/promote", {"project": 7}),
    ("POST", f"{API}/models/promote", {"project": 7, "version": "tiny-1", "force": "yes"}),
    ("POST", f"{API}/models/promote", {"project": 7, "version": "tiny-1", "forse": True}),
    *(("POST", f"{API}/models/rollback", {"project": id_}) for id_ in (*NO_IDS, None, "7")),
    ("POST", f"{API}/models/rollback", {}),
    *(("POST", RUN, {"project": id_}) for id_ in (*NO_IDS, None, "7")),
    *(("POST", RUN, {"project": 7, "steps": steps}) for steps in (0, -1, 2**31, 2**70, 1.5, "1")),
    *(("POST", RUN, {"project": 7, "seed": seed}) for seed in (-1, 2**63, "1", 0.5)),
    *(("POST", RUN, {"project": 7, "minutes": minutes}) for minutes in (0, -1, "1", [])),
    *(("POST", RUN, {"project": 7, "learning_rate": rate}) for rate in (0, -1e-3, "1", {})),
    ("POST", RUN, {"project": 7, "replay": "no"}),
    ("POST", RUN, {"project": 7, "consensus": "loudest"}),
    ("POST", RUN, {"project": 7, "stepps": 3}),
    *(("PUT", POLICY, {"after_corrections": count}) for count in (-1, 2**31, 2**70, 1.5, "1")),
    *(("PUT", POLICY, {"schedule": line}) for line in ("daily", 3, "\0", "0 " * 60)),
    ("PUT", POLICY, {"strategy": "luck"}),
    ("PUT", POLICY, {"strategie": "random"}),
    ("PUT", f"{API}/projects/{2**63}/training", {"after_corrections": 1}),
    ("PUT", f"{API}/projects/{2**31}/training", {"after_corrections": 1}),
]
ENDPOINTS = sorted({(method, path) for method, path, _ in BODIES})
NO_OBJECTS = (
    b"", b"[]", b"null", b"3", b'"x"', b"{", b"{not json", b"{}{}", b"\xff\xfe{}", b'{"a": NaN}',
    b'{"a": -Infinity}', b'{"a": 1e999}', b'{"a": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}",
    "{}".encode("utf-16"), b"[" * 5000 + b"]" * 5000, b'{"a": ' * 70 + b"1" + b"}" * 70,
    b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
)  # fmt: skip
QUERIES = [
    *(
        f"{path}?{name}={value}"
        for path, name in (
            (f"{API}/predictions", "project"),
            (f"{API}/predictions", "task"),
            (f"{API}/corrections", "project"),
            (f"{API}/corrections", "after"),
            (f"{API}/corrections/stats", "project"),
            (RUN, "project"),
        )
        for value in (
            "",
            "abc",
            "-1",
            "1.5",
            "1_0",
            "%D9%A7",
            "+7",
            str(2**31),
            str(2**63),
            str(2**70),
        )
    ),
    f"{API}/predictions?state=lost",
    f"{API}/predictions?state=%00",
    f"{API}/corrections?state=lost",
    f"{API}/corrections/{2**31}",
    f"{API}/corrections/{2**63}",
    f"{API}/corrections/{2**70}",
]
NOT_THERE = [
    f"{API}/predictions?before=%00",
    f"{API}/predictions?before=%FF",
    f"{RUN}/%00",
    f"{RUN}/%ED%A0%80",
    f"{API}/corrections/-1",
    f"{API}/corrections/0x10",
    f"{API}/nothing",
]

FOREIGN: list[tuple[int, dict[str, str]]] = [
    (415, {"Content-Type": "text/plain"}),
    (415, {"Content-Type": "application/x-www-form-urlencoded"}),
    (415, {"Content-Type": "multipart/form-data; boundary=x"}),
    (415, {"Content-Type": "text/plain; application/json"}),
    (415, {}),
    (415, {"Transfer-Encoding": "chunked"}),
    (403, {"Content-Type": "application/json", "Origin": "https://evil.example"}),
    (403, {"Content-Type": "application/json", "Origin": "null"}),
    (403, {"Content-Type": "application/json", "Origin": "http://localhost:8080"}),
    (403, {"Content-Type": "application/json", "Origin": "http://[::1"}),
    (403, {"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"}),
    (403, {"Content-Type": "application/json", "Sec-Fetch-Site": "same-site"}),
]


def is_refused(answer: TestResponse, status: int = 400) -> None:
    said = answer.get_json()["error"]
    assert answer.status_code == status, (answer.status_code, said)
    assert len(said) > 15, said


@pytest.fixture
def kept(services: Services) -> Iterator[None]:
    """Afterwards the database is as empty as before."""
    yield
    with services.database.reading() as session:
        for table in (Event, Project, Suggestion):
            assert session.scalars(select(table)).all() == [], table


def test_a_body_that_does_not_fit_is_refused_with_the_field(web: FlaskClient, kept: None) -> None:
    assert len(BODIES) > 150
    for method, path, body in BODIES:
        answer = web.open(path, method=method, json=body)
        assert answer.status_code == 400, (method, path, body, answer.text)
        assert len(answer.get_json()["error"]) > 15, answer.text


def test_a_body_that_is_no_object_is_refused(web: FlaskClient, kept: None) -> None:
    for method, path in ENDPOINTS:
        for body in NO_OBJECTS:
            answer = web.open(path, method=method, data=body, content_type="application/json")
            assert answer.status_code == 400, (path, body[:40], answer.text)


def test_a_path_or_query_that_names_no_number_is_refused(web: FlaskClient) -> None:
    for path in QUERIES:
        assert web.get(path).status_code == 400, path
    for path in NOT_THERE:
        assert web.get(path).status_code == 404, path
    is_refused(web.get(QUERIES[0]))
    is_refused(web.get(NOT_THERE[0]), 404)


@pytest.mark.parametrize(
    "body",
    [
        b'{"tasks": [' + b"[]," * 10_500_000 + b"[]]}",
        b'{"tasks": [' + b"{}," * 600_000 + b"{}]}",
        b'{"tasks": [' + b"1," * 16_500_000 + b"1]}",
        b'{"tasks": ' + b"[" * 600_000,
    ],
    ids=["lists", "objects", "numbers", "depth"],
)
def test_a_body_that_would_fill_the_memory_is_refused_before_it_is_read(
    web: FlaskClient, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "json", None)
    is_refused(web.post("/predict", data=body, content_type="application/json"), 413)


def test_masks_of_old_predictions_are_let_through(web: FlaskClient) -> None:
    value = {"format": "rle", "rle": [0, 255] * 200_000, "brushlabels": ["Brain"]}
    body = predict(tasks=[], predictions=[{"result": [{"value": value}]}] * 4)
    assert web.post("/predict", json=body).get_json() == {"results": []}


def test_a_page_of_another_site_starts_nothing(web: FlaskClient, kept: None) -> None:
    body = json.dumps({"project": 7, "action": "START_TRAINING", "tasks": []})
    for path in ("/setup", "/predict", "/webhook", RUN, f"{API}/models/rollback"):
        for status, headers in FOREIGN:
            answer = web.post(path, data=body, headers=headers)
            assert answer.status_code == status, (path, headers, answer.text)


def test_a_page_of_another_site_cancels_nothing(web: FlaskClient) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        is_refused(web.post(f"{RUN}/unknown/cancel", headers=headers), 403)
    is_refused(web.post(f"{RUN}/unknown/cancel", data={"a": "b"}), 415)
    assert web.post(f"{RUN}/unknown/cancel").status_code == 409


def test_what_label_studio_and_scripts_send_is_taken(web: FlaskClient) -> None:
    for headers in ({}, {"Origin": "http://localhost"}, {"Sec-Fetch-Site": "none"}):
        answer = web.post("/setup", json={"project": "7.1", "schema": None}, headers=headers)
        assert answer.status_code == 200, answer.text
    assert web.post("/webhook", json={"annotation": {"id": 5}}).status_code == 201
    charset = {"Content-Type": "application/json; charset=utf-8"}
    event = json.dumps({"action": "PROJECT_UPDATED", "project": {"id": 7}, "new": [{}]})
    assert web.post("/webhook", data=event, headers=charset).status_code == 201
