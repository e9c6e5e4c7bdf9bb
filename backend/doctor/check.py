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
