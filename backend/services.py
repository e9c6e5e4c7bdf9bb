"""What every process of the backend shares: settings, secrets, database, Redis."""

import json
import secrets
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from redis import Redis

from backend.database import Database, new_file, open_database, private_folder
from backend.errors import SettingsError
from backend.settings import Settings, get_settings

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
        fresh = {
            name: secrets.token_urlsafe(24) for name in ("password", "api_token", "webhook_secret")
        }
        # The first process wins, the others read its file.
        with new_file(path, overwrite=False) as draft:
            draft.touch(mode=0o600)
            draft.write_text(json.dumps(fresh))
    loaded: dict[str, str] = json.loads(path.read_text())
    return loaded


@dataclass(frozen=True)
class Services:
    """Opened once per process; threads share it.

    Attributes:
        settings: the process's settings.
        database: migrated and ready.
        redis: a pooled connection; Redis itself need not be up yet.
    """

    settings: Settings
    database: Database
    redis: "Redis"

    @cached_property
    def credentials(self) -> Credentials:
        """The secrets that callers must show."""
        return load_credentials(self.settings)

    def close(self) -> None:
        """Close the connections."""
        self.redis.close()
        self.database.dispose()


def open_services(settings: Settings | None = None) -> Services:
    """Open the database (migrating it) and a Redis pool for the given or the process's settings.

    Raises:
        SettingsError: the data folder, or that of the database, cannot be made.
    """
    settings = settings or get_settings()
    try:
        private_folder(settings.data_dir)
    except OSError as error:
        raise SettingsError(
            f"The folder {settings.data_dir} cannot be made ({error.strerror}): set "
            "MEDSAM3_DATA_DIR to a folder that this user may write."
        ) from error
    try:
        database = open_database(settings)
    except OSError as error:
        raise SettingsError(
            f"The folder of the database cannot be made ({error.strerror}): set DATABASE_URL to "
            "one that this user may write."
        ) from error
    return Services(settings, database, connect_redis(settings))


def connect_redis(settings: Settings) -> Redis:
    """A Redis client with a connection pool; nothing is sent before the first command."""
    # No read timeout: a blocking pop waits as long as it is told to.
    return Redis.from_url(
        settings.redis, socket_connect_timeout=2, health_check_interval=30, max_connections=256
    )


_current: Services | None = None


def current_services() -> Services:
    """The services of this process: RQ's handlers are plain functions and find them here."""
    global _current  # noqa: PLW0603 one per process, set by its entry point
    if _current is None:
        _current = open_services()
    return _current


def use_services(services: Services | None) -> None:
    """Make `services` the ones that handlers of this process use; None forgets them."""
    global _current  # noqa: PLW0603
    _current = services
