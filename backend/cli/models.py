"""`medsam3 models ...`: model versions, and the weights files that they begin with."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli.output import AsJson, print_json, print_values

if TYPE_CHECKING:
    from backend.tables import Promotion

models = typer.Typer(
    name="models",
    help="Model versions (list, show, promote, roll back, prune) and weights files.",
    no_args_is_help=True,
)

ProjectId = Annotated[int, typer.Argument(help="Label Studio's project id.")]
Version = Annotated[str, typer.Argument(help="The version.")]
Checkpoint = Annotated[
    str, typer.Argument(help="A file, a folder, a hub id, a bundled model.", show_default=False)
]
Config = Annotated[
    Path | None,
    typer.Option(help="config.json with the architecture's sizes, where they are not full."),
]


@models.command("list")
def list_versions(as_json: AsJson = False) -> None:
    """List every version, which one serves which project, and published checkpoints that load.

    Example: `medsam3 models list`
    """
    from sqlalchemy import select

    from backend.models import versions
    from backend.services import open_services
    from backend.tables import ModelVersion, Project
    from medsam3_model.checkpoints.published import PUBLISHED

    services = open_services()
    default = versions.default_version(services)
    serving: defaultdict[str, list[int]] = defaultdict(list)
    with services.database.reading() as session:
        rows = session.scalars(select(ModelVersion).order_by(ModelVersion.id)).all()
        for project in session.scalars(select(Project)):
            serving[project.model_version or default].append(project.id)
    listed = [
        {
            "version": row.version,
            "parent": row.parent,
            "project": row.project_id,
            "in_service_for": serving[row.version],
        }
        for row in rows
    ]
    if as_json:
        checkpoints = [asdict(checkpoint) for checkpoint in PUBLISHED]
        print_json({"default": default, "models": listed, "checkpoints": checkpoints})
        return
    for version in listed:
        parent = f"  from {version['parent']}" if version["parent"] else ""
        serves = f"  serves {version['in_service_for']}" if version["in_service_for"] else ""
        typer.echo(f"{version['version']}{parent}{serves}")
    typer.echo("published checkpoints that load (docs/checkpoints.md):")
    for checkpoint in PUBLISHED:
        base = f", adapter to {checkpoint.adapter_to}" if checkpoint.adapter_to else ""
        typer.echo(f"  {checkpoint.repository}  {checkpoint.name}{base}: {checkpoint.answers}")


@models.command()
def show(version: Version) -> None:
    """Show a version's model card: data, training, figures of the gate.

    Example: `medsam3 models show tiny-p12-1a2b3c4d`
    """
    from sqlalchemy import select

    from backend.errors import ModelVersionError
    from backend.models import card, promotion
    from backend.services import open_services
    from backend.tables import ModelVersion, Promotion

    with open_services().database.reading() as session:
        row = session.scalar(select(ModelVersion).where(ModelVersion.version == version))
        if row is None:
            raise ModelVersionError(f"There is no version {version}: `medsam3 models list`.")
        verdict = promotion.verdict_of(session, row)
        served = session.scalars(
            select(Promotion).where(Promotion.version == version).order_by(Promotion.id)
        ).all()
        typer.echo(card.markdown(row, verdict, list(served)))


@models.command()
def promote(
    project: ProjectId,
    version: Version,
    force: Annotated[
        bool, typer.Option("--force", help="Against the gate's verdict; this is noted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a version into service; workers switch before their next job.

    Example: `medsam3 models promote 12 tiny-p12-1a2b3c4d`
    """
    from backend.models import promotion
    from backend.services import open_services

    _print_promotion(promotion.promote(open_services(), project, version, force=force), as_json)


@models.command()
def rollback(project: ProjectId, as_json: AsJson = False) -> None:
    """Return to the version that served before.

    Example: `medsam3 models rollback 12`
    """
    from backend.models import promotion
    from backend.services import open_services

    _print_promotion(promotion.rollback(open_services(), project), as_json)


@models.command()
def prune(
    project: ProjectId,
    keep: Annotated[
        int, typer.Option(min=0, help="Versions before the one in service to keep.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Remove predictions of older versions from Label Studio.

    Example: `medsam3 models prune 12 --keep 1`
    """
    from backend.services import open_services
    from backend.training.roll_out import prune as run

    removed = run(open_services(), project, keep=keep)
    print_values({"project": project, "removed": removed}, as_json)


@models.command()
def download(
    repository: Annotated[str, typer.Argument(help="Hub id, e.g. `facebook/sam3`.")],
    to: Annotated[Path | None, typer.Option(help="Folder; default the hub's cache.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a checkpoint from the Hugging Face hub; goes on where a download stopped.

    Example: `medsam3 models download facebook/sam3`
    """
    from medsam3_model.checkpoints import hub

    folder = hub.download(repository, revision=revision, folder=to, progress=not as_json)
    print_values({"folder": str(folder)}, as_json)


@models.command()
def convert(
    source: Checkpoint,
    destination: Annotated[Path, typer.Argument(help="A new .safetensors file, or a folder.")],
    adapter: Annotated[Path | None, typer.Option(help="LoRA adapter to merge.")] = None,
    config: Config = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    as_json: AsJson = False,
) -> None:
    """Rewrite a checkpoint as safetensors, with an adapter merged in.

    Example: `medsam3 models convert sam3.pt medsam3-v1 --adapter best_lora_weights.pt`
    """
    from medsam3_model.checkpoints import conversion

    written = conversion.convert(source, destination, adapter, config=config, dtype=dtype)
    print_values({**asdict(written), "path": str(written.path)}, as_json)


@models.command()
def verify(checkpoint: Checkpoint, config: Config = None, as_json: AsJson = False) -> None:
    """Read a weights file whole, and say what it is and what is wrong with it.

    Example: `medsam3 models verify sam3.pt`
    """
    from medsam3_model.checkpoints import conversion

    verified = conversion.verify(checkpoint, config=config)
    print_values({**asdict(verified), "path": str(verified.path), "ok": verified.ok}, as_json)
    raise typer.Exit(0 if verified.ok else 1)


def _print_promotion(made: "Promotion", as_json: bool) -> None:
    answer = {"project": made.project_id, "version": made.version, "previous": made.previous}
    print_values(answer, as_json)
