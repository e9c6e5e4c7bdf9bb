"""The commands of the training loop: `train`, `trainer`, `simulate`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.cli.output import AsJson, print_json, print_values, progress_bar, say
from backend.processes.privacy import keep_files_private

if TYPE_CHECKING:
    from backend.services import Services

_POLL_S = 0.5


def train(
    project: Annotated[
        int | None, typer.Argument(help="Label Studio's project id; none: list the runs.")
    ] = None,
    cancel: Annotated[str | None, typer.Option(help="Cancel the run of this id.")] = None,
    log: Annotated[
        str | None, typer.Option(help="Show what the trainer did in the run of this id.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the runs.")] = False,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps at most.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes of training at most.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed.")] = None,
    adapter: Annotated[
        bool | None,
        typer.Option(help="Train an adapter of the encoder, too; default: the project's."),
    ] = None,
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
        _print_run(runs.summary(runs.cancel(services, cancel)), as_json)
        return
    if log is not None:
        _print_log(services, log, as_json)
        return
    if project is None or show:
        with services.database.reading() as session:
            listed = [runs.summary(run) for run in runs.list_runs(session, project)]
        print_json({"training_runs": listed}) if as_json else _print_table(listed)
        return
    requested = runs.request_run(
        services,
        project,
        Trigger.COMMAND,
        steps=steps,
        minutes=minutes,
        learning_rate=learning_rate,
        seed=seed,
        adapter=adapter,
    )
    if not wait:
        print_values({"id": requested.run_id, "new": requested.new}, as_json)
        return
    ended = _follow(services, requested.run_id, quiet=as_json)
    _print_run(ended, as_json)
    raise typer.Exit(0 if ended["state"] == "done" else 1)


def trainer(
    burst: Annotated[bool, typer.Option(help="Stop when the queue is empty.")] = False,
) -> None:
    """Run the process that trains; it makes way for annotators and resumes after a kill.

    Example: `REDIS_URL=redis://redis:6379 medsam3 trainer`
    """
    from backend.services import open_services
    from backend.training.trainer import run_trainer

    keep_files_private()
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
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each round at most.")
    ] = None,
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
    figures = run(options, out, say)
    if as_json:
        print_json(figures)
    else:
        typer.echo(markdown(figures, data.name))
        say(f"JSON, CSV and plot are in {out}")


def _follow(services: "Services", run_id: str, *, quiet: bool) -> dict[str, Any]:
    """Show a bar until the run ends; returns its summary."""
    from backend.tables import GateVerdict
    from backend.training import runs
    from backend.training.tables import TrainingRun

    with progress_bar("Waiting for the trainer", quiet=quiet) as show:
        while True:
            with services.database.reading() as session:
                run = session.get_one(TrainingRun, run_id)
                summary = runs.summary(run, session.get(GateVerdict, run_id))
            if run.state in runs.ENDED:
                return summary
            loss = f", loss {run.loss:.2f}" if run.loss else ""
            show(run.step, run.steps or None, f"{run.stage or 'waiting'}{loss}")
            time.sleep(_POLL_S)


def _print_run(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(summary)
        return
    from medsam3_model.training.endings import ENDINGS

    verdict = summary["gate"]
    print_values({**summary, "options": None, "gate": None, "stopped": None}, as_json=False)
    if summary["stopped"]:
        typer.echo(f"training ended: {ENDINGS[summary['stopped']]}")
    if verdict:
        typer.echo(f"gate: {'passed' if verdict['passed'] else 'not passed'}")
        for reason in verdict["reasons"]:
            typer.echo(f"  {reason}")


def _print_log(services: "Services", run_id: str, as_json: bool) -> None:
    from backend.errors import TrainingError
    from backend.training.run_log import log_of
    from backend.training.tables import TrainingRun

    with services.database.reading() as session:
        if session.get(TrainingRun, run_id) is None:
            raise TrainingError(f"There is no training run {run_id}: `medsam3 train --list`.")
    lines = log_of(services.redis, run_id)
    if as_json:
        print_json({"log": [{"at": line.at.isoformat(), "text": line.text} for line in lines]})
        return
    for line in lines:
        typer.echo(f"{line.at:%Y-%m-%d %H:%M:%S}  {line.text}")


def _print_table(summaries: list[dict[str, Any]]) -> None:
    for run in summaries:
        candidate = f" → {run['candidate']}" if run["candidate"] else ""
        error = f"  {run['error']}" if run["error"] else ""
        typer.echo(
            f"{run['id']}  project {run['project']}  {run['state']}  {run['step']}/{run['steps']}"
            f"{candidate}{error}"
        )
