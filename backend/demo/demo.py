"""`medsam3 demo`: Label Studio, this backend and a pre-annotated project, in one command."""

import json
import os
import secrets
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import cycle
from pathlib import Path
from xml.sax.saxutils import quoteattr

from backend.errors import SettingsError, VolumeError
from backend.label_studio.client import LabelStudio
from backend.label_studio.connect import connect
from backend.label_studio.server import LabelStudioServer, free_port
from backend.models.serving_order import sampling_of
from backend.predictions.preannotate import PreannotationProgress, preannotate
from backend.processes.supervisor import Supervisor
from backend.services import Services, open_services
from backend.settings import Settings, read_settings
from backend.volumes.importing import import_stacks

BRAIN_TITLE = "Brain MRI (demo)"
BRAIN_CONFIG = "brain_mri.xml"
VOLUME_TITLE = "Brain MRI volume (demo)"
VOLUME_CONFIG = "brain_mri_volume.xml"
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
# Distinct on grey-scale images, and to colour-blind people (Okabe and Ito).
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
Say = Callable[[str], None]
ShowProgress = Callable[[int, int], None]  # tasks done, tasks in all


@dataclass(frozen=True)
class DemoOptions:
    """What the user asked for.

    Attributes:
        folder: where everything that the demo makes is kept.
        images: a folder of the user's images; None: slices of a brain template.
        labels: what to look for in them.
        label_studio_port, backend_port: a free one instead where it is 0 or taken.
    """

    folder: Path = Path(".demo")
    images: Path | None = None
    labels: tuple[str, ...] = ()
    label_studio_port: int = 8080
    backend_port: int = 9090


@dataclass(frozen=True)
class DemoProject:
    """A project with its number of tasks."""

    id: int
    title: str
    tasks: int


@dataclass
class Demo:
    """A running demo.

    Attributes:
        label_studio: the running server, with the login.
        services: this process's database and Redis.
        project: the pre-annotated project.
        volume: the one whose only task is a volume; None beside a user's own images.
        seconds_to_first_mask: from the start of the command to the first stored prediction.
        errors: a task's id to the reason why it has no prediction.
    """

    label_studio: LabelStudioServer
    services: Services
    project: DemoProject
    volume: DemoProject | None
    seconds_to_first_mask: float | None
    errors: dict[int, str] = field(default_factory=dict)


def run_demo(options: DemoOptions, say: Say, show_progress: ShowProgress) -> None:
    """Start everything, print where to look, and stay until Ctrl-C."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with running_demo(options, say, show_progress) as demo:
        server = demo.label_studio
        say("")
        say(f"  Label Studio   {server.url}/projects/{demo.project.id}/data")
        say(f"  login          {server.user}")
        say(f"  password       {server.password}")
        say("")
        say("Open a task: the masks are there. Pick a smart tool, draw a box, and get a mask.")
        if demo.volume is not None:
            _say_how_a_volume_goes_on(demo, demo.volume, options, say)
        say("Ctrl-C stops everything; the next start finds the same project.")
        # From here on Ctrl-C ends the demo as planned, also where a shell ignores the signal.
        signal.signal(signal.SIGINT, lambda *_: stop.set())
        stop.wait()
        say("Stopping ...")


@contextmanager
def running_demo(options: DemoOptions, say: Say, show_progress: ShowProgress) -> Iterator[Demo]:
    """A demo that runs as long as the block."""
    started = time.monotonic()
    images = list(_images(options))
    server, settings = _configure(options)
    supervisor = Supervisor(settings)
    watcher = threading.Thread(target=supervisor.watch, name="supervisor", daemon=True)
    services: Services | None = None
    try:
        say("Starting Label Studio, the web process and the workers ...")
        # The children first: they load the model while Label Studio starts.
        supervisor.start()
        watcher.start()
        server.start()
        services = open_services(settings)
        with LabelStudio.from_settings(settings) as client:
            project = _find_or_create(client, options, images, say)
        _connect(services, project.id)
        first: list[float] = []

        def progressed(progress: PreannotationProgress) -> None:
            if progress.predicted and not first:
                first.append(round(time.monotonic() - started, 2))
            show_progress(progress.done, progress.total)

        report = preannotate(services, project.id, on_progress=progressed, timeout_s=1800)
        errors, volume = report.errors, None
        if options.images is None:
            with LabelStudio.from_settings(settings) as client:
                volume = _volume(client, services, say)
            _connect(services, volume.id)
            errors |= preannotate(services, volume.id, timeout_s=1800).errors
        yield Demo(server, services, project, volume, first[0] if first else None, errors)
    finally:
        supervisor.request_stop()
        if watcher.is_alive():
            watcher.join()
        supervisor.stop()
        server.stop()
        if services is not None:
            services.close()


def _configure(options: DemoOptions) -> tuple[LabelStudioServer, Settings]:
    """The server and the settings, the same at every start; children read the environment."""
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    login = _login(folder)
    server = LabelStudioServer(
        folder / "label-studio",
        port=free_port(options.label_studio_port),
        user="demo@example.com",
        password=login["password"],
        token=login["token"],
        template_dir=Path(".cache") / "label-studio",
    )
    os.environ |= {
        "MEDSAM3_DATA_DIR": str(folder / "medsam3"),
        "MEDSAM3_PORT": str(free_port(options.backend_port)),
        "LABEL_STUDIO_URL": server.url,
        "LABEL_STUDIO_API_KEY": server.token,
    }
    return server, read_settings()


def _login(folder: Path) -> dict[str, str]:
    path = folder / "login.json"
    if not path.exists():
        path.touch(mode=0o600)
        fresh = {"password": secrets.token_urlsafe(9), "token": secrets.token_hex(20)}
        path.write_text(json.dumps(fresh))
    login = json.loads(path.read_text())
    return dict(login)


def _connect(services: Services, project_id: int) -> None:
    settings = services.settings
    sampling = sampling_of(services.database, settings, project_id)
    connect(settings, project_id, f"http://127.0.0.1:{settings.port}", sampling=sampling)


def _find_or_create(
    client: LabelStudio, options: DemoOptions, images: list[tuple[str, bytes]], say: Say
) -> DemoProject:
    title = _title(options)
    for project in client.projects():
        if project["title"] == title:
            return DemoProject(project["id"], title, project["task_number"])
    say(f"Creating the project “{title}” with {len(images)} images ...")
    project = client.create_project(title, _label_config(options))
    client.upload_files(project["id"], images)
    return DemoProject(project["id"], title, len(images))


def _volume(client: LabelStudio, services: Services, say: Say) -> DemoProject:
    """The project with the whole brain as one task."""
    from medsam3_model.data.template import template_file
    from medsam3_model.images.rendering import StackOptions

    found = [one for one in client.projects() if one["title"] == VOLUME_TITLE]
    if found:
        project = found[0]
    else:
        say(f"Creating the project “{VOLUME_TITLE}”, and predicting every slice ...")
        config = (files("label_config") / VOLUME_CONFIG).read_text()
        project = client.create_project(VOLUME_TITLE, config)
    # Repeated at each start: what is there is known, and what was stopped half-way is not.
    (stack,) = import_stacks(
        template_file(),
        project["id"],
        StackOptions(plane="axial"),
        client=client,
        database=services.database,
        settings=services.settings,
    )
    if stack.task_id is None:
        raise VolumeError(f"the demo's volume was not imported: {' '.join(stack.notes)}")
    return DemoProject(project["id"], VOLUME_TITLE, 1)


def _say_how_a_volume_goes_on(
    demo: Demo, volume: DemoProject, options: DemoOptions, say: Say
) -> None:
    """Where the volume is, and what draws the rest of it."""
    folder = options.folder.absolute()
    environment = folder / "environment"
    keys = ("MEDSAM3_DATA_DIR", "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY")
    environment.touch(mode=0o600)
    environment.write_text("".join(f"{key}={shlex.quote(os.environ[key])}\n" for key in keys))
    with LabelStudio(demo.label_studio.url, demo.label_studio.token) as client:
        (task,) = client.tasks(volume.id, include=("id",))
    say("")
    say(f"  a volume       {demo.label_studio.url}/projects/{volume.id}/data")
    say("")
    say("Correct one slice of it, submit, and have the other slices drawn from it:")
    say(f"  set -a; . {shlex.quote(str(environment))}; {sys.argv[0]} propagate {task['id']}")
    say("")


def _title(options: DemoOptions) -> str:
    if options.images is None:
        return BRAIN_TITLE
    # Label Studio's titles hold 50 characters.
    return f"{options.images.absolute().name}: {', '.join(options.labels)}"[:50]


def _images(options: DemoOptions) -> Iterator[tuple[str, bytes]]:
    """File names and contents of the images to upload."""
    if options.images is None:
        yield from template_images()
        return
    if not options.labels:
        raise SettingsError('say what to look for, for example --labels "polyp,instrument"')
    if not options.images.is_dir():
        raise SettingsError(f"{options.images} is not a folder")
    paths = [
        path
        for path in sorted(options.images.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    ]
    if not paths:
        raise SettingsError(
            f"{options.images} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    for path in paths:
        yield path.name, path.read_bytes()


def template_images() -> Iterator[tuple[str, bytes]]:
    """PNG files of the template's slices that the bundled model was not trained on."""
    import io

    from PIL import Image

    from medsam3_model.data.template import demo_slices

    for template_slice in demo_slices():
        buffer = io.BytesIO()
        Image.fromarray(template_slice.image).save(buffer, "PNG")
        yield f"{template_slice.name}.png", buffer.getvalue()


def _label_config(options: DemoOptions) -> str:
    if options.images is None:
        return (files("label_config") / BRAIN_CONFIG).read_text()
    return label_config_for(options.labels)


def label_config_for(labels: tuple[str, ...]) -> str:
    """A labeling config with brush masks and smart tools for the given labels."""

    tags = "".join(
        f"<Label value={quoteattr(label)} background={quoteattr(colour)}/>"
        for label, colour in zip(labels, cycle(COLOURS), strict=False)
    )
    return (
        '<View><Image name="image" value="$image" zoom="true"/>'
        f'<BrushLabels name="mask" toName="image">{tags}</BrushLabels>'
        f'<RectangleLabels name="box" toName="image" smart="true">{tags}</RectangleLabels>'
        f'<KeyPointLabels name="point" toName="image" smart="true">{tags}</KeyPointLabels></View>'
    )
