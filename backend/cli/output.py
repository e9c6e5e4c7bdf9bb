"""What every command prints: JSON, lines for people, a bar of progress, errors as one sentence.

Answers go to standard output, all that is said on the way to standard error.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from backend.errors import BackendError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Commands(TyperGroup):
    """The commands; an error that was raised on purpose is one sentence, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            say(f"medsam3: {sentence}")
            raise typer.Exit(1) from error


def _sentence(error: Exception) -> str | None:
    """What to say about an error whose cause is known; None where only a traceback helps."""
    from redis.exceptions import ConnectionError as RedisConnectionError
    from sqlalchemy.exc import DatabaseError, OperationalError

    from medsam3_model.errors import MedSAM3Error

    if isinstance(error, BackendError | MedSAM3Error):
        return str(error)
    # Their own texts show addresses with users, and statements with parameters.
    if isinstance(error, OperationalError) or type(error) is DatabaseError:
        return (
            f"The database cannot be used ({type(error.orig).__name__}): check DATABASE_URL, and "
            "that the server runs and knows this user."
        )
    if isinstance(error, RedisConnectionError):
        return "Redis does not answer: check REDIS_URL, and that it runs."
    if isinstance(error, ImportError) and error.name in ("psycopg", "s3fs"):
        extra = {"psycopg": "postgres", "s3fs": "s3"}[error.name]
        return f"{error.name} is not installed: pip install 'medsam3-label-studio[{extra}]'."
    return None


def say(line: str) -> None:
    """A line for people, on standard error."""
    typer.echo(line, err=True)


def print_json(value: object) -> None:
    """One line of JSON."""
    typer.echo(json.dumps(value))


def print_values(values: Mapping[str, Any], as_json: bool) -> None:
    """JSON, or for people a line for each value that is set and one for each entry of a list."""
    if as_json:
        print_json(values)
        return
    for name, value in values.items():
        if isinstance(value, tuple | list):
            typer.echo(f"{name}: {'' if value else 'none'}")
            for entry in value:
                typer.echo(f"  {entry}")
        elif value is not None and value != {}:
            typer.echo(f"{name}: {value}")


@contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A bar on standard error; none for programs, nor where nobody looks at it.

    Yields:
        `show(done, total=None, stage=None)`: how many are done, of how many where that is known,
        and the name of the stage, in place of the title. Without stages the bar goes with the
        last one done.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda done, total=None, stage=None: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, *times, console=console, transient=True)
    row = bar.add_task(title, total=None)

    def show(done: int, total: int | None = None, stage: str | None = None) -> None:
        if stage is None and total is not None and done >= total:
            # Not only at the end of the block: the rest of it may print lines of its own.
            bar.stop()
            return
        bar.start()
        bar.update(row, completed=done, total=total, description=stage)

    try:
        yield show
    finally:
        bar.stop()
