"""The audit trail: who did what, when, through what; and who was refused.

What changes something records it in its own transaction, so there is no change without an entry
and no entry without a change. Who acts is known to whoever began: a request, a command, a process.
"""

import getpass
import logging
import os
import threading
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from backend.database import Database
from backend.people.tables import AuditEntry
from backend.tables import now

log = logging.getLogger(__name__)

# Refused attempts that are alike share an entry for this long.
TOGETHER = timedelta(hours=1)
# Refused attempts written down in a minute: strangers must not keep the database busy.
MOST_REFUSALS = 60


class AuditedAction(StrEnum):
    """What is written down."""

    PROMOTE = "promote"
    ROLL_BACK = "roll-back"
    RETRY = "retry"
    FORGET = "forget"
    PRUNE = "prune"
    TRAIN = "train"
    CANCEL_TRAINING = "cancel-training"
    SET_POLICY = "set-policy"
    PREANNOTATE = "preannotate"
    CANCEL_PREANNOTATION = "cancel-preannotation"
    ADD_TOKEN = "add-token"  # noqa: S105 an action, no secret
    REVOKE_TOKEN = "revoke-token"  # noqa: S105 an action, no secret
    LOG_IN = "log-in"
    REFUSED = "refused"


class Via(StrEnum):
    """Through what somebody acted."""

    API = "api"
    CONSOLE = "console"
    COMMAND = "command"
    PROCESS = "process"


@dataclass(frozen=True)
class Actor:
    """Who acts, and through what."""

    name: str
    via: Via


# The backend by itself: the gate that promotes, a schedule that starts a run.
BACKEND = Actor("backend", Via.PROCESS)
STRANGER = "unknown"
_acting: ContextVar[Actor] = ContextVar("acting", default=BACKEND)


def act_as(actor: Actor) -> None:
    """Say who does what follows in this thread, until somebody else is named."""
    _acting.set(actor)


def operating_user() -> Actor:
    """Whoever typed a command: the user of the operating system."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        name = f"uid {os.getuid()}"
    return Actor(name[:200], Via.COMMAND)


def record(
    session: Session,
    action: AuditedAction,
    *,
    project_id: int | None = None,
    subject: str | None = None,
    detail: str | None = None,
) -> None:
    """Write down what the acting person does, as a part of the transaction that does it."""
    actor = _acting.get()
    session.add(
        AuditEntry(
            person=actor.name,
            via=actor.via,
            action=action,
            project_id=project_id,
            subject=subject,
            detail=detail,
        )
    )


class Refusals:
    """Writes refused attempts down: alike ones as one entry, and not more than a few a minute."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._minute, self._written = 0, 0

    def record(self, via: Via, person: str, *, subject: str, reason: str, address: str) -> None:
        """Write one down; a database that fails must not turn a refusal into another error."""
        with self._lock:
            minute = int(time.monotonic() // 60)
            if minute != self._minute:
                self._minute, self._written = minute, 0
            self._written += 1
            if self._written > MOST_REFUSALS:
                return
        values = {
            "via": via,
            "person": person,
            "action": AuditedAction.REFUSED,
            "subject": subject,
            "detail": reason,
            "address": address[:64],
        }
        try:
            with self._database.session() as session:
                like = [getattr(AuditEntry, name) == value for name, value in values.items()]
                row = session.scalar(
                    select(AuditEntry)
                    .where(AuditEntry.at > now() - TOGETHER, *like)
                    .order_by(AuditEntry.id.desc())
                    .limit(1)
                )
                if row is None:
                    session.add(AuditEntry(**values))
                else:
                    row.count += 1
        except SQLAlchemyError as error:
            log.warning("a refused attempt was not written down: %s", type(error).__name__)


def entries(
    session: Session,
    *,
    since: datetime | None = None,
    before: int | None = None,
    limit: int | None = None,
) -> Sequence[AuditEntry]:
    """Entries, newest first: those since a time, and before an id to page on."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc())
    if since is not None:
        query = query.where(AuditEntry.at >= since)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    return session.scalars(query.limit(limit)).all()


def as_json(row: AuditEntry) -> dict[str, Any]:
    """An entry for programs."""
    return {
        "id": row.id,
        "at": row.at.isoformat(),
        "person": row.person,
        "via": row.via,
        "action": row.action,
        "project": row.project_id,
        "subject": row.subject,
        "detail": row.detail,
        "address": row.address,
        "count": row.count,
    }


def prune(session: Session, before: datetime) -> None:
    """Remove entries that are older."""
    session.execute(delete(AuditEntry).where(AuditEntry.at < before))
