"""The secrets of this backend: what is not set is generated once and kept beside the data."""

import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from backend.settings import Settings

WEBHOOK_SECRET_HEADER = "X-MedSAM3-Secret"  # noqa: S105 a header name, no secret


@dataclass(frozen=True)
class Credentials:
    """What a caller must show; kept out of `repr` so that it cannot reach a log.

    Attributes:
        user: basic-auth user name that Label Studio sends.
        password: its password.
        api_token: bearer token for scripts and the CLI.
        webhook_secret: value of the header `X-MedSAM3-Secret` on webhooks.
    """

    user: str
    password: str = field(repr=False)
    api_token: str = field(repr=False)
    webhook_secret: str = field(repr=False)


def load_credentials(settings: Settings) -> Credentials:
    """Return the configured secrets, the missing ones from `<data_dir>/credentials.json`.

    The file is created with mode 0600 by whichever process comes first; every process that
    shares the data folder reads the same values.
    """
    configured = {
        "password": settings.basic_auth_password,
        "api_token": settings.api_token,
        "webhook_secret": settings.webhook_secret,
    }
    values = {name: secret.get_secret_value() for name, secret in configured.items() if secret}
    if len(values) < len(configured):
        values = {**_generated(settings.data_dir), **values}
    return Credentials(user=settings.basic_auth_user, **values)


def _generated(data_dir: Path) -> dict[str, str]:
    path = data_dir / "credentials.json"
    if not path.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        fresh = {
            name: secrets.token_urlsafe(24) for name in ("password", "api_token", "webhook_secret")
        }
        draft = data_dir / f".credentials-{os.getpid()}-{secrets.token_hex(4)}.json"
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(fresh))
        try:
            # A hard link fails when the name exists: the first process wins, others read its file.
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    loaded: dict[str, str] = json.loads(path.read_text())
    return loaded
