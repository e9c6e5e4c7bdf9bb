"""Clicks, boxes and exemplars in the editor: each further act mends what the last one brought."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, expect

from backend.label_studio.connect import connect
from backend.label_studio.server import LabelStudioServer
from backend.labeling.region_masks import region_mask
from medsam3_model.boxes import tight_box
from medsam3_model.pretraining.phantoms.phantoms import phantom
from tests.support.annotating import AnnotatingLabelStudio
from tests.support.editor import HEIGHT, WIDTH, on_image, open_task, pick_smart_tool, submit
from tests.support.images import png
from tests.support.masks import dice
from tests.support.processes import BackendServer
from tests.support.projects import LabelStudioProject, ProjectFactory

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image" smart="false">
    <Label value="Mass" prompt="skin lesion"/></BrushLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="Mass"/></RectangleLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="Mass"/></KeyPointLabels>
</View>"""
EXEMPLARS = CONFIG.replace('name="box"', 'name="like" exemplar="true"').replace(
    "skin lesion", "cell nucleus"
)
# Rows of labels under the image.
BOX, POINT = 1, 2


LESION, NUCLEI = phantom("dermoscopy", 300), phantom("microscopy", 3)
# The sizes that the editor's helpers expect.
ROWS = ((0, HEIGHT - len(LESION.image)), (0, 0))
TRUTH = np.pad(LESION.layers["skin lesion"][:, :WIDTH], ROWS) > 0
(Y, X) = (float(np.mean(places)) for places in np.nonzero(TRUTH))
X0, Y0, X1, Y1 = tight_box(TRUTH).tolist()


@pytest.fixture
def config() -> str:
    return CONFIG


@pytest.fixture
def project(
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
    backend: BackendServer,
    config: str,
) -> LabelStudioProject:
    picture = NUCLEI if config == EXEMPLARS else LESION
    made = make_project(
        images=[png(np.pad(picture.image[:, :WIDTH], (ROWS[0], (0, 0), (0, 0)), mode="edge"))],
        label_config=config,
    )
    connect(backend.settings, made.id, backend.url, client=label_studio)
    return made


@pytest.fixture
def editor(
    browser: Browser, label_studio_server: LabelStudioServer, project: LabelStudioProject
) -> Iterator[Page]:
    """A new annotation of the only task, with auto-annotation on."""
    page = browser.new_page(viewport={"width": 1400, "height": 1300})
    open_task(page, label_studio_server, project)
    page.get_by_text("Auto-Annotation").click()
    # A click on a region that is visible, such as a predicted one, would select it.
    page.get_by_role("button", name="Hide all regions").click()
    yield page
    page.close()


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """A pixel of the image as a place on the page."""
    return on_image(page, x / WIDTH, y / HEIGHT)


def click(page: Page, x: float, y: float, *keys: str) -> None:
    """Pick the key points' label, click with keys held down, and wait for the answer.

    The editor lets go of a label after each region, unless its settings say otherwise.

    With Alt the click says what is too much; with Control it goes through the mask that is shown,
    which a click without it would select.
    """
    page.locator(".lsf-label").nth(POINT).click()
    for key in keys:
        page.keyboard.down(key)
    with page.expect_response(lambda answer: "interactive" in answer.url, timeout=60_000):
        page.mouse.click(*at(page, x, y))
    for key in keys:
        page.keyboard.up(key)


def draw_box(page: Page, x0: float, y0: float, x1: float, y1: float) -> None:
    page.locator(".lsf-label").nth(BOX).click()
    with page.expect_response(lambda answer: "interactive" in answer.url, timeout=60_000):
        page.mouse.move(*at(page, x0, y0))
        page.mouse.down()
        page.mouse.move(*at(page, x1, y1), steps=8)
        page.mouse.up()


def accept(page: Page) -> int:
    """Accept all suggestions; how many there were."""
    bar = page.get_by_text(re.compile(r"^\d+ suggestions$"))
    expect(bar).to_be_visible(timeout=60_000)
    count = int(bar.inner_text().split()[0])
    bar.locator("xpath=..").locator("button").last.click()
    expect(bar).not_to_be_visible()
    return count


def submitted(
    page: Page, label_studio: AnnotatingLabelStudio, project: LabelStudioProject
) -> list[NDArray[np.bool_]]:
    """Masks of the submitted annotation that the annotator asked for, all of the one label."""
    submit(page)
    (annotation,) = label_studio.annotations(project.task_ids[0])
    drawn = [region for region in annotation["result"] if region["origin"] == "manual"]
    assert {region["value"]["brushlabels"][0] for region in drawn} == {"Mass"}
    return [region_mask(region, HEIGHT, WIDTH) for region in drawn]


def test_clicks_mend_the_mask(
    editor: Page, label_studio: AnnotatingLabelStudio, project: LabelStudioProject
) -> None:
    pick_smart_tool(editor, "key-point-tool")
    click(editor, X, Y)
    click(editor, X, Y + 12, "Control")
    click(editor, 12, 12, "Alt")
    assert accept(editor) == 1
    (mask,) = submitted(editor, label_studio, project)
    assert dice(mask, TRUTH) > 0.8


def test_a_click_mends_the_box_drawn_before(
    editor: Page, label_studio: AnnotatingLabelStudio, project: LabelStudioProject
) -> None:
    pick_smart_tool(editor, "rectangle-tool")
    draw_box(editor, X0, Y0, X1, Y1)
    pick_smart_tool(editor, "key-point-tool")
    click(editor, X, Y, "Control")
    # In the box's corner and outside of the lesion, but not on the handle that drags the corner.
    x, y = X0 + 0.1 * (X1 - X0), Y0 + 0.1 * (Y1 - Y0)
    assert not TRUTH[int(y), int(x)]
    click(editor, x, y, "Control", "Alt")
    assert accept(editor) == 1
    (mask,) = submitted(editor, label_studio, project)
    assert dice(mask, TRUTH) > 0.8
    assert not mask[int(y), int(x)]


@pytest.mark.parametrize("config", [EXEMPLARS])
def test_an_exemplar_box_brings_everything_like_it(
    editor: Page, label_studio: AnnotatingLabelStudio, project: LabelStudioProject
) -> None:
    layer = np.pad(NUCLEI.layers["cell nucleus"][:, :WIDTH], ROWS)
    largest = layer == np.bincount(layer[layer > 0]).argmax()
    pick_smart_tool(editor, "rectangle-tool")
    draw_box(editor, *tight_box(largest).tolist())
    count = accept(editor)
    assert count > 5
    masks = submitted(editor, label_studio, project)
    assert len(masks) == count
    assert max(dice(mask, largest) for mask in masks) > 0.75
