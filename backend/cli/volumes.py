"""`medsam3 import` and `medsam3 propagate`: volumes as tasks, and their slices from some."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from backend.cli.output import AsJson, print_json, progress_bar
from backend.errors import BackendError
from backend.settings import get_settings

if TYPE_CHECKING:
    from backend.volumes.importing import ImportedStack

# How often progress is asked for.
_POLL_S = 0.5

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
        "mediastinum, stroke. Default: what the labeling config names, else the study, else its "
        "range.",
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
    options = StackOptions(
        plane, parse_window(window) if window else None, time=time, frame_step=frame_step
    )
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


FromOption = Annotated[
    list[int] | None,
    typer.Option(
        "--from-slice",
        min=0,
        help="A corrected slice, counted from 0; may be repeated. Default: those that somebody "
        "drew on or changed.",
        show_default=False,
    ),
]
BoundOption = Annotated[
    int | None,
    typer.Option(min=0, help="No slice beyond this one, counted from 0.", show_default=False),
]


def propagate(
    task: Annotated[int, typer.Argument(min=1, help="Label Studio's task id.")],
    from_slice: FromOption = None,
    first: BoundOption = None,
    last: BoundOption = None,
    annotation: Annotated[
        int | None,
        typer.Option(min=1, help="Its regions; default: what was saved last on the task."),
    ] = None,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="End what is under way for the task instead.")
    ] = False,
    wait: Annotated[
        float | None, typer.Option(help="Seconds to wait; default: until all is done.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a stack from its corrected slices, and push it as a prediction; safe to repeat.

    The workers do it: the command may be interrupted, and they go on.

    Example: `medsam3 propagate 4711 --from-slice 42`

    Example: `medsam3 propagate 4711 --from-slice 12 --from-slice 40 --first 8 --last 55`
    """
    from backend.predictions.propagations import cancel as end
    from backend.predictions.propagations import latest, request_propagation, state_of
    from backend.services import open_services

    services = open_services()
    if cancel:
        under_way = [one for one in latest(services, task, 100) if not one.finished]
        states = [end(services, one.id) for one in under_way]
        if as_json:
            print_json([asdict(state) for state in states])
        else:
            typer.echo(f"{len(states)} cancelled")
        return
    id_, _ = request_propagation(
        services, task, from_slice, first=first, last=last, annotation_id=annotation
    )
    deadline = monotonic() + wait if wait is not None else None
    with progress_bar("Propagating", quiet=as_json) as show:
        while not (state := state_of(services, id_)).finished:
            show(state.done, max(state.total, 1))
            if deadline is not None and monotonic() > deadline:
                raise BackendError(
                    f"the stack of task {task} is not drawn yet; are a GPU and an ingest worker "
                    "running (`medsam3 doctor`)? They go on."
                )
            sleep(_POLL_S)
    if as_json:
        print_json(asdict(state))
    elif state.state == "done":
        typer.echo(f"task {task}: {state.done} slices drawn, pushed as a prediction")
    else:
        typer.echo(f"task {task}: {state.state}: {state.error}")
    raise typer.Exit(0 if state.state == "done" else 1)
