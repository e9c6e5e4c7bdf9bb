"""What an annotator sees and does, in a real Chromium on a real Label Studio."""

import io
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from backend.demo.demo import label_config_for, template_images
from backend.label_studio.client import LabelStudio
from backend.label_studio.connect import connect
from backend.label_studio.server import LabelStudioServer
from backend.labeling.region_masks import region_mask
from medsam3_model.evaluation.metrics import dice
from tests.e2e.conftest import LabelStudioProject, ProjectFactory
from tests.support.backend_server import BackendServer

LABELS = ("Brain", "Grey matter", "White matter")
# Of the template's slices, in pixels.
HEIGHT, WIDTH = 233, 197
# A mask changes a pixel by more than this, of 255 in its strongest channel; colours that lie over
# each other may come close to the grey below them.
CHANGED = 3


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
    return page.get_by_role("treeitem")


def canvas(page: Page) -> Locator:
    """The topmost layer over the image; all layers have its size."""
    return page.locator(".konvajs-content canvas").last


def image_size(page: Page) -> tuple[int, int]:
    """Width and height of the image on the screen; it lies in the canvas's upper left corner."""
    area = canvas(page).bounding_box()
    assert area is not None
    scale = min(area["width"] / WIDTH, area["height"] / HEIGHT)
    return round(scale * WIDTH), round(scale * HEIGHT)


def on_image(page: Page, across: float, down: float) -> tuple[float, float]:
    """A point of the image, given in fractions of its sides, in pixels of the page."""
    area = canvas(page).bounding_box()
    assert area is not None
    width, height = image_size(page)
    return area["x"] + across * width, area["y"] + down * height


def painted(page: Page) -> NDArray[np.bool_]:
    """The pixels of the canvas on the screen that change when all regions are hidden."""
    shown = shot(page)
    page.get_by_role("button", name="Hide all regions").click()
    hidden = shot(page)
    page.get_by_role("button", name="Show all regions").click()
    return np.asarray(np.abs(shown - hidden).max(2) > CHANGED)


def shot(page: Page) -> NDArray[np.int_]:
    """The canvas as it is on the screen, (H, W, 3)."""
    # Hovering over the image would show a brush cursor in the label's colour.
    page.mouse.move(5, 5)
    page.wait_for_timeout(500)
    png = page.screenshot(clip=canvas(page).bounding_box())
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def choose_smart_tool(page: Page, tool: str, label_row: int) -> None:
    """Switch auto-annotation on, pick the first label of a control, and its smart tool."""
    # High enough that picking a label does not scroll the image away.
    page.set_viewport_size({"width": 1400, "height": 1300})
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
    union = np.any([region_mask(one, HEIGHT, WIDTH) for one in predicted], axis=0)
    assert union.mean() > 0.1
    on_screen = painted(page)
    width, height = image_size(page)
    expected = np.zeros_like(on_screen)
    expected[:height, :width] = Image.fromarray(union).resize(
        (width, height), Image.Resampling.NEAREST
    )
    assert dice(on_screen, expected) > 0.95
    submit(page)
    (annotation,) = label_studio.annotations(project.task_ids[0])
    assert {one["id"] for one in annotation["result"]} == {one["id"] for one in predicted}
    for one in annotation["result"]:
        (origin,) = [two for two in predicted if two["id"] == one["id"]]
        assert (region_mask(one, HEIGHT, WIDTH) == region_mask(origin, HEIGHT, WIDTH)).all()


def test_a_smart_rectangle_brings_a_mask_of_the_label(
    page: Page, label_studio: LabelStudio, project: LabelStudioProject
) -> None:
    before = regions(page).count()
    choose_smart_tool(page, "rectangle-tool", label_row=1)
    page.mouse.move(*on_image(page, 0.1, 0.08))
    page.mouse.down()
    page.mouse.move(*on_image(page, 0.9, 0.92), steps=8)
    page.mouse.up()
    accept_suggestion(page)
    expect(regions(page)).to_have_count(before + 1)
    submit(page)
    (annotation,) = label_studio.annotations(project.task_ids[0])
    (drawn,) = [one for one in annotation["result"] if one["origin"] == "manual"]
    assert drawn["type"] == "brushlabels"
    assert drawn["value"]["brushlabels"] == [LABELS[0]]
    assert region_mask(drawn, HEIGHT, WIDTH).mean() > 0.05


def test_a_smart_key_point_brings_a_mask_of_the_label(
    page: Page, label_studio: LabelStudio, project: LabelStudioProject
) -> None:
    before = regions(page).count()
    choose_smart_tool(page, "key-point-tool", label_row=2)
    # A click on a visible region would select it.
    page.get_by_role("button", name="Hide all regions").click()
    page.mouse.click(*on_image(page, 0.4, 0.5))
    accept_suggestion(page)
    expect(regions(page)).to_have_count(before + 1)
    submit(page)
    (annotation,) = label_studio.annotations(project.task_ids[0])
    (drawn,) = [one for one in annotation["result"] if one["origin"] == "manual"]
    assert drawn["value"]["brushlabels"] == [LABELS[0]]
    assert region_mask(drawn, HEIGHT, WIDTH).any()
