"""The client on a server that fails on purpose: what is repeated, and what is not."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from backend.errors import LabelStudioAuthError, LabelStudioError, LabelStudioUnavailableError
from backend.label_studio.client import LabelStudio
from backend.settings import Settings
from tests.support.http_server import Handler, HttpServer
from tests.support.tokens import LEGACY_TOKEN, jwt


class Studio:
    """Answers with `statuses` one after the other, then with 200; keeps what was asked."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.body: Any = {"ok": True}
        self.requests: list[tuple[str, str, str]] = []
        self.access_lives_s = 300.0
        studio = self

        class StudioHandler(Handler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                token = self.headers.get("Authorization", "")
                studio.requests.append((self.command, self.path, token))
                if self.path == "/api/token/refresh/":
                    ends = time.time() + studio.access_lives_s
                    status, body = 200, {"access": jwt(exp=ends, n=len(studio.requests))}
                else:
                    status = studio.statuses.pop(0) if studio.statuses else 200
                    body = studio.body
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send(status, {}, content)

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
