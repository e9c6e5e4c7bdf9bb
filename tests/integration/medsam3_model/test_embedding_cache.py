"""The folder of embeddings on a full disk, and shared by two processes."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medsam3_model import MedSAM3
from medsam3_model.embeddings.embedding_cache import EmbeddingCache
from tests.support import sam3_reference
from tests.support.embeddings import Encoder, entries, from_disk, same
from tests.support.repository import ROOT


@pytest.fixture(scope="module")
def facebook_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sam3_reference.write_facebook_checkpoint(tmp_path_factory.mktemp("facebook"))


FULL_DISK = """
import resource, sys
from pathlib import Path
from tests.support import sam3_reference
from tests.support.embeddings import Encoder, cache_of, from_disk, same
from medsam3_model import MedSAM3
import signal

model = MedSAM3.from_pretrained(sys.argv[1], config=sam3_reference.config(), device="cpu")
# The kernel refuses every byte beyond the limit, as a full disk does.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
folder, encoder = Path(sys.argv[2]), Encoder(model)
cache = cache_of(folder)
assert same(cache.get(model, "a", encoder(1)), from_disk(model, encoder(1)()))
assert cache.counts["embedding_disk_errors"] == 1, cache.counts
assert not [path for path in folder.glob("*/*")], "an unfinished entry was left behind"
"""


def test_full_disk_costs_only_speed(facebook_checkpoint: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(facebook_checkpoint), str(tmp_path / "cache")],
        check=True,
        cwd=ROOT,
    )


def work(checkpoint: str, folder: str, seeds: list[int], answers: object) -> None:
    """One process of two: looks at pictures through a small shared cache, and checks each."""
    torch.set_num_threads(1)
    model = MedSAM3.from_pretrained(checkpoint, config=sam3_reference.config(), device="cpu")
    encoder = Encoder(model)
    right = {seed: from_disk(model, encoder(seed)()) for seed in set(seeds)}
    wrong = 0
    for seed in seeds:
        # A new cache each time, so that everything goes over the disk; room for two entries.
        cache = EmbeddingCache(Path(folder), memory_bytes=0, disk_bytes=250_000)
        wrong += not same(cache.get(model, str(seed), encoder(seed)), right[seed])
        wrong += cache.counts["embedding_entries_dropped"]
    answers.put(wrong)  # type: ignore[attr-defined]


def test_two_processes_share_a_folder(facebook_checkpoint: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    random = np.random.default_rng(0)
    workers = [
        context.Process(
            target=work,
            args=(
                str(facebook_checkpoint),
                str(tmp_path),
                random.integers(0, 4, 24).tolist(),
                answers,
            ),
        )
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    assert [answers.get(timeout=120), answers.get(timeout=120)] == [0, 0]
    for worker in workers:
        worker.join(timeout=30)
        assert worker.exitcode == 0
    assert sum(entry.stat().st_size for entry in entries(tmp_path)) <= 2 * 250_000
