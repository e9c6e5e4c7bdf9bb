"""The client on a server that fails on purpose: what is repeated, and what is not."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from backend.errors import LabelStudioAuthError, LabelStudioError, LabelStudioUnavailableError
from backend.label_studio.auth import token_expiry
from backend.label_studio.client import LabelStudio
from backend.settings import Settings

TOKEN = "0123456789abcdef0123456789abcdef01234567"


def jwt(**claims: Any) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJIUzI1NiJ9.{body}.c2lnbmVk"


class Studio:
    """Answers with `statuses` one after the other, then with 200; keeps what was asked."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.body: Any = {"ok": True}
        self.requests: list[tuple[str, str, str]] = []
        self.access_lives_s = 300.0
        studio = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
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
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                self.do_POST()

            def do_PATCH(self) -> None:
                self.do_POST()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]


@pytest.fixture
def studio() -> Iterator[Studio]:
    studio = Studio()
    yield studio
    studio.close()


def test_what_may_be_repeated_is_repeated(studio: Studio) -> None:
    with LabelStudio(studio.url, TOKEN) as client:
        studio.statuses = [503, 502, 504]
        assert client.get("/api/x") == {"ok": True}
        studio.statuses = [503]
        assert client.patch("/api/x", {}) == {"ok": True}
    assert [method for method, _, _ in studio.requests] == ["GET"] * 4 + ["PATCH"] * 2


def test_a_server_that_stays_away_is_unavailable(studio: Studio) -> None:
    with LabelStudio(studio.url, TOKEN, attempts=3) as client:
        studio.statuses = [503] * 9
        with pytest.raises(LabelStudioUnavailableError, match="answered 503 to GET /api/x"):
            client.get("/api/x")
    assert len(studio.requests) == 3


def test_a_post_is_sent_once(studio: Studio) -> None:
    with LabelStudio(studio.url, TOKEN) as client:
        studio.statuses = [503]
        with pytest.raises(LabelStudioUnavailableError):
            client.push_predictions(1, [])
    assert len(studio.requests) == 1


def test_an_error_is_not_repeated_and_its_page_not_shown(studio: Studio) -> None:
    with LabelStudio(studio.url, TOKEN) as client:
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


@pytest.mark.parametrize(
    ("token", "ends"),
    [
        (jwt(exp=1700000000), 1700000000.0),
        (TOKEN, None),
        ("a.b.c", None),
        (jwt(iat=1), None),
        ("", None),
        ("..", None),
        ("é.é.é", None),
    ],
)
def test_when_a_token_ends(token: str, ends: float | None) -> None:
    assert token_expiry(token) == ends
