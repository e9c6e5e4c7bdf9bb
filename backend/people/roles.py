"""Roles: what a person may do. Commands show them without loading the database."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a person may do."""

    VIEWER = "viewer"  # reads everything, changes nothing
    ADMIN = "admin"


@dataclass(frozen=True)
class Person:
    """Who calls: `token_id` is None for the secrets of the settings."""

    name: str
    role: Role
    token_id: int | None = None
