"""The shared tier of the embeddings: one machine encodes for all; no trouble changes an answer."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from medsam3_model.embeddings import shared_embeddings
from medsam3_model.embeddings.embedding_cache import EmbeddingCache, EmbeddingPlaces
from medsam3_model.embeddings.shared_embeddings import SharedEmbeddings
from medsam3_model.errors import EmbeddingStoreError
from tests.support.embeddings import MB, SmallestModel, entries
from tests.support.s3 import s3_at, s3_bucket

IMAGE, OTHER = "a" * 64, "b" * 64
MODEL = SmallestModel()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("embeddings") as url:
        yield url


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "shared")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


class Machine:
    """A cache with a disk of its own before the shared tier."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.shared, self.encoded = folder, SharedEmbeddings(url), 0
        self.cache = EmbeddingCache(
            folder, memory_bytes=MB, disk_bytes=100 * MB, shared=self.shared
        )

    def get(self, key: str) -> torch.Tensor:
        def encode() -> object:
            self.encoded += 1
            return MODEL.encode_image()

        found = self.cache.get(MODEL, key, encode).last_hidden_state
        self.shared.flush()
        return found


def test_what_one_machine_encoded_the_others_read(url: str, tmp_path: Path) -> None:
    first, second = Machine(tmp_path / "1", url), Machine(tmp_path / "2", url)
    made = first.get(IMAGE)
    assert torch.equal(second.get(IMAGE), made)
    assert (first.encoded, second.encoded) == (1, 0)
    assert second.cache.counts == {"embedding_shared_hits": 1}
    # From now on it is on the second machine's disk, too.
    again = Machine(tmp_path / "2", url)
    again.get(IMAGE)
    assert again.cache.counts == {"embedding_disk_hits": 1}


def test_forgotten_images_go_from_disk_and_store(url: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "1", url)
    for key in (IMAGE, f"{IMAGE}-window-0-0-8-8", OTHER):
        machine.get(key)
    size = sum(path.stat().st_size for path in entries(tmp_path / "1"))
    places = EmbeddingPlaces(tmp_path / "1", url)
    files, freed = places.remove({IMAGE})
    assert files == 4  # two entries in two places
    assert 0 < freed < 2 * size
    assert places.remove({IMAGE}) == (0, 0)
    fresh = Machine(tmp_path / "2", url)
    fresh.get(OTHER)
    fresh.get(IMAGE)
    assert fresh.encoded == 1


def test_damaged_entries_are_made_again(tmp_path: Path) -> None:
    url = str(tmp_path / "shared")
    Machine(tmp_path / "1", url).get(IMAGE)
    (entry,) = entries(tmp_path / "shared")
    entry.write_bytes(entry.read_bytes()[:-1] + b"\x01")
    second = Machine(tmp_path / "2", url)
    second.get(IMAGE)
    assert second.encoded == 1
    assert second.cache.counts["embedding_entries_dropped"] == 1
    third = Machine(tmp_path / "3", url)
    third.get(IMAGE)
    assert third.encoded == 0


def test_a_store_that_is_away_costs_one_moment_and_no_answer(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It takes connections and never answers.
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        s3_at(f"http://127.0.0.1:{silent.getsockname()[1]}"),
    ):
        monkeypatch.setattr(shared_embeddings, "_PATIENCE_S", 0.5)
        machine = Machine(tmp_path / "1", "s3://elsewhere/x")
        began = time.monotonic()
        for number in range(20):
            machine.get(f"{number:064x}")
        assert time.monotonic() - began < 10
        assert machine.encoded == 20
        assert machine.cache.counts["embedding_shared_errors"] == 1


def test_removal_says_when_the_store_is_away(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EmbeddingStoreError, match="is away or refuses"):
        EmbeddingPlaces(tmp_path / "1", f"unknown://{tmp_path}").remove({IMAGE})
