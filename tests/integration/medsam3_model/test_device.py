"""Memory that a process frees, as the operating system sees it."""

import subprocess
import sys


def test_freed_memory_is_used_again_instead_of_being_cleared() -> None:
    program = """
import resource, sys, numpy
from medsam3_model import device
if sys.argv[1] == "keep":
    device.keep_freed_memory()
for _ in range(40):
    both = [numpy.ones(1_250_000) for _ in range(2)]
    del both
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", program, how], capture_output=True, check=True
            ).stdout
        )
        for how in ("keep", "return")
    ]
    assert faults[0] + 10_000 < faults[1]
