"""What the client of Label Studio's API returns, where it is more than Label Studio's own JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class User:
    """The user to whom a token belongs."""

    id: int
    email: str


@dataclass(frozen=True)
class MLBackend:
    """A backend as a project lists it; `state` is `CO`, `DI`, `ER`, `TR` or `PR`."""

    id: int
    url: str
    title: str
    is_interactive: bool
    auth_method: str
    basic_auth_user: str
    has_password: bool
    state: str
    error_message: str
    model_version: str


@dataclass(frozen=True)
class Webhook:
    """A webhook of a project; header values are secrets and stay out of `repr`."""

    id: int
    url: str
    headers: Mapping[str, str] = field(repr=False)
    actions: frozenset[str]
    send_payload: bool
    send_for_all_actions: bool
    is_active: bool


@dataclass(frozen=True)
class Prediction:
    """A stored prediction without its regions."""

    id: int
    task_id: int
    model_version: str
    score: float | None


def ml_backend(found: Json) -> MLBackend:
    """Read what `/api/ml` answers."""
    return MLBackend(
        id=found["id"],
        url=found["url"],
        title=found["title"] or "",
        is_interactive=found["is_interactive"],
        auth_method=found["auth_method"],
        basic_auth_user=found["basic_auth_user"] or "",
        has_password=found["basic_auth_pass_is_set"],
        state=found["state"],
        error_message=found["error_message"] or "",
        model_version=found["model_version"] or "",
    )


def webhook(found: Json) -> Webhook:
    """Read what `/api/webhooks/` answers."""
    return Webhook(
        id=found["id"],
        url=found["url"],
        headers=found["headers"] or {},
        actions=frozenset(found["actions"]),
        send_payload=found["send_payload"],
        send_for_all_actions=found["send_for_all_actions"],
        is_active=found["is_active"],
    )
