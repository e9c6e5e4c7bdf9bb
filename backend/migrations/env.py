"""Alembic's entry point: runs on the connection that `Database.migrate` opened."""

from typing import Any, Literal

from alembic import context

import backend.corrections.tables
import backend.predictions.tables
import backend.training.tables
import backend.volumes.tables  # noqa: F401 likewise
from backend.tables import Base, UtcDateTime


def render_item(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write our own column type as the plain one below it: migrations import nothing of ours."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_item=render_item,
    # SQLite cannot alter most columns in place; batch mode copies the table.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
