"""Downloads from a hub that answers as the real one does: gated, missing, interrupted."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from medsam3_model.checkpoints import hub
from medsam3_model.errors import CheckpointError
from tests.support.http_server import Handler, HttpServer

WEIGHTS = bytes(range(256)) * 4096  # 1 MB
CONFIG = b'{"model_type": "sam3"}'


class Hub(Handler):
    """The few endpoints that a download uses."""

    requests: list[tuple[str, str | None]]

    def answer(self) -> None:
        self.requests.append((f"{self.command} {self.path}", self.headers.get("Range")))
        if "/missing" in self.path:
            return self.send(401, {"X-Error-Code": "RepoNotFound"}, b"")
        gated = "/gated" in self.path and "/api/" not in self.path
        if gated or "/api/models/me/gated" in self.path:
            return self.send(403, {"X-Error-Code": "GatedRepo"}, b"")
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
            return self.send(200, {"Content-Type": "application/json"}, json.dumps(found).encode())
        name = self.path.rsplit("/", 1)[-1]
        content = WEIGHTS if name.endswith("safetensors") else CONFIG
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": "a" * 40, "Accept-Ranges": "bytes"}
        return self.send(200, headers, content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    handler = type("Handler", (Hub,), {"requests": []})
    with HttpServer(handler) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield server


def test_only_the_safest_weights_are_fetched(server: HttpServer, tmp_path: Path) -> None:
    folder = hub.download("me/open", folder=tmp_path / "model", progress=False)
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        "config.json",
        "model.safetensors",
    ]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_gated_repository_says_what_to_do(server: HttpServer) -> None:
    with pytest.raises(CheckpointError, match=r"me/gated is gated: ask for access on https"):
        hub.download("me/gated", progress=False)


def test_missing_repository_is_named(server: HttpServer) -> None:
    with pytest.raises(CheckpointError, match="me/missing does not exist on the hub"):
        hub.download("me/missing", progress=False)


def test_hub_that_is_down_says_to_try_again(server: HttpServer) -> None:
    server.close()
    with pytest.raises(CheckpointError, match="goes on where it stopped"):
        hub.download("me/open", progress=False)
