"""A backend that answers Label Studio's contract and keeps what it was sent, headers included."""

import base64
import json
from dataclasses import dataclass
from typing import Any

from tests.support.http_server import Handler, HttpServer


@dataclass(frozen=True)
class Received:
    """One request; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class RecordingBackend:
    """Listens on a free port of the loopback address until it is closed; also a context manager."""

    def __init__(self, user: str, password: str, version: str = "tiny-00000001") -> None:
        self.version = version
        self.received: list[Received] = []
        self.expect(user, password)
        backend = self

        class BackendHandler(Handler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Received(self.command, self.path, headers, json.loads(raw or b"null"))
                backend.received.append(request)
                open_to_all = self.path in ("/health", "/webhook")
                allowed = open_to_all or headers.get("authorization") == backend._expected
                body = json.dumps(backend.answer(request) if allowed else {}).encode()
                self.send(200 if allowed else 401, {"Content-Type": "application/json"}, body)

        self._server = HttpServer(BackendHandler)
        self.url, self.close = self._server.url, self._server.close

    def expect(self, user: str, password: str) -> None:
        """From now on, take this password only; /health and /webhook are open to all."""
        self._expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    def answer(self, request: Received) -> dict[str, Any]:
        """What the contract asks for; every task gets an empty prediction."""
        match request.path:
            case "/setup":
                return {"model_version": self.version}
            case "/versions":
                return {"versions": [self.version]}
            case "/predict":
                one = {"result": [], "score": 0.5, "model_version": self.version}
                return {"results": [one for _ in request.body["tasks"]]}
        return {"status": "UP"}

    def to(self, path: str) -> list[Received]:
        """The requests to one path so far."""
        return [request for request in self.received if request.path == path]

    def __enter__(self) -> "RecordingBackend":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
