"""Tables of people: tokens with names and roles, and the audit trail."""

from datetime import datetime

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from backend.tables import Base, now


class ApiToken(Base):
    """A token of a person. Only its hash is kept, see `backend.people.tokens`.

    Attributes:
        name: the person, as the audit trail says it; unique among tokens, revoked ones included.
        digest: SHA-256 of the token, in hexadecimal.
        revoked_at: since when it opens nothing any more.
    """

    __tablename__ = "api_tokens"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    revoked_at: Mapped[datetime | None]


class AuditEntry(Base):
    """Something that a person did, or was refused. No secret and no patient's data is in it.

    Attributes:
        person: a token's name, the settings' user, or the user of the operating system.
        via: through what: a command, the API, the console, or a process of the backend.
        subject: what it was about: a version, a run's id, a token's name, an endpoint.
        detail: how, or why it was refused.
        address: the caller's, of refused attempts.
        count: how many of the same kind, for refused attempts: they share an entry for an hour.
    """

    __tablename__ = "audit_entries"
    __table_args__ = (Index("ix_audit_entries_at", "at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(default=now)
    person: Mapped[str] = mapped_column(String(200))
    via: Mapped[str] = mapped_column(String(16))
    action: Mapped[str] = mapped_column(String(32))
    project_id: Mapped[int | None]
    subject: Mapped[str | None] = mapped_column(String(200))
    detail: Mapped[str | None] = mapped_column(String(200))
    address: Mapped[str | None] = mapped_column(String(64))
    count: Mapped[int] = mapped_column(default=1)
