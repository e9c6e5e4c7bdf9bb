"""Children end with whoever started them, whatever its process id is."""

import subprocess
import sys

import pytest

CHILD = """
import os
from backend.processes.stopping import dying_with_parent
parent, seen = {parent}, {seen}
os.getpid = lambda: parent
ask = dying_with_parent()
os.getppid = lambda: seen
ask()
print("alive")
"""


@pytest.mark.parametrize(
    ("parent", "seen", "said"),
    [(1, 1, "alive\n"), (77, 77, "alive\n"), (77, 1, ""), (77, 5, "")],
    ids=["process 1 of a container", "any other", "it is gone", "a subreaper took over"],
)
def test_a_child_starts_unless_its_parent_is_gone(parent: int, seen: int, said: str) -> None:
    program = CHILD.format(parent=parent, seen=seen)
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (ended.stdout, ended.stderr) == (said, "")
