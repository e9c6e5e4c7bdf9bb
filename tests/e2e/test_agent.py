"""An instruction in words: typed in the editor, carried out by an agent, its transcript opened."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from backend.label_studio.connect import connect
from backend.label_studio.server import LabelStudioServer
from backend.services import load_credentials
from medsam3_model.pretraining.phantoms.phantoms import phantom
from tests.support.annotating import AnnotatingLabelStudio
from tests.support.chat_server import ChatServer, Decided, Reply
from tests.support.editor import open_task, regions
from tests.support.images import png
from tests.support.processes import BackendServer
from tests.support.projects import ProjectFactory
from tests.support.waiting import wait_until

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image" smart="false">
    <Label value="Mass" prompt="skin lesion"/></BrushLabels>
  <TextArea name="say" toName="image" smart="true" mode="agent"/>
</View>"""
LESION = phantom("dermoscopy", 300)
INSTRUCTION = "the larger of the two masses, without the shadow"


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with ChatServer([Reply(Decided())]) as server:
        yield server


@pytest.fixture
def backend(
    tmp_path_factory: pytest.TempPathFactory,
    label_studio_server: LabelStudioServer,
    chat: ChatServer,
) -> Iterator[BackendServer]:
    """A backend of its own that may send images to the scripted server."""
    server = BackendServer(
        tmp_path_factory.mktemp("b"),
        label_studio_server,
        MEDSAM3_AGENT_URL=chat.url,
        MEDSAM3_AGENT_MODEL="scripted",
        MEDSAM3_AGENT_SEND_IMAGES="true",
    )
    server.start()
    yield server
    server.stop()


def test_an_instruction_brings_a_region_and_its_transcript_can_be_opened(
    browser: Browser,
    label_studio_server: LabelStudioServer,
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
    backend: BackendServer,
    chat: ChatServer,
) -> None:
    project = make_project(images=[png(LESION.image)], label_config=CONFIG)
    (task,) = project.task_ids
    connect(backend.settings, project.id, backend.url, client=label_studio)
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    open_task(page, label_studio_server, project)
    (own,) = label_studio.predictions(task)
    page.get_by_text("Auto-Annotation").click()
    page.get_by_role("textbox", name="TextArea Input").fill(INSTRUCTION)
    with page.expect_response(lambda answer: "interactive" in answer.url, timeout=60_000):
        page.keyboard.press("Enter")

    # The same prediction gets other regions, once the agent has chosen.
    wait_until(lambda: label_studio.predictions(task)[0].region_ids != own.region_ids)
    (changed,) = label_studio.predictions(task)
    assert changed.id == own.id
    page.reload()
    page.locator(".lsf-annotation-button", has_text=own.model_version).click()
    expect(regions(page)).to_have_count(1)
    expect(regions(page).first).to_contain_text("Mass")

    shown = backend.command("agent", "show", task)
    assert f"instruction: {INSTRUCTION}" in shown
    assert "Mass: chosen" in shown
    assert len(chat.requests) == int(shown.split(" requests")[0].split()[-1])
    page.goto(f"{backend.url}/console/agent")
    credentials = load_credentials(backend.settings)
    page.get_by_label("User name").fill(credentials.user)
    page.get_by_label("Password").fill(credentials.password)
    page.keyboard.press("Enter")
    page.get_by_role("link", name=f"Transcript of task {task}").click()
    expect(page.get_by_text(INSTRUCTION).first).to_be_visible()
    expect(page.get_by_role("heading", name="Mass: chosen")).to_be_visible()
    requests = page.get_by_role("article")
    expect(requests).to_have_count(len(chat.requests))
    expect(requests.first).to_contain_text("was sent and is not shown")
    page.close()
