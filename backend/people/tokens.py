"""Tokens: each belongs to a person with a role, is shown once and kept as a hash.

The hash is plain SHA-256. A slow hash makes guessing expensive where people choose passwords; a
token is 256 random bits, which nobody guesses at any speed, and every call of the API looks one up.
"""

import hashlib
import re
import secrets

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import PeopleError
from backend.people.audit import BACKEND, STRANGER, AuditedAction, record
from backend.people.roles import Person, Role
from backend.people.tables import ApiToken
from backend.settings import Settings
from backend.tables import now

# Scanners for leaked secrets, and people, see by it what it is.
PREFIX = "medsam3_"
# How the audit trail calls those who show the secrets of the settings.
API_TOKEN, WEBHOOK = "api-token", "webhook"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def add(session: Session, settings: Settings, name: str, role: Role) -> str:
    """Make a token; it is returned this once.

    Raises:
        PeopleError: the name is taken, also by a revoked token, or no name.
    """
    if not _NAME.fullmatch(name):
        raise PeopleError(
            "A name has up to 64 letters, digits and . _ @ -, and begins with a letter or a digit."
        )
    if name in (settings.basic_auth_user, API_TOKEN, WEBHOOK, BACKEND.name, STRANGER):
        raise PeopleError(f"{name} means something else in the audit trail: take another name.")
    if session.scalar(select(ApiToken.id).where(ApiToken.name == name)) is not None:
        raise PeopleError(f"There is, or was, a token of {name}: take another name.")
    token = PREFIX + secrets.token_urlsafe(32)
    session.add(ApiToken(name=name, role=role, digest=digest_of(token)))
    record(session, AuditedAction.ADD_TOKEN, subject=name, detail=role)
    return token


def revoke(session: Session, name: str) -> None:
    """Make a token worthless, and every session that was opened with it.

    Raises:
        PeopleError: there is no such token, or it is revoked already.
    """
    row = session.scalar(select(ApiToken).where(ApiToken.name == name).with_for_update())
    if row is None or row.revoked_at is not None:
        raise PeopleError(f"There is no token of {name} in force: `medsam3 tokens list`.")
    row.revoked_at = now()
    record(session, AuditedAction.REVOKE_TOKEN, subject=name)


def every(session: Session) -> list[ApiToken]:
    """All tokens, revoked ones too, oldest first."""
    return list(session.scalars(select(ApiToken).order_by(ApiToken.id)))


def person_of(session: Session, token: str) -> Person | None:
    """Whose token it is; None where it opens nothing."""
    # No comparison in constant time is needed: what is looked up is the hash, not the token.
    valid = ApiToken.revoked_at.is_(None)
    row = session.scalar(select(ApiToken).where(ApiToken.digest == digest_of(token), valid))
    return _person(row)


def person_by_id(session: Session, token_id: int) -> Person | None:
    """Whose token has an id; None where it was revoked meanwhile."""
    row = session.get(ApiToken, token_id)
    return _person(row) if row and row.revoked_at is None else None


def digest_of(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def _person(row: ApiToken | None) -> Person | None:
    return None if row is None else Person(row.name, Role(row.role), row.id)
