"""An admin's round through the console, in a browser, beside a real Label Studio and all processes.

Pre-annotate, see a task fail and corrections arrive, train, watch it, look at the gate's figures,
promote and roll back, cancel: nothing of it needs a reload or a terminal.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from backend.label_studio.connect import connect
from backend.label_studio.server import LabelStudioServer
from backend.processes.queues import INTERACTIVE_KEY
from backend.services import connect_redis, load_credentials
from medsam3_model.data.samples import split_of_group
from tests.support.annotating import AnnotatingLabelStudio
from tests.support.processes import BackendServer
from tests.support.projects import LabelStudioProject, ProjectFactory
from tests.support.training_stage import CONFIG, brush, disc_file, small_bundle

# A few steps of a small model: what it learns is not asked here.
STEPS = "6"
SETTINGS = {
    "MEDSAM3_TRAIN_STEPS": STEPS,
    "MEDSAM3_TRAIN_REPLAY": "false",
    # More than there are: no version goes into service by itself.
    "MEDSAM3_GATE_MIN_IMAGES": "50",
}
PATIENCE_MS = 120_000


@pytest.fixture
def console_backend(
    tmp_path: Path, label_studio_server: LabelStudioServer
) -> Iterator[BackendServer]:
    """All processes, with a model that is small enough to be trained in seconds."""
    model = small_bundle(tmp_path / "tiny")
    server = BackendServer(tmp_path, label_studio_server, MEDSAM3_MODEL=str(model), **SETTINGS)
    server.start()
    yield server
    server.stop()


def seeds_of(split: str, count: int) -> list[int]:
    """Seeds of images that belong to one side of the split, by the hash of their file."""

    def is_there(seed: int) -> bool:
        digest = hashlib.sha256(disc_file(seed)[0]).hexdigest()
        return split_of_group(f"image:{digest[:16]}") == split

    return list(itertools.islice(filter(is_there, itertools.count(1)), count))


def step(page: Page, text: str) -> None:
    """Something shows by itself: the page is the one that was marked."""
    expect(page.get_by_role("main")).to_contain_text(re.compile(text), timeout=PATIENCE_MS)
    assert page.evaluate("window.stays"), text


def opened(page: Page, address: str) -> None:
    """Open a page, and mark it, so that a reload is seen."""
    page.goto(address)
    page.evaluate("window.stays = true")


@pytest.mark.timeout(400)
def test_an_admin_sees_work_move_trains_promotes_and_rolls_back(
    browser: Browser,
    console_backend: BackendServer,
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
) -> None:
    seeds = seeds_of("train", 4) + seeds_of("val", 2)
    project = make_project([disc_file(seed)[0] for seed in seeds], CONFIG)
    label_studio.import_tasks(
        project.id, [{"data": {"image": f"/data/upload/{project.id}/missing.png"}}]
    )
    connect(console_backend.settings, project.id, console_backend.url, client=label_studio)
    console = f"{console_backend.url}/console"

    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.on("console", lambda message: complaints.append(message.text))
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.on(
        "request",
        lambda request: (
            None if request.url.startswith(console_backend.url) else complaints.append(request.url)
        ),
    )
    work, page = context.new_page(), context.new_page()
    page.goto(console)
    credentials = load_credentials(console_backend.settings)
    page.get_by_label("User name").fill(credentials.user)
    page.get_by_label("Password").fill(credentials.password)
    page.get_by_role("button", name="Log in").click()
    opened(work, console)

    page.get_by_role("link", name=f"Pre-annotate project {project.id}").click()
    page.get_by_role("button", name="Pre-annotate").click()
    expect(page.get_by_role("status")).to_contain_text("A worker reads all tasks")
    # A task that fails shows where nobody has reloaded anything.
    step(work, f"project {project.id}, task ")

    opened(page, f"{console}/corrections/{project.id}")
    annotate(label_studio, project, seeds)
    step(page, rf"Annotations\s*{len(seeds)}\b")

    train(page, console, project.id)
    opened(work, console)
    promote_and_roll_back(page, console, project.id)
    cancel_a_run(page, work, console, project.id, console_backend)
    context.close()
    assert complaints == []


def annotate(
    label_studio: AnnotatingLabelStudio, project: LabelStudioProject, seeds: list[int]
) -> None:
    """Submit each image's disc."""
    for task_id, seed in zip(project.task_ids, seeds, strict=True):
        label_studio.create_annotation(task_id, [brush(f"drawn-{task_id}", disc_file(seed)[1])])


def train(page: Page, console: str, project_id: int) -> None:
    """Choose, start, and watch the run to its end."""
    page.goto(f"{console}/training/{project_id}")
    page.get_by_label("New corrections that start a run").fill("0")
    page.get_by_role("button", name="Store the choices").click()
    expect(page.get_by_role("status")).to_contain_text("are stored")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("status")).to_contain_text("A run is asked for")
    run = page.locator("tbody a").first.get_attribute("href") or ""
    opened(page, console.removesuffix("/console") + run)
    step(page, "Why it ended")
    step(page, f"{STEPS} of at most {STEPS}")
    expect(page.locator("polyline")).to_be_visible()
    expect(page.get_by_role("region", name="Curve, newest step first")).to_contain_text(STEPS)
    step(page, "did not pass the gate")


def promote_and_roll_back(page: Page, console: str, project_id: int) -> None:
    """The gate's plot, into service against it, and back."""
    page.get_by_role("main").get_by_role("link", name=re.compile("^tiny-p")).click()
    version = page.get_by_role("heading", level=1).inner_text()
    expect(page.locator(".gate-plot circle").first).to_be_visible()
    page.get_by_role("link", name=f"Put into service for project {project_id}").click()
    page.get_by_label("Put it into service against the gate").check()
    page.get_by_role("button", name="Put into service").click()
    expect(page.get_by_role("status")).to_contain_text(f"{version} serves project {project_id}.")
    page.get_by_role("link", name=f"Roll back project {project_id}").click()
    page.get_by_role("button", name="Roll back").click()
    expect(page.get_by_role("status")).to_contain_text(f"serves project {project_id} again.")


@contextmanager
def an_annotator_at_work(backend: BackendServer) -> Iterator[None]:
    """Somebody is between two prompts: a run takes no step meanwhile, so it can be cancelled."""
    with closing(connect_redis(backend.settings)) as redis:
        redis.set(INTERACTIVE_KEY, 1, px=PATIENCE_MS)
        yield
        redis.delete(INTERACTIVE_KEY)


def cancel_a_run(
    page: Page, work: Page, console: str, project_id: int, backend: BackendServer
) -> None:
    """A second run, which *Work* shows by itself, and which is cancelled there."""
    page.goto(f"{console}/training/{project_id}")
    page.evaluate("window.stays = true")
    with an_annotator_at_work(backend):
        page.get_by_role("button", name="Start training").click()
        work.get_by_role("button", name=f"Cancel the run of project {project_id}").click(
            timeout=PATIENCE_MS
        )
        expect(work.get_by_role("status")).to_contain_text(
            re.compile("The run is cancelled|The run ends at its next step")
        )
    expect(page.get_by_role("region", name="Earlier runs")).to_contain_text(
        "cancelled", timeout=PATIENCE_MS
    )
