"""How long the threads of torch's operators spin on their cores before they sleep."""

import os

# GNU's OpenMP counts turns: 300,000 by default, some milliseconds, in which an answer that is ready
# finds no core to travel on. This is longer than the pause between two operators of one answer.
TURNS = 5000


def spin_briefly() -> None:
    """Have them sleep soon after an answer; to be called before torch is imported.

    The environment's own `GOMP_SPINCOUNT` or `OMP_WAIT_POLICY` goes before it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(TURNS))
