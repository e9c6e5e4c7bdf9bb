"""The command `medsam3`. Every command imports what it needs when it runs."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli.agent import agent
from backend.cli.corrections import agreement, corrections, export
from backend.cli.evaluate import evaluate
from backend.cli.models import ProjectId, models
from backend.cli.output import AsJson, Commands, print_json, print_values, progress_bar, say
from backend.cli.people import audit, tokens
from backend.cli.training import simulate, train, trainer
from backend.cli.volumes import import_volumes, propagate
from backend.errors import BackendError
from backend.processes.privacy import keep_files_private, set_up_logging
from backend.processes.queues import QueueName
from backend.settings import Settings, get_settings

if TYPE_CHECKING:
    from backend.predictions.preannotate_options import PreannotateOptions

Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on.")]

# What these do, nobody typed.
PROCESSES = ("serve", "web", "worker", "trainer")

app = typer.Typer(
    name="medsam3",
    cls=Commands,
    help="Masks from text labels for Label Studio, and a detector that learns from corrections.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

app.add_typer(corrections)
app.command()(export)
app.command()(agreement)
app.command("import")(import_volumes)
app.command()(propagate)


@app.callback()
def configure(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    """Masks from text labels for Label Studio, and a detector that learns from corrections."""
    set_up_logging(verbose=verbose)
    if context.invoked_subcommand not in PROCESSES:
        from backend.people.audit import act_as, operating_user

        act_as(operating_user())


@app.command()
def serve(host: Host = None, port: Port = None) -> None:
    """Run everything on this machine: web, GPU worker, ingest worker, and Redis if none is set.

    Example: `LABEL_STUDIO_API_KEY=... medsam3 serve --port 9090`
    """
    from backend.processes.supervisor import serve as run

    keep_files_private()
    run(_listening(host, port))


@app.command()
def migrate(as_json: AsJson = False) -> None:
    """Bring the database to this version's tables; every process does so when it starts.

    Example: `DATABASE_URL=postgresql://... medsam3 migrate`
    """
    from backend.database import newest_revision
    from backend.services import open_services

    open_services().close()
    revision = newest_revision()
    if as_json:
        print_json({"revision": revision})
    else:
        say(f"The database is at migration {revision}.")


@app.command()
def web(host: Host = None, port: Port = None) -> None:
    """Run the web process alone: Label Studio's contract and our API, without torch.

    Example: `REDIS_URL=redis://redis:6379 medsam3 web --host 0.0.0.0`
    """
    from backend.web.server import run_web

    keep_files_private()
    run_web(_listening(host, port))


@app.command()
def worker(
    queue: Annotated[
        QueueName,
        typer.Option(
            help="`gpu` runs the model, `ingest` talks to Label Studio, `agent` to a language "
            "model."
        ),
    ] = QueueName.GPU,
    burst: Annotated[bool, typer.Option(help="Stop when the queue is empty.")] = False,
) -> None:
    """Run one worker.

    Example: `REDIS_URL=redis://redis:6379 medsam3 worker --queue gpu`
    """
    from backend.predictions.worker import run_worker
    from backend.services import open_services

    keep_files_private()
    run_worker(open_services(), queue, burst=burst)


@app.command()
def demo(
    images: Annotated[
        Path | None, typer.Option(help="Folder of your images; default: slices of a brain MRI.")
    ] = None,
    labels: Annotated[str, typer.Option(help="What to look for, comma-separated.")] = "",
    folder: Annotated[Path, typer.Option(help="Where the demo keeps its data.")] = Path(".demo"),
    port: Annotated[int, typer.Option(help="Label Studio's port; a free one if taken.")] = 8080,
    backend_port: Annotated[int, typer.Option(help="This backend's; a free one if taken.")] = 9090,
    check: Annotated[
        bool, typer.Option("--check", help="Start, measure, print one JSON line, and stop.")
    ] = False,
) -> None:
    """Start Label Studio with a project of real images and masks on them.

    Example: `medsam3 demo --images ~/colonoscopy --labels "polyp,instrument"`
    """
    from backend.demo.demo import DemoOptions, run_demo

    options = DemoOptions(
        folder=folder,
        images=images,
        labels=tuple(label.strip() for label in labels.split(",") if label.strip()),
        label_studio_port=port,
        backend_port=backend_port,
    )
    with progress_bar("Predicting") as show:
        if not check:
            run_demo(options, say, show)
            return
        from backend.demo.check import check_demo

        report = check_demo(options, say, show)
    print_json(report.as_json())
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def connect(
    project: ProjectId,
    url: Annotated[
        str | None,
        typer.Option(help="Where Label Studio reaches this backend; default: host and port."),
    ] = None,
    keep_sampling: Annotated[
        bool,
        typer.Option(
            "--keep-sampling",
            help="Leave the order of tasks as it is; promotions leave *Sequential sampling*.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Connect a Label Studio project to this backend, and say what changed; safe to repeat.

    Example: `medsam3 connect 12 --url http://backend.example.org:9090`
    """
    from backend.database import open_database
    from backend.label_studio.connect import connect as run
    from backend.models.serving_order import sampling_of

    settings = get_settings()
    sampling = None
    if not keep_sampling:
        database = open_database(settings)
        sampling = sampling_of(database, settings, project)
        database.dispose()
    report = run(
        settings,
        project,
        url or f"http://{settings.host}:{settings.port}",
        sampling=sampling,
    )
    if as_json:
        print_json(asdict(report))
        return
    typer.echo(f"Project {report.project_id} “{report.project_title}”: {report.model_version}")
    for step in report.steps:
        typer.echo(f"  {step.outcome:<9}  {step.what}: {step.message}")


@app.command()
def preannotate(
    project: ProjectId,
    limit: Annotated[
        int | None, typer.Option(help="Only the first so many of these tasks, by id.")
    ] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Only tasks without annotations.")
    ] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this label; again for more. Other labels' regions of a prediction stay."
        ),
    ] = None,
    tab: Annotated[
        int | None,
        typer.Option(
            help="Only tasks that this tab of the Data Manager shows, by its filters: the number "
            "after `tab=` in its address."
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            help="Push nothing: predict a sample (--limit, default 12) and draw it on this sheet."
        ),
    ] = None,
    cancel: Annotated[
        bool,
        typer.Option("--cancel", help="Predict nothing more: cancel the project's waiting tasks."),
    ] = False,
    wait: Annotated[
        float | None, typer.Option(help="Seconds to wait; default: until all is done.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict every task of a project that has no prediction of the version in service.

    Example: `medsam3 preannotate 12 --limit 20 --unlabelled`
    Example: `medsam3 preannotate 12 --label polyp`
    Example: `medsam3 preannotate 12 --tab 31`
    Example: `medsam3 preannotate 12 --preview sheet.png`
    """
    from backend.predictions import preannotate as preannotation
    from backend.predictions.preannotate_options import EVERYTHING, PreannotateOptions
    from backend.services import open_services

    options = PreannotateOptions(limit, unlabelled, tuple(label or ()), tab)
    if cancel:
        if options != EVERYTHING or preview is not None:
            raise BackendError("--cancel cancels all that waits: leave out the other options.")
        print_values({"cancelled": preannotation.cancel(open_services(), project)}, as_json)
        return
    if preview is not None:
        _preview(project, options, preview, wait, as_json)
        return
    with progress_bar("Predicting", quiet=as_json) as show:
        report = preannotation.preannotate(
            open_services(),
            project,
            options,
            on_progress=lambda progress: show(progress.done, progress.total),
            timeout_s=wait,
        )
    if as_json:
        print_json({"project": project, **asdict(report)})
    else:
        typer.echo(
            f"{report.progress.predicted} of {report.progress.total} tasks predicted by "
            f"{report.model_version}, {report.progress.failed} failed, "
            f"{report.progress.cancelled} cancelled"
        )
        if report.embeddings_kept is not None:
            typer.echo(
                f"{report.embeddings_kept} embeddings of images were kept ones, "
                f"{report.embeddings_made} were made"
            )
        for task_id, error in report.errors.items():
            typer.echo(f"  task {task_id}: {error}")
    raise typer.Exit(1 if report.progress.failed or report.progress.cancelled else 0)


def _preview(
    project: int, options: "PreannotateOptions", path: Path, wait: float | None, as_json: bool
) -> None:
    from backend.predictions.preview import preview
    from backend.predictions.preview_sheet import save_sheet
    from backend.services import open_services

    services = open_services()
    with progress_bar("Predicting a sample", quiet=as_json) as show:
        found = preview(services, project, options, on_progress=show, timeout_s=wait)
    save_sheet(services, found, path)
    empty = sum(not task.regions and not task.error for task in found.tasks)
    failed = {task.task_id: task.error for task in found.tasks if task.error}
    if as_json:
        print_json(
            {
                "project": project,
                "model_version": found.model_version,
                "sheet": str(path),
                "tasks": len(found.tasks),
                "empty": empty,
                "errors": failed,
            }
        )
    else:
        typer.echo(
            f"{path} shows {len(found.tasks)} tasks, predicted by {found.model_version}: on "
            f"{empty} of them nothing was found, {len(failed)} failed. Nothing was pushed."
        )
    raise typer.Exit(1 if failed else 0)


@app.command()
def prune(
    project: Annotated[int | None, typer.Option("--project", help="One project.")] = None,
    days: Annotated[
        int | None,
        typer.Option(min=1, help="Older than so many days; default: `MEDSAM3_PRUNE_DAYS`."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove old predictions of versions that no longer serve their project.

    Label Studio keeps its copies. What a correction names stays.

    Example: `medsam3 prune --days 90 --dry-run`
    """
    from backend.predictions.pruning import prune as remove
    from backend.services import open_services

    services = open_services()
    days = days or services.settings.prune_days
    if days is None:
        raise BackendError("say how old: --days 90, or set MEDSAM3_PRUNE_DAYS.")
    seen = 0
    with progress_bar("Pruning", quiet=as_json) as show:

        def progress(rows: int) -> None:
            nonlocal seen
            seen += rows
            show(seen)

        pruned = remove(services, days=days, project_id=project, dry_run=dry_run, progress=progress)
    if as_json:
        print_json({"by_project": pruned.by_project, "kept": pruned.kept})
        return
    does = "would be removed" if dry_run else "were removed"
    removed = pruned.by_project.total()
    typer.echo(f"{removed} predictions {does}; {pruned.kept} others are old and still needed")
    for number, count in sorted(pruned.by_project.items()):
        typer.echo(f"  project {number}: {count}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check settings, Redis, database, workers, Label Studio and its projects; say what to do.

    Example: `LABEL_STUDIO_API_KEY=... medsam3 doctor`
    """
    from backend.doctor import Status, run_checks

    checks = run_checks(get_settings())
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        marks = {Status.OK: "ok  ", Status.WARN: "warn", Status.FAIL: "FAIL"}
        for check in checks:
            typer.echo(f"{marks[check.status]}  {check.name}: {check.message}")
            if check.next_step:
                typer.echo(f"      → {check.next_step}")
    raise typer.Exit(1 if any(check.status == Status.FAIL for check in checks) else 0)


app.command()(evaluate)
app.command()(train)
app.command()(trainer)
app.command()(simulate)
app.add_typer(models)
app.add_typer(agent)
app.add_typer(tokens)
app.command()(audit)


def _listening(host: str | None, port: int | None) -> Settings:
    """The settings with the options given on the command line; children see them too."""
    if host is not None:
        os.environ["MEDSAM3_HOST"] = host
    if port is not None:
        os.environ["MEDSAM3_PORT"] = str(port)
    get_settings.cache_clear()
    return get_settings()


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
