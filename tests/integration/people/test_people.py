"""People: tokens with roles, what a viewer may not do, and what the audit trail says of it all."""

import re
from datetime import timedelta

import pytest

from backend.people import audit
from backend.people.tables import ApiToken
from backend.services import Services
from backend.tables import Project, now
from backend.web.app import create_app
from backend.web.auth import FOR_EVERYBODY, READING
from tests.support.commands import json_of, run
from tests.support.console import CONSOLE, browser, token_of


def trail(services: Services) -> list[tuple[str, str, str, str | None]]:
    """Who did what through what, and what about; newest first."""
    with services.database.reading() as session:
        rows = audit.entries(session)
    return [(row.person, row.via, row.action, row.subject) for row in rows]


@pytest.fixture
def tokens(services: Services, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A viewer's and an admin's token, made by commands on the test's database."""
    monkeypatch.setattr("backend.services.open_services", lambda: services)
    made = {
        role: json_of("tokens", "add", name, "--role", role)["token"]
        for name, role in (("vera", "viewer"), ("ada", "admin"))
    }
    audit.act_as(audit.BACKEND)
    return made


def test_a_viewer_reads_everything_and_changes_nothing(
    services: Services, tokens: dict[str, str]
) -> None:
    app = create_app(services)
    client = app.test_client()
    viewer = {"Authorization": f"Bearer {tokens['viewer']}"}
    admin = {"Authorization": f"Bearer {tokens['admin']}"}
    assert client.get("/api/v1/models", headers=viewer).status_code == 200
    assert client.get("/api/v1/models", auth=("vera", tokens["viewer"])).status_code == 200
    # A token opens nothing under another person's name.
    assert client.get("/api/v1/models", auth=("ada", tokens["viewer"])).status_code == 401

    console = browser(services)
    sent = {"user": "vera", "password": tokens["viewer"]}
    sent["csrf_token"] = token_of(console, f"{CONSOLE}/login")
    assert console.post(f"{CONSOLE}/login", data=sent).status_code == 302
    page = console.get(CONSOLE).text
    assert "vera (viewer)" in page
    with services.database.session() as session:
        session.add(Project(id=7))
    assert "/console/preannotate/7" not in console.get(CONSOLE).text
    assert '<fieldset class="row" disabled>' in console.get(f"{CONSOLE}/training/7").text
    form = {"csrf_token": token_of(console)}

    changing = [
        (method, rule)
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - READING)
        if rule.endpoint not in FOR_EVERYBODY
    ]
    assert len(changing) > 8
    for method, rule in changing:
        path = re.sub(r"<(\w+:)?\w+>", "7", rule.rule)
        if path.startswith(CONSOLE):
            answer = console.open(path, method=method, data=form)
        else:
            answer = client.open(path, method=method, json={}, headers=viewer)
        assert answer.status_code == 403, (method, path)
        assert ("vera", "refused", f"{method} {rule.rule}") in [
            (person, action, subject) for person, _, action, subject in trail(services)
        ]
    # An admin's token gets as far as the body, which is wrong.
    assert client.post("/api/v1/models/promote", json={}, headers=admin).status_code == 400

    # Revoked: at once, and the session with it.
    assert run("tokens", "revoke", "vera").exit_code == 0
    assert client.get("/api/v1/models", headers=viewer).status_code == 401
    assert console.get(CONSOLE).status_code == 302


def test_tokens_are_kept_as_hashes_and_names_are_taken_once(
    services: Services, tokens: dict[str, str]
) -> None:
    with services.database.reading() as session:
        kept = " ".join(f"{row.name} {row.digest}" for row in session.query(ApiToken))
    assert "vera" in kept
    assert not [token for token in tokens.values() if token in kept]
    assert not [token for token in tokens.values() if token in run("tokens", "list").output]
    for name in ("ada", "label-studio", "backend", "a b", ""):
        assert run("tokens", "add", name).exit_code == 1, name
    assert run("tokens", "revoke", "nobody").exit_code == 1
    person, via = audit.operating_user().name, "command"
    assert trail(services)[:2] == [
        (person, via, "add-token", "ada"),
        (person, via, "add-token", "vera"),
    ]


def test_what_is_done_and_refused_is_in_the_trail(
    services: Services, tokens: dict[str, str]
) -> None:
    client = create_app(services).test_client()
    admin = {"Authorization": f"Bearer {tokens['admin']}"}
    for _ in range(3):
        client.get("/api/v1/models", headers={"Authorization": "Bearer guess"})
    foreign = {**admin, "Origin": "https://evil.example"}
    assert client.post("/api/v1/models/promote", json={}, headers=foreign).status_code == 403
    made = client.post("/api/v1/training-runs", json={"project": 7}, headers=admin).get_json()
    path = f"/api/v1/training-runs/{made['id']}/cancel"
    assert client.post(path, headers=admin).status_code == 200
    assert trail(services)[:4] == [
        ("ada", "api", "cancel-training", made["id"]),
        ("ada", "api", "train", made["id"]),
        ("ada", "api", "refused", "POST /api/v1/models/promote"),
        ("unknown", "api", "refused", "GET /api/v1/models"),
    ]
    console = browser(services)
    for password in ("guess", tokens["admin"]):
        sent = {"user": "ada", "password": password}
        sent["csrf_token"] = token_of(console, f"{CONSOLE}/login")
        console.post(f"{CONSOLE}/login", data=sent)
    assert console.post(f"{CONSOLE}/retry", data={"csrf_token": "forged"}).status_code == 400
    assert trail(services)[:3] == [
        ("ada", "console", "refused", "POST /console/retry"),
        ("ada", "console", "log-in", None),
        ("unknown", "console", "refused", "POST /console/login"),
    ]
    page = console.get(f"{CONSOLE}/audit").text
    assert "cancel-training" in page
    printed = run("audit", "--json", "--since", "2020-01-01").stdout
    assert '"count": 3' in printed
    assert not [token for token in tokens.values() if token in page + printed]
    assert run("audit", "--since", "2999-01-01").stdout == ""
    with services.database.session() as session:
        audit.prune(session, now() + timedelta(days=1))
    assert trail(services) == []
