"""Errors of the corrections, below `backend.errors.BackendError`.

CorrectionsError
├── MaskError            a mask file is missing or damaged
├── QuarantineError      one annotation cannot be used; the others go on
└── DatasetVersionError  a dataset version cannot be made or read
"""

from backend.corrections.tables import Trouble
from backend.errors import BackendError


class CorrectionsError(BackendError):
    """Root of the corrections' errors."""


class MaskError(CorrectionsError):
    """A mask file is missing or damaged."""


class QuarantineError(CorrectionsError):
    """One annotation cannot be used; `trouble` says what would heal it."""

    def __init__(self, trouble: Trouble, reason: str) -> None:
        super().__init__(reason)
        self.trouble = trouble


class DatasetVersionError(CorrectionsError):
    """A dataset version cannot be made or read; the message says why."""
