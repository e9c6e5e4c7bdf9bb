"""`medsam3 corrections ...` and `medsam3 export`."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.cli.output import AsJson, print_json, progress_bar
from backend.corrections.export import WITHOUT_IMAGES, ExportFormat, OverlapRule
from backend.errors import CorrectionsError

if TYPE_CHECKING:
    from backend.services import Services

corrections = typer.Typer(
    name="corrections",
    help="What annotators submitted, and what it did to the predictions.",
    no_args_is_help=True,
)

ProjectOption = Annotated[int | None, typer.Option("--project", help="One Label Studio project.")]


@corrections.command("list")
def list_(
    project: ProjectOption = None,
    state: Annotated[str | None, typer.Option(help="Only these: `valid` or `quarantined`.")] = None,
    limit: Annotated[int, typer.Option(help="How many at most.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the annotations that Label Studio has, as the backend keeps them.

    Example: `medsam3 corrections list --project 3 --state quarantined`
    """
    from backend.corrections.revisions import current_state

    with _services() as services, services.database.reading() as session:
        annotations = list(current_state(session, project, state=state, limit=limit))
    if as_json:
        print_json(annotations)
        return
    for row in annotations:
        revision = row["revision"] or {}
        content = row["reason"] or ", ".join(
            f"{mask['label']} {mask['area']} px" for mask in revision.get("concepts", [])
        )
        typer.echo(
            f"annotation {row['annotation']}  project {row['project']}  task {row['task']}  "
            f"{'skipped' if revision.get('was_cancelled') else row['state']}  {content}"
        )


@corrections.command()
def show(
    annotation: Annotated[int, typer.Argument(help="Id of the annotation in Label Studio.")],
    as_json: AsJson = False,
) -> None:
    """Show every version of one annotation, and what each did to the prediction.

    Example: `medsam3 corrections show 36 --json`
    """
    from backend.corrections.revisions import with_history

    with _services() as services, services.database.reading() as session:
        known = with_history(session, annotation)
    if known is None:
        raise CorrectionsError(
            f"annotation {annotation} is not in the store: `medsam3 corrections sync` looks"
        )
    if as_json:
        print_json(known)
        return
    state = known["reason"] or known["state"]
    typer.echo(f"annotation {annotation} of task {known['task']}: {state}")
    for version in known["versions"]:
        seconds = version["lead_time"] or 0
        typer.echo(f"{version['updated_at']}  annotator {version['annotator']}  {seconds:.0f} s")
        for outcome in version["outcomes"]:
            dice = "" if outcome["dice"] is None else f"  Dice {outcome['dice']:.3f}"
            typer.echo(f"  {outcome['outcome']:9}{outcome['label']}{dice}")


@corrections.command()
def stats(project: ProjectOption = None, as_json: AsJson = False) -> None:
    """Count accepted, edited, rejected and added regions, and the time they took.

    Example: `medsam3 corrections stats --project 3 --json`
    """
    from backend.corrections.statistics import compute

    with _services() as services, services.database.reading() as session:
        counted = compute(session, project)
    if as_json:
        print_json(counted)
        return
    counts = ", ".join(f"{number} {name}" for name, number in counted["annotations"].items())
    typer.echo(f"annotations: {counts}")
    _echo_figures("all", counted["overall"])
    for part in ("by_concept", "by_annotator", "by_model_version", "by_week"):
        typer.echo(part.replace("_", " "))
        for name, figures in counted[part].items():
            _echo_figures(f"  {name}", figures)


@corrections.command()
def sync(
    project: ProjectOption = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Read all annotations again, not only changes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring in what webhooks missed, from Label Studio's API.

    Example: `medsam3 corrections sync --project 3`
    """
    from backend.corrections.ingest import open_ingest
    from backend.corrections.sync import known_projects, sync_project

    with _services() as services, open_ingest(services) as ingest:
        projects = known_projects(ingest) if project is None else [project]
        reports = []
        for number in projects:
            with progress_bar(f"Reading project {number}", quiet=as_json) as show:
                report = sync_project(ingest, number, from_start=from_start, progress=show)
            reports.append(report)
    if as_json:
        print_json([asdict(report) for report in reports])
        return
    for report in reports:
        typer.echo(
            f"project {report.project_id}: {report.read} annotations read, {report.repaired} "
            f"repaired ({report.revisions} new versions, {report.deleted} deleted, "
            f"{report.restored} restored, {report.quarantined} quarantined)"
        )


@corrections.command("write-facts")
def write_facts(
    project: Annotated[int, typer.Option(help="The Label Studio project.")],
    as_json: AsJson = False,
) -> None:
    """Write what is known of each task into its meta in Label Studio, to filter and export by.

    `medsam3_split`, `medsam3_outcome` and `medsam3_disagreement`; a repeated call brings them up to
    date.

    Example: `medsam3 corrections write-facts --project 3`
    """
    from backend.corrections.task_facts import write_facts as write
    from backend.label_studio.client import LabelStudio

    with (
        _services() as services,
        LabelStudio.from_settings(services.settings) as studio,
        progress_bar("Writing", quiet=as_json) as show,
    ):
        written = write(services, studio, project, show)
    if as_json:
        print_json({"project": project, **asdict(written)})
    else:
        typer.echo(f"{written.tasks} tasks with facts, {written.changed} changed in Label Studio")
        for task_id in written.left_out:
            typer.echo(f"task {task_id}: left out, its meta is no JSON object")


@corrections.command()
def forget(
    task: Annotated[int | None, typer.Option(help="One task, of `--project`.")] = None,
    project: ProjectOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove all that is kept about a task or a project: masks, predictions, embeddings.

    The backend ignores later events about it. Label Studio's own copy is not touched.

    Example: `medsam3 corrections forget --project 3 --task 487 --yes`
    """
    from backend.corrections.mask_store import MaskStore
    from backend.corrections.privacy import forget as remove
    from backend.models.encoding import embedding_places

    if project is None:
        raise CorrectionsError("say which: --project ID, or --project ID --task ID")
    what = f"project {project}" if task is None else f"task {task} of project {project}"
    if not yes:
        typer.confirm(f"Remove everything about {what} for good?", abort=True)
    with _services() as services:
        removed = remove(
            services.database,
            MaskStore(services.settings.storage),
            embedding_places(services.settings),
            project_id=project,
            task_id=task,
        )
    if as_json:
        print_json(asdict(removed))
        return
    parts = ", ".join(
        f"{number} {name.replace('_', ' ')}" for name, number in asdict(removed).items()
    )
    typer.echo(f"removed of {what}: {parts}")


def export(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    project: Annotated[int, typer.Option(help="The Label Studio project.")],
    format_: Annotated[ExportFormat, typer.Option("--format", help="What to write.")],
    version: Annotated[
        str | None,
        typer.Option(help="Dataset version; made if it is new. Default: named by its content."),
    ] = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Also fetch the image files.")
    ] = True,
    overlap: Annotated[
        OverlapRule | None,
        typer.Option(
            help="Where a pixel has several labels and `nnunet` keeps one: refuse (the default), "
            "or the label with the fewest pixels in the image."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a project's corrections as a dataset; the same version always has the same bytes.

    Example: `medsam3 export data/spring --project 3 --format coco --version spring`
    """
    from backend.corrections.datasets import open_version
    from backend.corrections.export.export import export as write
    from backend.corrections.export.pages import ExportPage
    from backend.corrections.ingest import open_ingest
    from backend.corrections.mask_store import MaskStore
    from backend.corrections.statistics import compute
    from backend.label_studio.images import image_limits

    with _services() as services:
        with services.database.session() as session:
            dataset = open_version(session, project, version)
            revisions = [item.task.revision_id for item in dataset.items]
            figures = compute(session, project, revisions)
        with ExitStack() as opened:
            with_images = images and format_ not in WITHOUT_IMAGES
            coded = format_ is ExportFormat.DICOM_SEG
            ingest = opened.enter_context(open_ingest(services)) if with_images or coded else None
            config = ""
            if coded and ingest is not None:
                config = str(ingest.source.client.project(project)["label_config"])

            def read(page: ExportPage) -> bytes:
                assert ingest is not None
                return ingest.source.image(
                    page.image.reference, project_id=project, task_id=page.item.task.task_id
                )

            count = write(
                dataset,
                MaskStore(services.settings.storage),
                folder,
                format_,
                statistics=figures,
                read_image=read if with_images else None,
                overlap=overlap,
                label_config=config,
                limits=image_limits(services.settings),
                progress=opened.enter_context(progress_bar("Exporting", quiet=as_json)),
            )
    if as_json:
        print_json({"version": dataset.name, "digest": dataset.digest, "images": count})
    else:
        typer.echo(f"version {dataset.name}: {count} images in {folder}")


def agreement(
    project: Annotated[int, typer.Option(help="The Label Studio project.")],
    as_json: AsJson = False,
) -> None:
    """Compare annotators of the same tasks: Dice, Krippendorff's alpha, gold tasks, disputes.

    Example: `medsam3 agreement --project 3 --json`
    """
    from backend.corrections.agreement import compute_agreement

    with _services() as services:
        found = compute_agreement(services, project)
    if as_json:
        print_json(asdict(found))
        return
    typer.echo(
        f"{found.tasks} tasks with several annotators ({found.left_out} left out), "
        f"{found.gold_tasks} with a gold annotation: Dice {_figure(found.dice)}, alpha "
        f"{_figure(found.alpha)}"
    )
    for label in found.labels:
        typer.echo(
            f"{label.label}: {label.comparisons} comparisons, Dice {_figure(label.dice)}, alpha "
            f"{_figure(label.alpha)}"
        )
    for one in found.annotators:
        typer.echo(
            f"annotator {one.annotator}: {one.tasks} tasks, Dice {_figure(one.dice)} with others, "
            f"{_figure(one.gold_dice)} with {one.gold_tasks} gold tasks"
        )
    for task in found.disputed[:10]:
        typer.echo(
            f"task {task.task_id}: Dice {task.dice:.3f}, least on {task.label} "
            f"({task.label_dice:.3f})"
        )


@contextmanager
def _services() -> "Iterator[Services]":
    """This machine's services, closed at the end."""
    from backend.services import open_services

    with closing(open_services()) as services:
        yield services


def _echo_figures(name: str, figures: dict[str, Any]) -> None:
    rate, seconds = figures["acceptance_rate"], figures["seconds"]
    typer.echo(
        f"{name}: {figures['annotations']} annotations, {figures['accepted']} accepted, "
        f"{figures['edited']} edited, {figures['rejected']} rejected, {figures['added']} added"
        + ("" if rate is None else f", {100 * rate:.0f} % accepted")
        + ("" if seconds is None else f", {seconds:.0f} s each")
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
