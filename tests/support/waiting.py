"""Waiting for what other threads and processes do."""

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def wait_until(
    answer: Callable[[], Answer],
    timeout_s: float = 240,
    *,
    pause_s: float = 0.02,
    otherwise: str | Callable[[], str] = "it did not happen in time",
) -> Answer:
    """The first answer that is true, asked for every `pause_s`.

    The time is what a busy machine may need: it decides how long a failure takes, not what passes.

    Raises:
        AssertionError: none came within `timeout_s`; says `otherwise`.
    """
    deadline = time.monotonic() + timeout_s
    while not (given := answer()):
        if time.monotonic() > deadline:
            raise AssertionError(otherwise if isinstance(otherwise, str) else otherwise())
        time.sleep(pause_s)
    return given
