"""Trainers that are killed, and trainers that share the work."""

import multiprocessing
import os
import random
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from medsam3_model.checkpoints.detectors import DetectorCheckpoint, load_detector
from tests.support.fine_tune_discs import train

STEPS = 12
KILLS = 10
# Every trainer is a process of its own; forked from one that has imported torch, it starts at once.
start = multiprocessing.get_context("forkserver")
start.set_forkserver_preload(["tests.support.fine_tune_discs"])


class Trainer:
    """A process that trains in `folder`; `steps` yields each step that it finished."""

    def __init__(self, folder: Path) -> None:
        self.steps, said = start.Pipe(duplex=False)
        self.process = start.Process(target=run, args=(folder, said))
        self.process.start()
        said.close()

    def rest(self) -> list[int]:
        """The steps up to its end, which must be a good one."""
        steps = []
        while True:
            try:
                steps.append(self.steps.recv())
            except EOFError:
                break
        self.process.join(60)
        assert self.process.exitcode == 0
        return steps


def run(folder: Path, said: Connection) -> None:
    train(folder, STEPS, said.send)


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DetectorCheckpoint]:
    """The folder and the detector of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("unkilled")
    assert Trainer(folder).rest() == list(range(1, STEPS + 1))
    return folder, load_detector(folder / "detector.safetensors")


def test_a_trainer_killed_at_any_step_ends_with_the_same_weights(
    unkilled: tuple[Path, DetectorCheckpoint], tmp_path: Path
) -> None:
    whole, expected = unkilled
    chance = random.Random(0)
    for kill in range(KILLS):
        folder = tmp_path / f"run{kill}"
        folder.mkdir()
        # Embeddings are the same for all runs; what is killed here is the learning.
        (folder / "embeddings").symlink_to(whole / "embeddings")
        killed = Trainer(folder)
        for _ in range(chance.randrange(1, STEPS - 1)):
            killed.steps.recv()
        time.sleep(chance.uniform(0, 0.05))  # into the next step, or into writing its state
        killed.process.kill()
        killed.process.join()
        assert not (folder / "detector.safetensors").exists()
        steps = Trainer(folder).rest()
        assert steps[0] % 2 == 1  # after a saved state, which is written every second step
        assert steps[-1] == STEPS
        found = load_detector(folder / "detector.safetensors")
        assert found.detector_hash == expected.detector_hash
        left = sorted(path.name for path in folder.iterdir())
        assert left == ["detector.safetensors", "embeddings", "state.pt"]


def test_two_processes_learn_what_one_does(
    unkilled: tuple[Path, DetectorCheckpoint], tmp_path: Path
) -> None:
    whole, expected = unkilled
    (tmp_path / "embeddings").symlink_to(whole / "embeddings")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    module = ["-m", "tests.support.fine_tune_discs", str(tmp_path), str(STEPS)]
    said = subprocess.run(
        [*launcher, "--nproc-per-node", "2", *module],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
        check=True,
    )
    # The first process alone reports, so each step is there once.
    assert said.stdout.split() == [str(step) for step in range(1, STEPS + 1)]
    found = load_detector(tmp_path / "detector.safetensors")
    difference = torch.cat(
        [(found.state[key] - value).abs().flatten() for key, value in expected.state.items()]
    )
    # Weights move by 2e-3 in the mean. Sums in another order differ in their last bits.
    assert difference.mean() < 1e-5
    assert difference.max() < 1e-3
