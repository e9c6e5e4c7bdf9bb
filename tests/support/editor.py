"""Label Studio's editor in a browser: what its page shows, and what an annotator does on it."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from backend.label_studio.server import LabelStudioServer
from tests.support.projects import LabelStudioProject

# Labels of the project that the page shows.
BRAIN_LABELS = ("Brain", "Grey matter", "White matter")
# Of the images of that project, slices of the template, in pixels.
HEIGHT, WIDTH = 233, 197
# A mask changes a pixel by more than this, of 255 in its strongest channel; colours that lie over
# each other may come close to the grey below them.
CHANGED = 3
# The image on the screen: pixels for each of its own, and where its upper left corner lies in the
# canvas.
VIEW = """(() => {
  const objects = [...window.Htx.annotationStore.selected.names.values()];
  const image = objects.find(one => one.type === "image");
  return [image.currentZoom, image.zoomingPositionX, image.zoomingPositionY];
})()"""


def log_in(page: Page, server: LabelStudioServer) -> None:
    """Log in to Label Studio."""
    page.goto(f"{server.url}/user/login")
    page.fill("input[name=email]", server.user)
    page.fill("input[name=password]", server.password)
    page.click("button[type=submit]")
    page.wait_for_load_state()


def open_task(page: Page, server: LabelStudioServer, project: LabelStudioProject) -> None:
    """Log in and open the first task of a project, until its predicted regions are there."""
    log_in(page, server)
    page.goto(f"{server.url}/projects/{project.id}/data?task={project.task_ids[0]}")
    page.wait_for_selector(".konvajs-content canvas", timeout=60_000)
    expect(regions(page).first).to_be_visible(timeout=60_000)


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
    """A point of the image, given in fractions of its sides, in pixels of the page.

    The editor says itself how large it shows the image and how far it has moved it: when its panels
    change their size it keeps an earlier zoom, and then the image is larger than the canvas.
    """
    area = canvas(page).bounding_box()
    assert area is not None
    zoom, x, y = page.evaluate(VIEW)
    return area["x"] + x + across * WIDTH * zoom, area["y"] + y + down * HEIGHT * zoom


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


def turn_page(page: Page) -> None:
    """Go to the next page of a stack."""
    page.locator(".lsf-pagination__btn_arrow-right").first.click()


def choose_smart_tool(page: Page, tool: str, label_row: int) -> None:
    """Switch auto-annotation on, pick the first label of a control, and its smart tool."""
    # High enough that picking a label does not scroll the image away.
    page.set_viewport_size({"width": 1400, "height": 1300})
    page.get_by_text("Auto-Annotation").click()
    pick_smart_tool(page, tool)
    page.locator(".lsf-label", has_text=BRAIN_LABELS[0]).nth(label_row).click()


def pick_smart_tool(page: Page, tool: str) -> None:
    """Pick one of the smart tools, with auto-annotation on."""
    page.locator("button.lsf-tool_smart").first.hover()
    page.locator(f"button.lsf-tool_smart[aria-label={tool}]").click()


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


def delete_annotation(page: Page) -> None:
    """Delete the annotation on the screen by its menu, and confirm it."""
    page.locator(".lsf-annotation-button__trigger").first.click()
    page.get_by_text("Delete Annotation").click()
    with page.expect_response(
        lambda answer: "/api/annotations/" in answer.url and answer.request.method == "DELETE"
    ) as answered:
        # What asks back is the last thing on the page.
        page.get_by_role("button", name="Delete", exact=True).last.click(timeout=10_000)
    assert answered.value.ok


def brush_stroke(page: Page) -> None:
    """Pick a label of the brush and paint across the corner of the image."""
    page.locator(".lsf-label").first.click()
    area = canvas(page).bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + 0.1 * area["width"], area["y"] + 0.1 * area["height"])
    page.mouse.down()
    page.mouse.move(area["x"] + 0.3 * area["width"], area["y"] + 0.2 * area["height"], steps=6)
    page.mouse.up()
