"""One finding of `medsam3 doctor`."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, what was found, and what to do (empty when all is well)."""

    name: str
    status: Status
    message: str
    next_step: str = ""


def ok(name: str, message: str) -> Check:
    """A finding that asks for nothing."""
    return Check(name, Status.OK, message)


def warn(name: str, message: str, next_step: str) -> Check:
    """A finding with which the backend works, but not as somebody may expect."""
    return Check(name, Status.WARN, message, next_step)


def fail(name: str, message: str, next_step: str) -> Check:
    """A finding with which the backend does not work."""
    return Check(name, Status.FAIL, message, next_step)
