"""What an annotator sees and does, in a real Chromium on a real Label Studio."""

import io
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from backend.connect import connect
from backend.demo import label_config_for, template_images
from backend.label_studio import LabelStudio
from backend.label_studio_server import LabelStudioServer
from backend.region_masks import region_mask
from tests.e2e.backend_server import BackendServer
from tests.e2e.conftest import LabelStudioProject, ProjectFactory

LABELS = ("Brain", "Grey matter", "White matter")
# What a coloured mask over a grey image adds between the strongest and the weakest channel.
COLOURED = 25


@pytest.fixture(scope="module")
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
def project(
    label_studio: LabelStudio, make_project: ProjectFactory, backend: BackendServer
) -> LabelStudioProject:
    """Two slices of a brain, with brush labels and smart tools, connected to the backend."""
    slices = [content for _, content in template_images()][12:14]
    made = make_project(images=slices, label_config=label_config_for(LABELS))
    connect(backend.settings, made.id, backend.url, client=label_studio)
    return made


@pytest.fixture
def page(
    browser: Browser, label_studio_server: LabelStudioServer, project: LabelStudioProject
) -> Iterator[Page]:
    """The first task in the editor, after logging in; its prediction has been asked for."""
    opened = browser.new_page(viewport={"width": 1400, "height": 900})
    opened.goto(f"{label_studio_server.url}/user/login")
    opened.fill("input[name=email]", label_studio_server.user)
    opened.fill("input[name=password]", label_studio_server.password)
    opened.click("button[type=submit]")
    opened.wait_for_load_state()
    task = project.task_ids[0]
    opened.goto(f"{label_studio_server.url}/projects/{project.id}/data?task={task}")
    opened.wait_for_selector(".konvajs-content canvas", timeout=60_000)
    expect(regions(opened).first).to_be_visible(timeout=60_000)
    yield opened
    opened.close()


def regions(page: Page) -> Locator:
    """The rows of the list of regions."""
    return page.locator(".lsf-tree__node, .lsf-outliner-item")


def canvas(page: Page) -> Locator:
    """The topmost layer over the image; all layers have its size."""
    return page.locator(".konvajs-content canvas").last


def coloured_share(page: Page) -> float:
    """Share of the shown grey image that carries a colour."""
    # Hovering over the image would show a brush cursor in the label's colour.
    page.mouse.move(5, 5)
    page.wait_for_timeout(500)
    png = page.screenshot(clip=canvas(page).bounding_box())
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return float((pixels.max(2) - pixels.min(2) > COLOURED).mean())


def choose_smart_tool(page: Page, tool: str, label_row: int) -> None:
    """Switch auto-annotation on, pick the first label of a control, and its smart tool."""
    page.get_by_text("Auto-Annotation").click()
    smart = page.locator("button.lsf-tool_smart")
    smart.first.hover()
    page.locator(f"button.lsf-tool_smart[aria-label={tool}]").click()
    page.locator(".lsf-label", has_text=LABELS[0]).nth(label_row).click()


def accept_suggestion(page: Page) -> None:
    """Wait for "1 suggestions" in the bottom bar and press the check mark."""
    bar = page.get_by_text("1 suggestions")
    expect(bar).to_be_visible(timeout=60_000)
    bar.locator("xpath=..").locator("button").last.click()
    expect(bar).not_to_be_visible()


def submit(page: Page) -> None:
    """Submit the annotation and wait until Label Studio has it."""
    with page.expect_response(lambda answer: "/annotations" in answer.url) as answered:
        page.get_by_role("button", name="Submit current annotation").click()
    assert answered.value.status == 201


def test_the_predicted_masks_are_on_the_canvas_and_can_be_submitted(
    page: Page, label_studio: LabelStudio, project: LabelStudioProject
) -> None:
    (prediction,) = label_studio.task(project.task_ids[0])["predictions"]
    predicted = prediction["result"]
    union = np.any([region_mask(one, 233, 197) for one in predicted], axis=0)
    assert union.mean() > 0.1
    # What is coloured on the screen is what was predicted, up to edges and the image's frame.
    assert coloured_share(page) == pytest.approx(union.mean(), abs=0.05)
    submit(page)
    (annotation,) = label_studio.annotations(project.task_ids[0])
    assert {one["id"] for one in annotation["result"]} == {one["id"] for one in predicted}
    for one in annotation["result"]:
        (origin,) = [two for two in predicted if two["id"] == one["id"]]
        assert (region_mask(one, 233, 197) == region_mask(origin, 233, 197)).all()


def test_a_smart_rectangle_brings_a_mask_of_the_label(
    page: Page, label_studio: LabelStudio, project: LabelStudioProject
) -> None:
    before = regions(page).count()
    choose_smart_tool(page, "rectangle-tool", label_row=1)
    area = canvas(page).bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + 0.1 * area["width"], area["y"] + 0.08 * area["height"])
    page.mouse.down()
    page.mouse.move(area["x"] + 0.9 * area["width"], area["y"] + 0.92 * area["height"], steps=8)
    page.mouse.up()
    accept_suggestion(page)
    expect(regions(page)).to_have_count(before + 1)
    submit(page)
    (annotation,) = label_studio.annotations(project.task_ids[0])
    (drawn,) = [one for one in annotation["result"] if one["origin"] == "manual"]
    assert drawn["type"] == "brushlabels"
    assert drawn["value"]["brushlabels"] == [LABELS[0]]
    assert region_mask(drawn, 233, 197).mean() > 0.05


def test_a_smart_key_point_brings_a_mask_of_the_label(
    page: Page, label_studio: LabelStudio, project: LabelStudioProject
) -> None:
    before = regions(page).count()
    choose_smart_tool(page, "key-point-tool", label_row=2)
    area = canvas(page).bounding_box()
    assert area is not None
    page.mouse.click(area["x"] + 0.4 * area["width"], area["y"] + 0.5 * area["height"])
    accept_suggestion(page)
    expect(regions(page)).to_have_count(before + 1)
    submit(page)
    (annotation,) = label_studio.annotations(project.task_ids[0])
    (drawn,) = [one for one in annotation["result"] if one["origin"] == "manual"]
    assert drawn["value"]["brushlabels"] == [LABELS[0]]
    assert region_mask(drawn, 233, 197).any()
