"""Caches take an eighth of the memory that a machine has, or that its container may use."""

from pathlib import Path

import pytest

from backend.processes import memory
from backend.processes.memory import available_memory, cache_limits
from backend.settings import Settings

GB = 2**30


@pytest.mark.parametrize(
    ("group", "file", "limit"),
    [
        ("0::/", "memory.max", "1073741824"),
        ("0::/pod/worker", "memory.max", "1073741824"),
        ("0::/pod/worker", "pod/memory.max", "1073741824"),
        ("4:cpu,memory:/docker/1", "memory/memory.limit_in_bytes", "1073741824"),
        ("4:memory:/docker/1", "memory/docker/1/memory.limit_in_bytes", "1073741824"),
        ("4:cpu:/", "memory/memory.limit_in_bytes", None),
        ("0::/", "memory.max", "max"),
        ("4:memory:/", "memory/memory.limit_in_bytes", "9223372036854771712"),
    ],
)
def test_a_containers_limit_counts_where_it_is_lower(
    tmp_path: Path, group: str, file: str, limit: str | None
) -> None:
    everything = available_memory(tmp_path)
    assert everything > GB
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
    path = tmp_path / "sys/fs/cgroup" / file
    path.parent.mkdir(parents=True)
    path.write_text(f"{limit or GB}\n")
    assert available_memory(tmp_path) == (GB if limit == str(GB) else everything)


@pytest.mark.parametrize(("available", "embeddings"), [(GB, GB // 8), (64 * GB, 2 * GB)])
def test_an_eighth_is_for_embeddings_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch, available: int, embeddings: int
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: available)
    limits = cache_limits(Settings(_env_file=None))
    assert (limits.embeddings, limits.images) == (embeddings, embeddings // 4)
    limits = cache_limits(Settings(_env_file=None, embedding_memory_mb=5000, image_cache_mb=0))
    assert (limits.embeddings, limits.images) == (5000 * 2**20, 0)
