"""The commands of the learning loop: `train`, `trainer`, `simulate`, `models`."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

models = typer.Typer(
    name="models", help="Versions: list, show, promote, roll back, prune.", no_args_is_help=True
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ProjectId = Annotated[int, typer.Argument(help="Label Studio's project id.")]
_POLL_S = 0.5


def train(
    project: Annotated[
        int | None, typer.Argument(help="Label Studio's project id; none: list the runs.")
    ] = None,
    cancel: Annotated[str | None, typer.Option(help="Cancel the run of this id.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the runs.")] = False,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps at most.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the end and show the progress.")] = True,
    as_json: AsJson = False,
) -> None:
    """Train a project's detector on its corrections, judge it, and promote it if it is better.

    Example: `medsam3 train 12`
    """
    from backend.services import open_services
    from backend.training import runs
    from backend.training.tables import Trigger

    services = open_services()
    if cancel is not None:
        _print(runs.summary(runs.cancel(services, cancel)), as_json)
        return
    if project is None or show:
        with services.database.reading() as session:
            found = [runs.summary(run) for run in runs.list_runs(session, project)]
        _print({"training_runs": found}, as_json) if as_json else _table(found)
        return
    requested = runs.request_run(
        services,
        project,
        Trigger.COMMAND,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
    )
    if not wait:
        _print({"id": requested.run_id, "new": requested.new}, as_json)
        return
    ended = _follow(services, requested.run_id)
    _print(ended, as_json)
    raise typer.Exit(0 if ended["state"] == "done" else 1)


def trainer(
    burst: Annotated[bool, typer.Option(help="Stop when the queue is empty.")] = False,
) -> None:
    """Run the process that trains; it makes way for annotators and resumes after a kill.

    Example: `REDIS_URL=redis://redis:6379 medsam3 trainer`
    """
    from backend.services import open_services
    from backend.training.trainer import run_trainer

    run_trainer(open_services(), burst=burst)


def simulate(
    data: Annotated[Path, typer.Option(help="Folder of images with masks.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="Phrase, or concept=phrase; repeat for several.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of correcting and training.")] = 5,
    per_round: Annotated[int, typer.Option(min=1, help="Images corrected in each.")] = 10,
    strategies: Annotated[str, typer.Option(help="Comma-separated.")] = "uncertainty",
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions with other seeds.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each round.")] = 120,
    validation: Annotated[int, typer.Option(min=1, help="Validation images at most.")] = 40,
    baseline: Annotated[str | None, typer.Option(help="`unet`: beside MONAI's U-Net.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Repetitions played side by side.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for JSON, CSV and plot.")] = Path("simulation"),
    as_json: AsJson = False,
) -> None:
    """Play an annotator over a folder, through the real ingest, training, gate and promotion.

    Prints a row of a Markdown table for each strategy; JSON, CSV and a plot are written.

    Example: `medsam3 simulate --data busi --prompt "breast tumor" --rounds 5 --baseline unet`
    """
    from backend.simulation.report import markdown
    from backend.simulation.simulate import SimulationOptions
    from backend.simulation.simulate import simulate as run

    options = SimulationOptions(
        data=data,
        prompts=tuple(prompt or ()),
        rounds=rounds,
        per_round=per_round,
        strategies=tuple(name.strip() for name in strategies.split(",") if name.strip()),
        seeds=seeds,
        steps=steps,
        validation=validation,
        baseline=baseline,
        jobs=jobs,
    )
    figures = run(options, out, lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        typer.echo(markdown(figures, data.name))
        typer.echo(f"JSON, CSV and plot are in {out}", err=True)


@models.command("list")
def list_versions(as_json: AsJson = False) -> None:
    """Every version, and which one serves which project.

    Example: `medsam3 models list`
    """
    from sqlalchemy import select

    from backend.models import versions
    from backend.services import open_services
    from backend.tables import ModelVersion, Project

    services = open_services()
    default = versions.default_version(services)
    with services.database.reading() as session:
        rows = session.scalars(select(ModelVersion).order_by(ModelVersion.id)).all()
        serving: dict[str, list[int]] = {}
        for project in session.scalars(select(Project)):
            serving.setdefault(project.model_version or default, []).append(project.id)
    found = [
        {
            "version": row.version,
            "parent": row.parent,
            "project": row.project_id,
            "in_service_for": serving.get(row.version, []),
        }
        for row in rows
    ]
    if as_json:
        typer.echo(json.dumps({"default": default, "models": found}))
        return
    for one in found:
        serves = f"  serves {one['in_service_for']}" if one["in_service_for"] else ""
        parent = f"  from {one['parent']}" if one["parent"] else ""
        typer.echo(f"{one['version']}{parent}{serves}")


@models.command()
def show(version: Annotated[str, typer.Argument(help="The version.")]) -> None:
    """A version's model card: data, training, figures of the gate.

    Example: `medsam3 models show tiny-p12-1a2b3c4d`
    """
    from sqlalchemy import select

    from backend.errors import ModelVersionError
    from backend.models import card
    from backend.services import open_services
    from backend.tables import GateVerdict, ModelVersion, Promotion

    with open_services().database.reading() as session:
        row = session.scalar(select(ModelVersion).where(ModelVersion.version == version))
        if row is None:
            raise ModelVersionError(f"There is no version {version}: `medsam3 models list`.")
        verdict = session.get(GateVerdict, row.run_id) if row.run_id else None
        served = session.scalars(
            select(Promotion).where(Promotion.version == version).order_by(Promotion.id)
        ).all()
        typer.echo(card.markdown(row, verdict, list(served)))


@models.command()
def promote(
    project: ProjectId,
    version: Annotated[str, typer.Argument(help="The version.")],
    force: Annotated[bool, typer.Option("--force", help="Against the gate; noted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a version into service; workers switch before their next job.

    Example: `medsam3 models promote 12 tiny-p12-1a2b3c4d`
    """
    from backend.models import promotion
    from backend.services import open_services

    made = promotion.promote(open_services(), project, version, force=force)
    _print({"project": project, "version": made.version, "previous": made.previous}, as_json)


@models.command()
def rollback(project: ProjectId, as_json: AsJson = False) -> None:
    """Return to the version that served before.

    Example: `medsam3 models rollback 12`
    """
    from backend.models import promotion
    from backend.services import open_services

    made = promotion.rollback(open_services(), project)
    _print({"project": project, "version": made.version, "previous": made.previous}, as_json)


@models.command()
def prune(
    project: ProjectId,
    keep: Annotated[int, typer.Option(min=0, help="Versions before the present to keep.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Remove predictions of older versions from Label Studio.

    Example: `medsam3 models prune 12 --keep 1`
    """
    from backend.services import open_services
    from backend.training.roll_out import prune as run

    _print({"project": project, "removed": run(open_services(), project, keep=keep)}, as_json)


def _follow(services: Any, run_id: str) -> dict[str, Any]:
    """Show a bar until the run ends; returns its summary."""
    from rich.console import Console
    from rich.progress import Progress

    from backend.tables import GateVerdict
    from backend.training import runs
    from backend.training.tables import TrainingRun

    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("Waiting for the trainer", total=None)
        while True:
            with services.database.reading() as session:
                run = session.get_one(TrainingRun, run_id)
                found = runs.summary(run, session.get(GateVerdict, run_id))
            if run.state in runs.ENDED:
                return found
            title = f"{run.stage or 'waiting'}" + (f", loss {run.loss:.2f}" if run.loss else "")
            bar.update(row, description=title, completed=run.step, total=run.steps or None)
            time.sleep(_POLL_S)


def _print(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        if name == "gate" and value:
            typer.echo(f"gate: {'passed' if value['passed'] else 'not passed'}")
            for reason in value["reasons"]:
                typer.echo(f"  {reason}")
        elif name not in ("options", "gate") and value is not None:
            typer.echo(f"{name}: {value}")


def _table(found: list[dict[str, Any]]) -> None:
    for one in found:
        made = f" → {one['candidate']}" if one["candidate"] else ""
        typer.echo(
            f"{one['id']}  project {one['project']}  {one['state']}  {one['step']}/{one['steps']}"
            f"{made}{'  ' + one['error'] if one['error'] else ''}"
        )
