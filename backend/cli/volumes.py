"""`medsam3 import`: volumes and videos as tasks of a project."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from backend.cli.output import AsJson, print_json, progress_bar
from backend.settings import get_settings

if TYPE_CHECKING:
    from backend.volumes.importing import ImportedStack

SourceArgument = Annotated[
    Path,
    typer.Argument(
        help="A folder (DICOM series, NIfTI, TIFF stacks, videos, also mixed) or one file.",
        metavar="SOURCE",
        show_default=False,
    ),
]
IntoOption = Annotated[
    int, typer.Option(min=1, help="Label Studio's project id.", show_default=False)
]
PlaneOption = Annotated[
    Literal["source", "axial", "coronal", "sagittal"],
    typer.Option(help="In which pages are cut; `source`: as the volume was made."),
]
WindowOption = Annotated[
    str | None,
    typer.Option(
        help="Values that are shown: `center,width`, or abdomen, bone, brain, liver, lung, "
        "mediastinum, stroke. Default: what the study names, else its range.",
        show_default=False,
    ),
]
TimeOption = Annotated[
    int | None, typer.Option(min=0, help="Which volume of a series in time, from 0.")
]
StepOption = Annotated[int, typer.Option(min=1, help="Every how many frames of a video.")]
ToOption = Annotated[
    Literal["upload", "folder"],
    typer.Option(help="Pages are uploaded to Label Studio, or written to `--folder`."),
]
FolderOption = Annotated[
    Path | None,
    typer.Option(help="With `--to folder`: a folder below Label Studio's local files."),
]
RootOption = Annotated[
    Path | None,
    typer.Option(help="Label Studio's `LOCAL_FILES_DOCUMENT_ROOT`; default: `--folder` itself."),
]


def import_volumes(
    source: SourceArgument,
    project: IntoOption,
    plane: PlaneOption = "source",
    window: WindowOption = None,
    time: TimeOption = None,
    frame_step: StepOption = 1,
    to: ToOption = "upload",
    folder: FolderOption = None,
    document_root: RootOption = None,
    as_json: AsJson = False,
) -> None:
    """Make tasks of volumes and videos, one each, with a page for each slice; safe to repeat.

    Example: `medsam3 import study/ --project 12 --window lung`

    Example: `medsam3 import brain.nii.gz --project 12 --plane coronal`

    Example: `medsam3 import colonoscopy.mp4 --project 13 --frame-step 10`
    """
    from backend.database import open_database
    from backend.label_studio.client import LabelStudio
    from backend.volumes.importing import LocalFolder, import_stacks
    from medsam3_model.images.rendering import StackOptions, parse_window

    if (to == "folder") != (folder is not None):
        raise typer.BadParameter("--to folder and --folder belong together.")
    options = StackOptions(plane, parse_window(window) if window else None, time, frame_step)
    target = LocalFolder(folder, document_root or folder) if folder else None
    settings = get_settings()
    database = open_database(settings)
    imported: list[ImportedStack] = []
    with (
        LabelStudio.from_settings(settings) as client,
        progress_bar("Importing", quiet=as_json) as show,
    ):
        for stack in import_stacks(
            source,
            project,
            options,
            client=client,
            database=database,
            settings=settings,
            folder=target,
            show=show,
        ):
            imported.append(stack)
            if not as_json and stack.outcome != "left out":
                typer.echo(_line(stack))
    if as_json:
        print_json({"project": project, "stacks": [asdict(stack) for stack in imported]})
    else:
        left_out = Counter(stack.notes for stack in imported if stack.outcome == "left out")
        for notes, files in left_out.items():
            typer.echo(f"left out  {files} files: {'; '.join(notes)}")
    outcomes = {stack.outcome for stack in imported}
    if not imported and not as_json:
        typer.echo(f"{source} holds no volume, stack or video.")
    raise typer.Exit(1 if "refused" in outcomes or not outcomes & {"created", "known"} else 0)


def _line(stack: "ImportedStack") -> str:
    task = f"task {stack.task_id}, {stack.pages} pages" if stack.task_id is not None else ""
    return f"{stack.outcome:<8}  {stack.name}: {'; '.join(filter(None, (task, *stack.notes)))}"
