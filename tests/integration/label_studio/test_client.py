"""The client on a server that fails on purpose: what is repeated, and what is not."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from backend.errors import (
    LabelStudioAuthError,
    LabelStudioError,
    LabelStudioUnavailableError,
    SettingsError,
)
from backend.label_studio.auth import retry_after_s
from backend.label_studio.client import LabelStudio
from backend.label_studio.images import fetch_image
from backend.label_studio.server import free_port
from backend.settings import Settings
from tests.support.http_server import Handler, HttpServer
from tests.support.tokens import LEGACY_TOKEN, jwt


class Studio:
    """Answers with `statuses` one after the other, then with 200; keeps what was asked."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}  # of answers that are no success
        self.sent: list[dict[str, str]] = []
        self.body: Any = {"ok": True}
        self.requests: list[tuple[str, str, str]] = []
        self.access_lives_s = 300.0
        studio = self

        class StudioHandler(Handler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                token = self.headers.get("Authorization", "")
                studio.sent.append({k.lower(): v for k, v in self.headers.items()})
                studio.requests.append((self.command, self.path, token))
                if self.path == "/api/token/refresh/":
                    ends = time.time() + studio.access_lives_s
                    status, body = 200, {"access": jwt(exp=ends, n=len(studio.requests))}
                else:
                    status = studio.statuses.pop(0) if studio.statuses else 200
                    body = studio.body
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send(status, studio.headers if status >= 300 else {}, content)

        self._server = HttpServer(StudioHandler)
        self.url = self._server.url
        self.close = self._server.close

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]


@pytest.fixture
def studio() -> Iterator[Studio]:
    studio = Studio()
    yield studio
    studio.close()


def test_what_may_be_repeated_is_repeated(studio: Studio) -> None:
    with LabelStudio(studio.url, LEGACY_TOKEN) as client:
        studio.statuses = [503, 502, 504]
        assert client.get("/api/x") == {"ok": True}
        studio.statuses = [503]
        assert client.patch("/api/x", {}) == {"ok": True}
    assert [method for method, _, _ in studio.requests] == ["GET"] * 4 + ["PATCH"] * 2


def test_a_server_that_stays_away_is_unavailable(studio: Studio) -> None:
    with LabelStudio(studio.url, LEGACY_TOKEN, attempts=3) as client:
        studio.statuses = [503] * 9
        with pytest.raises(LabelStudioUnavailableError, match="answered 503 to GET /api/x"):
            client.get("/api/x")
    assert len(studio.requests) == 3


def test_a_post_is_sent_once(studio: Studio) -> None:
    with LabelStudio(studio.url, LEGACY_TOKEN) as client:
        studio.statuses = [503]
        with pytest.raises(LabelStudioUnavailableError):
            client.push_predictions(1, [])
    assert len(studio.requests) == 1


def test_an_error_is_not_repeated_and_its_page_not_shown(studio: Studio) -> None:
    with LabelStudio(studio.url, LEGACY_TOKEN) as client:
        studio.statuses, studio.body = [500], b"<html>secret</html>"
        with pytest.raises(LabelStudioError, match=r"500 to GET /api/x$") as caught:
            client.get("/api/x", token="in-the-query")
        assert caught.value.status_code == 500
        with pytest.raises(LabelStudioError, match="address of Label Studio itself"):
            client.get("/api/x")
    assert len(studio.requests) == 2


def test_threads_share_one_access_token(studio: Studio) -> None:
    personal = jwt(exp=time.time() + 9999)
    with LabelStudio(studio.url, personal) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: client.get("/api/x"), range(24)))
    assert studio.paths().count("/api/token/refresh/") == 1
    assert all(token.startswith("Bearer ") for _, path, token in studio.requests if "x" in path)
    assert all(token == "" for _, path, token in studio.requests if "refresh" in path)


def test_an_access_token_is_replaced_before_it_ends(studio: Studio) -> None:
    studio.access_lives_s = 5
    with LabelStudio(studio.url, jwt(exp=time.time() + 9999)) as client:
        client.get("/api/x")
        client.get("/api/x")
    assert studio.paths().count("/api/token/refresh/") == 2


def test_a_refusal_is_tried_again_once_with_a_new_access_token(studio: Studio) -> None:
    with LabelStudio(studio.url, jwt(exp=time.time() + 9999)) as client:
        studio.statuses = [401]
        assert client.get("/api/x") == {"ok": True}
        studio.statuses = [401, 401]
        with pytest.raises(LabelStudioAuthError):
            client.get("/api/x")
    assert studio.paths().count("/api/x") == 4


def test_no_token(studio: Studio) -> None:
    settings = Settings(_env_file=None, label_studio_url=studio.url, label_studio_api_key=None)
    with pytest.raises(LabelStudioAuthError, match="LABEL_STUDIO_API_KEY"):
        LabelStudio.from_settings(settings)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_who_is_told_to_come_later_comes_later(studio: Studio, method: str) -> None:
    with LabelStudio(studio.url, LEGACY_TOKEN) as client:
        studio.statuses, studio.headers = [429, 429], {"Retry-After": "0"}
        assert (client.get if method == "GET" else client.post)("/api/x") == {"ok": True}
    assert studio.paths() == ["/api/x"] * 3


@pytest.mark.parametrize("wait", ["3600", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_long_wait_is_left_to_who_comes_back_later(studio: Studio, wait: str) -> None:
    with LabelStudio(studio.url, LEGACY_TOKEN) as client:
        studio.statuses, studio.headers = [429], {"Retry-After": wait}
        with pytest.raises(LabelStudioUnavailableError, match="answered 429 to GET /api/x"):
            client.get("/api/x")
    assert len(studio.requests) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("soon", None), ("", None), ("-1", None)],
)
def test_how_long_to_wait(value: str, seconds: float | None) -> None:
    assert retry_after_s(httpx2.Response(429, headers={"Retry-After": value})) == seconds


def test_the_key_of_a_service_account_goes_where_it_is_taken(studio: Studio) -> None:
    with LabelStudio(studio.url, "service-key") as client:
        studio.statuses = [401]
        assert client.get("/api/x") == {"ok": True}
        assert client.get("/api/x") == {"ok": True}
    first, second, third = studio.sent
    assert first["authorization"] == "Token service-key"
    for later in (second, third):
        assert later["x-api-key"] == "service-key"
        assert "authorization" not in later


def test_a_proxy_in_front_gets_its_login_and_label_studio_the_token(studio: Studio) -> None:
    url = studio.url.replace("http://", "http://me:hidden@")
    with LabelStudio(url, LEGACY_TOKEN) as client:
        assert client.get("/api/x") == {"ok": True}
        studio.statuses = [500]
        with pytest.raises(LabelStudioError) as caught:
            client.get("/api/x")
    assert studio.sent[0]["authorization"] == "Basic bWU6aGlkZGVu"
    assert studio.sent[0]["x-api-key"] == LEGACY_TOKEN
    assert "hidden" not in str(caught.value)


def test_a_server_that_leads_on_to_https_is_named(studio: Studio) -> None:
    leads_on = r"leads on to https://labels\.example\.org: set LABEL_STUDIO_URL to that address"
    settings = Settings(_env_file=None)
    with LabelStudio(studio.url, LEGACY_TOKEN) as client:
        upload = "/data/upload/1/a.png"
        reads: dict[str, Callable[[], object]] = {
            "/api/x": lambda: client.get("/api/x"),
            upload: lambda: fetch_image(upload, client=client, settings=settings),
        }
        for path in reads:
            studio.statuses = [301]
            studio.headers = {"Location": f"https://labels.example.org{path}"}
            with pytest.raises(LabelStudioUnavailableError, match=leads_on):
                reads[path]()


@pytest.mark.parametrize(
    ("location", "address"),
    [
        ("https://labels.example.org/labels/api/x", "https://labels.example.org/labels"),
        ("/labels/labels/api/x", "/labels/labels"),
        ("https://labels.example.org/labels/api/x/", "https://labels.example.org/labels"),
        ("https://bucket.example.org/labels/api/x?Signature=hidden", ""),
        ("https://labels.example.org/elsewhere", ""),
        ("/labels/api/x/", ""),
    ],
)
def test_where_all_of_a_server_is(studio: Studio, location: str, address: str) -> None:
    studio.statuses, studio.headers = [301], {"Location": location}
    url = f"{studio.url}/labels"
    says = "set LABEL_STUDIO_URL" if address else "answered 301"
    with (
        LabelStudio(url, LEGACY_TOKEN) as client,
        pytest.raises(LabelStudioError, match=says) as caught,
    ):
        client.get("/api/x")
    assert f"{address}: set" in str(caught.value) or not address
    assert "hidden" not in str(caught.value)


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://me:hidden@127.0.0.1:{free_port()}")
    with (
        LabelStudio("http://labels.example.org", LEGACY_TOKEN, attempts=1) as client,
        pytest.raises(
            LabelStudioUnavailableError, match=r"through the proxy .* NO_PROXY"
        ) as caught,
    ):
        client.get("/api/x")
    assert "hidden" not in str(caught.value)


def test_this_machine_is_reached_around_the_proxy(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with LabelStudio(studio.url, LEGACY_TOKEN) as client:
        assert client.get("/api/x") == {"ok": True}


def test_a_proxy_that_cannot_be_used_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://proxy")
    with pytest.raises(SettingsError, match="HTTPS_PROXY"):
        LabelStudio("https://labels.example.org", LEGACY_TOKEN)
