"""What every process of the backend shares: settings, database, Redis."""

from dataclasses import dataclass
from functools import cached_property

from redis import Redis

from backend.credentials import Credentials, load_credentials
from backend.database import Database, open_database
from backend.settings import Settings, get_settings


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
    """Open the database (migrating it) and a Redis pool for the given or the process's settings."""
    settings = settings or get_settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return Services(settings, open_database(settings), connect_redis(settings))


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
