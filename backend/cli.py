"""The command `medsam3`. Every command imports what it needs when it runs."""

import logging
import sys
from typing import Annotated

import typer

from backend.errors import BackendError
from backend.queues import QueueName
from backend.settings import Settings, get_settings

app = typer.Typer(
    name="medsam3",
    help="Masks from text labels for Label Studio, and a detector that learns from corrections.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback()
def configure(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    """Masks from text labels for Label Studio, and a detector that learns from corrections."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Run everything on this machine: web, GPU worker, ingest worker, and Redis if none is set.

    Example: `LABEL_STUDIO_API_KEY=... medsam3 serve --port 9090`
    """
    from backend.serve import serve as run

    run(_listening(host, port))


@app.command()
def web(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Run the web process alone: Label Studio's contract and our API, without torch.

    Example: `REDIS_URL=redis://redis:6379 medsam3 web --host 0.0.0.0`
    """
    from backend.web import run_web

    run_web(_listening(host, port))


@app.command()
def worker(
    queue: Annotated[
        QueueName, typer.Option(help="`gpu` runs the model, `ingest` talks to Label Studio.")
    ] = QueueName.GPU,
    burst: Annotated[bool, typer.Option(help="Stop when the queue is empty.")] = False,
) -> None:
    """Run one worker.

    Example: `REDIS_URL=redis://redis:6379 medsam3 worker --queue gpu`
    """
    from backend.services import open_services
    from backend.worker import run_worker

    run_worker(open_services(), queue, burst=burst)


def _listening(host: str | None, port: int | None) -> Settings:
    """The settings with the options given on the command line; children see them too."""
    import os

    if host is not None:
        os.environ["MEDSAM3_HOST"] = host
    if port is not None:
        os.environ["MEDSAM3_PORT"] = str(port)
    get_settings.cache_clear()
    return get_settings()


def main() -> None:
    """Run the command; an error of ours is one sentence, not a traceback."""
    try:
        app()
    except BackendError as error:
        typer.echo(f"medsam3: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
