"""Who gets into the console, and what nobody gets out of it."""

import gzip
import re

from flask.testing import FlaskClient

from backend.processes.redis_server import RedisServer
from backend.services import Services
from backend.web.app import create_app
from tests.support.agent_rows import RUN, add_agent_runs
from tests.support.console import CONSOLE, admin, browser, log_in, send, token_of
from tests.support.model_rows import add_versions
from tests.support.training_rows import add_runs

HEAVIEST_BYTES = 120_000


def addresses(client: FlaskClient, method: str) -> list[str]:
    """The console's addresses that answer a method, with made-up values in them."""
    return [
        re.sub(r"<int:\w+>", "7", re.sub(r"<\w+>", "any", rule.rule))
        for rule in client.application.url_map.iter_rules()
        if rule.endpoint.startswith("console.") and method in (rule.methods or ())
        if rule.endpoint not in ("console.login", "console.static")
    ]


def test_a_stranger_is_led_to_the_login_and_changes_nothing(services: Services) -> None:
    stranger = browser(services)
    token = token_of(stranger, f"{CONSOLE}/login")
    assert CONSOLE in addresses(stranger, "GET")
    basic = (services.credentials.user, services.credentials.password)
    for path in (*addresses(stranger, "GET"), f"{CONSOLE}/nothing"):
        for auth in (None, basic):
            answer = stranger.get(path, auth=auth)
            assert (answer.status_code, answer.location) == (
                302,
                f"{CONSOLE}/login?next={path}",
            ), path
    for path in addresses(stranger, "POST"):
        answer = stranger.post(path, data={"csrf_token": token})
        assert (answer.status_code, answer.location) == (302, f"{CONSOLE}/login"), path


def test_the_session_is_a_cookie_of_the_console_alone(services: Services) -> None:
    client = browser(services)
    wrong = log_in(client, services.credentials, password="guess")
    assert wrong.status_code == 401
    assert "is wrong" in wrong.text
    before = token_of(client, f"{CONSOLE}/login")
    answer = log_in(client, services.credentials)
    assert (answer.status_code, answer.location) == (302, CONSOLE)
    cookie = answer.headers["Set-Cookie"]
    for part in ("HttpOnly", "SameSite=Strict", "Path=/console"):
        assert part in cookie
    assert "Secure" not in cookie
    page = client.get(CONSOLE)
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self';")
    for secret in (services.credentials.password, services.credentials.api_token):
        assert secret not in page.text + cookie
    # The session opens the console and nothing else.
    assert client.get("/api/v1/queues").status_code == 401
    # A token of before the login is worth nothing after it.
    assert client.post(f"{CONSOLE}/retry", data={"csrf_token": before}).status_code == 400

    assert send(client, "/logout").request.path == f"{CONSOLE}/login"
    assert client.get(CONSOLE).status_code == 302


def test_behind_tls_only_tls_carries_the_cookie(services: Services) -> None:
    client = browser(services)
    page = client.get(f"{CONSOLE}/login", base_url="https://localhost")
    assert "; Secure;" in page.headers["Set-Cookie"]


def test_a_login_leads_to_pages_of_the_console_only(services: Services) -> None:
    address = f"{CONSOLE}/login"
    client = browser(services)
    for asked, led_to in (
        ("/console/login", "/console/login"),
        ("https://evil.example", CONSOLE),
        ("//evil.example/console/", CONSOLE),
        ("/console/\\evil.example", CONSOLE),
        ("/consoles", CONSOLE),
    ):
        sent = {
            "user": services.credentials.user,
            "password": services.credentials.password,
            "csrf_token": token_of(client, address),
        }
        answer = client.post(address, data=sent, query_string={"next": asked})
        assert answer.location == led_to
        send(client, "/logout")


def test_forms_of_other_sites_and_forged_ones_are_refused(services: Services) -> None:
    client = admin(services)
    token = token_of(client)
    for path in addresses(client, "POST"):
        for forged in ({}, {"csrf_token": "guess"}, {"csrf_token": token[:-1]}):
            answer = client.post(path, data=forged)
            assert answer.status_code == 400, path
            assert "That did not work" in answer.text
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            answer = client.post(path, data={"csrf_token": token}, headers=headers)
            assert answer.status_code == 403, path
    # All of that has changed nothing: not even the session has ended.
    assert client.get(CONSOLE).status_code == 200


def test_another_password_ends_every_session(services: Services) -> None:
    client = admin(services)
    cookie = client.get_cookie("medsam3_console", path=CONSOLE)
    assert cookie is not None
    changed = services.settings.model_copy(update={"api_token": None})
    (services.settings.data_dir / "credentials.json").unlink()
    other = create_app(Services(changed, services.database, services.redis)).test_client()
    other.set_cookie("medsam3_console", cookie.value, path=CONSOLE)
    assert other.get(CONSOLE).status_code == 302


def test_guessing_is_slowed_down_by_redis_or_without_it(
    services: Services, redis_server: RedisServer
) -> None:
    for is_up in (True, False):
        if not is_up:
            redis_server.stop()
        client = browser(services)
        answers = [log_in(client, services.credentials, "guess").status_code for _ in range(11)]
        assert answers == [401] * 10 + [429]
        # Not even the right password then, or the wrong ones could be told from it.
        assert log_in(client, services.credentials).status_code == 429


def test_a_page_is_light(services: Services) -> None:
    client = admin(services)
    add_versions(services)
    add_runs(services)
    add_agent_runs(services)
    for path in (
        "",
        "/training/7",
        "/training/runs/running",
        "/preannotate/7",
        "/models",
        "/agent",
        f"/agent/{RUN}",
        "/audit",
    ):
        page = client.get(CONSOLE + path).text
        parts = re.findall(r'(?:src|href)="(/(?:console|bootstrap)/static/[^"]+)"', page)
        assert len(parts) == 4, path
        sent = [page.encode()]
        for part in parts:
            with client.get(part) as answer:
                sent.append(answer.data)
        assert sum(len(gzip.compress(part)) for part in sent) < HEAVIEST_BYTES, path
        # Links lead to Label Studio; nothing is loaded from there.
        loads = re.sub(r"<a\s[^>]*>", "", page)
        assert not re.findall(r'(?:src|href)="(?:https?:)?//', loads), path
        assert not re.search(r"<script>|<style|\sstyle=|\son\w+=", page), path
