"""One real Label Studio, backend and browser for all end-to-end tests of a run, and projects."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from backend.demo.demo import label_config_for, template_images
from backend.label_studio.connect import connect
from backend.label_studio.server import REPOSITORY, LabelStudioServer
from backend.settings import Settings
from tests.support.annotating import AnnotatingLabelStudio
from tests.support.editor import BRAIN_LABELS, open_task
from tests.support.images import disc_file
from tests.support.label_configs import BRIGHT_DISC_CONFIG
from tests.support.processes import BackendServer
from tests.support.projects import LabelStudioProject, ProjectFactory


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
def label_studio(label_studio_server: LabelStudioServer) -> Iterator[AnnotatingLabelStudio]:
    """A client of it, with the legacy token."""
    with AnnotatingLabelStudio(label_studio_server.url, label_studio_server.token) as client:
        yield client


@pytest.fixture(scope="session")
def personal_token(label_studio: AnnotatingLabelStudio) -> str:
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
def settings(label_studio_server: LabelStudioServer, tmp_path: Path) -> Settings:
    """Settings of an installation of the test's own, beside the shared Label Studio."""
    return Settings(
        _env_file=None,
        data_dir=tmp_path,
        label_studio_url=label_studio_server.url,
        label_studio_api_key=label_studio_server.token,
    )


@pytest.fixture
def make_project(
    label_studio: AnnotatingLabelStudio, request: pytest.FixtureRequest
) -> ProjectFactory:
    """Create a project with uploaded images: `make_project(images=2, label_config=..., **fields)`.

    `images` is a number of generated images, or a list of encoded ones.
    """

    def make(
        images: int | list[bytes] = 0, label_config: str = BRIGHT_DISC_CONFIG, **fields: object
    ) -> LabelStudioProject:
        project = label_studio.create_project(request.node.name[:50], label_config, **fields)
        if isinstance(images, int):
            images = [disc_file(seed) for seed in range(images)]
        files = [(f"image{index:04d}.png", content) for index, content in enumerate(images)]
        task_ids = label_studio.upload_files(project["id"], files) if files else []
        return LabelStudioProject(project["id"], task_ids)

    return make


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The machine's own Chromium or Chrome, without a window."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(path for name in names if (path := shutil.which(name)))
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield launched
        launched.close()


@pytest.fixture
def brain_project(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory, backend: BackendServer
) -> LabelStudioProject:
    """Two slices of a brain, with brush labels and smart tools, connected to the backend."""
    slices = [content for _, content in template_images()][12:14]
    made = make_project(images=slices, label_config=label_config_for(BRAIN_LABELS))
    connect(backend.settings, made.id, backend.url, client=label_studio)
    return made


@pytest.fixture
def page(
    browser: Browser, label_studio_server: LabelStudioServer, brain_project: LabelStudioProject
) -> Iterator[Page]:
    """The first task in the editor, after logging in; its prediction has been asked for."""
    opened = browser.new_page(viewport={"width": 1400, "height": 900})
    open_task(opened, label_studio_server, brain_project)
    yield opened
    opened.close()
