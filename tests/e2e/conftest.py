"""One real Label Studio for all end-to-end tests of a run, and projects in it."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from backend.label_studio.client import LabelStudio
from backend.label_studio.server import REPOSITORY, LabelStudioServer
from tests.support.backend_server import BackendServer

BRUSH_CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image">
    <Label value="Bright" prompt="bright disc"/>
  </BrushLabels>
</View>
"""


@dataclass(frozen=True)
class LabelStudioProject:
    """A project of one test with its tasks, in the order of the uploaded images."""

    id: int
    task_ids: list[int]


ProjectFactory = Callable[..., LabelStudioProject]


@pytest.fixture(scope="session")
def label_studio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudioServer]:
    """A running Label Studio: `.url`, `.user`, `.password`, `.token` (a legacy token)."""
    folder = tmp_path_factory.mktemp("label-studio")
    local_files = tmp_path_factory.mktemp("local-files")
    server = LabelStudioServer(
        folder,
        template_dir=REPOSITORY / ".cache" / "label-studio",
        local_files_root=local_files,
    )
    with server:
        yield server


@pytest.fixture(scope="session")
def label_studio(label_studio_server: LabelStudioServer) -> Iterator[LabelStudio]:
    """A client of it, with the legacy token."""
    with LabelStudio(label_studio_server.url, label_studio_server.token) as client:
        yield client


@pytest.fixture(scope="session")
def personal_token(label_studio: LabelStudio) -> str:
    """A personal access token of the same user, who can have one at a time."""
    return str(label_studio.post("/api/token/", {})["token"])


@pytest.fixture(scope="session")
def backend(
    tmp_path_factory: pytest.TempPathFactory, label_studio_server: LabelStudioServer
) -> Iterator[BackendServer]:
    """This backend, all of its processes, for Label Studio to call: `.url`, `.settings`."""
    server = BackendServer(tmp_path_factory.mktemp("b"), label_studio_server)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def make_project(label_studio: LabelStudio, request: pytest.FixtureRequest) -> ProjectFactory:
    """Create a project with uploaded images: `make_project(images=2, label_config=..., **fields)`.

    `images` is a number of generated images, or a list of encoded ones.
    """

    def make(
        images: int | list[bytes] = 0, label_config: str = BRUSH_CONFIG, **fields: object
    ) -> LabelStudioProject:
        project = label_studio.create_project(request.node.name[:50], label_config, **fields)
        if isinstance(images, int):
            images = [disc_image(seed) for seed in range(images)]
        files = [(f"image{index:04d}.png", content) for index, content in enumerate(images)]
        task_ids = label_studio.upload_files(project["id"], files) if files else []
        return LabelStudioProject(project["id"], task_ids)

    return make


def disc_image(seed: int, height: int = 96, width: int = 128) -> bytes:
    """A PNG with one bright disc on noise; different for every seed."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    radius = min(height, width) / 5
    centre = random.uniform(radius, [height - radius, width - radius])
    inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
    grey = random.integers(30, 80, (height, width)) + 140 * inside
    buffer = io.BytesIO()
    Image.fromarray(grey.astype(np.uint8)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
