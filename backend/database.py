"""The database: one engine per process, SQLite in WAL mode or PostgreSQL, migrated by Alembic.

Files that rows name, or that processes share, are written by `new_file`.
"""

import os
import random
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    create_engine,
    event,
    func,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from backend.settings import Settings

MIGRATIONS = Path(__file__).parent / "migrations"
# Values of one `IN (...)`: SQLite and PostgreSQL's driver take far more, but plan them slowly.
MOST_VALUES = 500
# PostgreSQL ends one of two transactions that wait for each other; tried again it goes through.
_CONFLICTS = ("40001", "40P01")
_CONFLICT_ATTEMPTS = 6
# A draft's name, and the seconds after which nobody writes to it any more.
_DRAFT = re.compile(r"\.[0-9a-f]{16}")
_DRAFT_S = 86400
T = TypeVar("T")
P = ParamSpec("P")


def retried(function: Callable[P, T]) -> Callable[P, T]:
    """Call a function again when the database ended its transaction for another one's sake.

    For functions whose only effect is one transaction.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for attempt in range(1, _CONFLICT_ATTEMPTS):
            try:
                return function(*args, **kwargs)
            except OperationalError as error:
                if getattr(error.orig, "sqlstate", None) not in _CONFLICTS:
                    raise
                # Not both at the same moment again.
                time.sleep(random.uniform(0, 0.05 * attempt))
        return function(*args, **kwargs)

    return call


class Database:
    """An engine and its sessions.

    Args:
        url: a SQLAlchemy URL; a SQLite file's folder is created.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _engine(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._readers = sessionmaker(
            self.engine.execution_options(medsam3_read_only=True), expire_on_commit=False
        )

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session that commits at the end, and rolls back when the block raises."""
        with self._sessions.begin() as session:
            yield session

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """As `session`, for statements without objects: what an annotator waits for.

        A session's own bookkeeping takes longer than such a statement.
        """
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads: on SQLite it never waits for a writer."""
        with self._readers() as session:
            yield session

    @retried
    def update(self, table: Any, *conditions: ColumnElement[bool], **values: Any) -> None:
        """Set columns of the rows that meet all conditions, in a transaction of its own."""
        with self.session() as session:
            session.execute(
                update(table)
                .where(*conditions)
                .values(**values)
                .execution_options(synchronize_session=False)
            )

    def migrate(self) -> None:
        """Bring the tables to the newest revision; safe to call from several processes."""
        from alembic import command

        config = alembic_config(self.url)
        with self.engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # Two processes that start together must not both create the tables; SQLite's
                # transactions below take the write lock from the start.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(72616373)")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def revision(self) -> str | None:
        """The migration that the database is at, or None for an empty one."""
        with self.engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            named: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
            return named

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def open_database(settings: Settings, *, migrate: bool = True) -> Database:
    """Open the configured database, migrated to the newest revision unless told otherwise."""
    database = Database(settings.database)
    # Alembic takes a tenth of the web process's memory, and most starts have nothing to migrate.
    if migrate and database.revision() != newest_revision():
        database.migrate()
    return database


def now_in(session: Session | Connection) -> datetime:
    """The moment by the database's clock, UTC: that of all machines which hold leases in it.

    SQLite has none of its own; its processes are on one machine.
    """
    if _dialect(session).name != "postgresql":
        return datetime.now(UTC)
    moment: datetime = session.scalars(select(func.clock_timestamp())).one()
    return moment.astimezone(UTC)


def insert_or_ignore(
    session: Session | Connection, table: Any, rows: Mapping[str, Any] | Sequence[Mapping[str, Any]]
) -> None:
    """Insert a row, or several, leaving out those whose unique key exists."""
    dialect = postgresql if _dialect(session).name == "postgresql" else sqlite
    # The values beside the statement, so that its SQL is made once and kept; of the table and not
    # of its class, which would be looked at row by row.
    values = dict(rows) if isinstance(rows, Mapping) else [dict(row) for row in rows]
    session.execute(
        dialect.insert(getattr(table, "__table__", table)).on_conflict_do_nothing(), values
    )


def _dialect(session: Session | Connection) -> Dialect:
    return session.dialect if isinstance(session, Connection) else session.get_bind().dialect


def chunked(values: Iterable[T]) -> Iterator[list[T]]:
    """Split values into lists that fit into one `IN (...)`, in their order."""
    listed = list(values)
    for start in range(0, len(listed), MOST_VALUES):
        yield listed[start : start + MOST_VALUES]


def private_folder(path: Path) -> None:
    """Create the data folder, or close it to other users of the machine where it was open."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o077:
        # Not ours to change where a volume belongs to somebody else.
        with suppress(PermissionError):
            path.chmod(0o700)


@contextmanager
def new_file(path: Path, *, overwrite: bool = True, durable: bool = False) -> Iterator[Path]:
    """Write a file under a draft's name, and rename it when the block ends: whole or not at all.

    A block that raises leaves nothing behind.

    Args:
        path: the file's name; its folder is created.
        overwrite: replace a file that is there; else the first of several writers wins.
        durable: have the disk keep the contents before the file gets its name.

    Yields:
        The path to write to, in the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{secrets.token_hex(8)}")
    try:
        yield draft
        if draft.is_file():
            draft.chmod(0o600)
        if durable:
            with draft.open("rb") as file:
                os.fdatasync(file.fileno())
        if overwrite:
            os.replace(draft, path)
        else:
            # A hard link fails when the name exists, so two writers cannot both succeed.
            with suppress(FileExistsError):
                os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def remove_drafts(folder: Path) -> int:
    """Remove what killed writers left of `new_file` in a folder and the folders in it, a day later.

    Returns:
        How many files went.
    """
    before, removed = time.time() - _DRAFT_S, 0
    for path in (*folder.glob(".*"), *folder.glob("*/.*")):
        if _DRAFT.fullmatch(path.name) is None:
            continue
        with suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_mtime < before:
                path.unlink()
                removed += 1
    return removed


def alembic_config(url: str) -> Any:
    """Alembic's configuration for the bundled migrations, without an ini file."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def newest_revision() -> str:
    """The newest migration that this version of the package carries: its file's number."""
    return max(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(
            url.replace("postgresql://", "postgresql+psycopg://", 1),
            pool_pre_ping=True,
            hide_parameters=True,
            pool_size=20,
            max_overflow=60,
        )
    path = url.removeprefix("sqlite:///")
    if path:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Before SQLite does: what it writes beside the file gets the file's mode.
        file.touch(mode=0o600)
    # Values are patients' data and signed links: they stay out of error messages.
    engine = create_engine(
        url, connect_args={"timeout": 30, "check_same_thread": False}, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver's own transaction handling would commit behind our back; see SQLAlchemy's
        # notes on pysqlite. WAL lets readers go on while one process writes.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA busy_timeout=30000")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A transaction that reads first and writes later would fail with "database is locked"
        # instead of waiting; so writers take the lock at once.
        reads = connection.get_execution_options().get("medsam3_read_only")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine
