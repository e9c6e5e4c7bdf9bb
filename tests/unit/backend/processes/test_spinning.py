"""Threads of torch's operators sleep soon after an answer, unless somebody says otherwise."""

import os
import subprocess
import sys

import pytest

from backend.processes.spinning import TURNS

# OpenMP itself says what it read, when torch loads it.
SCRIPT = """
import sys
import backend.predictions.worker, backend.training.trainer
from backend.processes.spinning import spin_briefly
assert "torch" not in sys.modules, "too late: torch has read the environment"
spin_briefly()
import torch
"""


@pytest.mark.parametrize(
    ("chosen", "read"),
    [({}, str(TURNS)), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_openmp_is_told_how_long_to_spin(chosen: dict[str, str], read: str) -> None:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=inherited | {"OMP_DISPLAY_ENV": "VERBOSE"} | chosen,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert f"GOMP_SPINCOUNT = '{read}'" in done.stderr
