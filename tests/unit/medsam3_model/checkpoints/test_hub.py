"""Downloads from a hub that answers as the real one does: gated, missing, interrupted."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from medsam3_model.checkpoints import hub
from medsam3_model.errors import CheckpointError

WEIGHTS = bytes(range(256)) * 4096  # 1 MB
CONFIG = b'{"model_type": "sam3"}'


class Hub(BaseHTTPRequestHandler):
    """The few endpoints that a download uses."""

    requests: list[tuple[str, str | None]]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.requests.append((f"{self.command} {self.path}", self.headers.get("Range")))
        if "/missing" in self.path:
            return self._send(401, {"X-Error-Code": "RepoNotFound"}, b"")
        gated = "/gated" in self.path and "/api/" not in self.path
        if gated or "/api/models/me/gated" in self.path:
            return self._send(403, {"X-Error-Code": "GatedRepo"}, b"")
        if "/api/models/me/open" in self.path:
            names = ["config.json", "model.safetensors", "sam3.pt", "README.md"]
            found: object = {
                "id": "me/open",
                "sha": "a" * 40,
                "siblings": [{"rfilename": name} for name in names],
            }
            if "/tree/" in self.path:
                sizes = {"model.safetensors": len(WEIGHTS), "config.json": len(CONFIG)}
                found = [
                    {"type": "file", "path": name, "size": sizes.get(name, 0), "oid": "b" * 40}
                    for name in names
                ]
            return self._send(200, {"Content-Type": "application/json"}, json.dumps(found).encode())
        name = self.path.rsplit("/", 1)[-1]
        content = WEIGHTS if name.endswith("safetensors") else CONFIG
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": "a" * 40, "Accept-Ranges": "bytes"}
        return self._send(200, headers, content, body=body)

    def _send(
        self, status: int, headers: dict[str, str], content: bytes, *, body: bool = True
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (Hub,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield server
    server.shutdown()
    server.server_close()


def test_only_the_safest_weights_are_fetched(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    folder = hub.download("me/open", folder=tmp_path / "model", progress=False)
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        "config.json",
        "model.safetensors",
    ]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_gated_repository_says_what_to_do(server: ThreadingHTTPServer) -> None:
    with pytest.raises(CheckpointError, match=r"me/gated is gated: ask for access on https"):
        hub.download("me/gated", progress=False)


def test_missing_repository_is_named(server: ThreadingHTTPServer) -> None:
    with pytest.raises(CheckpointError, match="me/missing does not exist on the hub"):
        hub.download("me/missing", progress=False)


def test_hub_that_is_down_says_to_try_again(server: ThreadingHTTPServer) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError, match="goes on where it stopped"):
        hub.download("me/open", progress=False)


@pytest.mark.parametrize("name", ["sam3", "a/b/c", "../etc", "me/", "/sam3"])
def test_what_is_no_repository_is_refused(name: str) -> None:
    assert not hub.is_repository(name)
    with pytest.raises(CheckpointError, match="is not a repository"):
        hub.download(name)


def test_repository_without_weights_is_refused() -> None:
    with pytest.raises(CheckpointError, match="neither safetensors"):
        hub.weights_patterns(["README.md", "sub/model.safetensors"])
    assert hub.weights_patterns(["sam3.pt", "notes.txt"]) == ("sam3.pt",)
