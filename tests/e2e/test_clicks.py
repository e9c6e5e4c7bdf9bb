"""Clicks, boxes and exemplars in the editor: each further act mends what the last one brought."""

import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from backend.label_studio.connect import connect
from backend.label_studio.server import LabelStudioServer
from backend.labeling.region_masks import region_mask
from tests.support.annotating import AnnotatingLabelStudio
from tests.support.editor import HEIGHT, WIDTH, on_image, submit
from tests.support.masks import dice
from tests.support.processes import BackendServer
from tests.support.projects import LabelStudioProject, ProjectFactory

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image" smart="false"><Label value="Mass"/></BrushLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="Mass"/></RectangleLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="Mass"/></KeyPointLabels>
</View>"""
EXEMPLARS = CONFIG.replace('name="box"', 'name="like" exemplar="true"')
# Rows of labels under the image.
BOX, POINT = 1, 2


def ellipse(x: float, y: float, across: float, down: float) -> NDArray[np.bool_]:
    row, column = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return np.asarray(((column - x) / across) ** 2 + ((row - y) / down) ** 2 <= 1)


LEFT, RIGHT = ellipse(55, 90, 32, 45), ellipse(145, 150, 30, 40)


def picture() -> bytes:
    noise = np.random.default_rng(0).normal(0, 6, (HEIGHT, WIDTH, 1))
    grey = np.where(LEFT | RIGHT, 170.0, 70.0)[..., None] + noise
    file = io.BytesIO()
    Image.fromarray(np.repeat(grey.clip(0, 255), 3, 2).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


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
    made = make_project(images=[picture()], label_config=config)
    connect(backend.settings, made.id, backend.url, client=label_studio)
    return made


@pytest.fixture
def editor(
    browser: Browser, label_studio_server: LabelStudioServer, project: LabelStudioProject
) -> Iterator[Page]:
    """A new annotation of the only task, with auto-annotation on."""
    page = browser.new_page(viewport={"width": 1400, "height": 1300})
    page.goto(f"{label_studio_server.url}/user/login")
    page.fill("input[name=email]", label_studio_server.user)
    page.fill("input[name=password]", label_studio_server.password)
    page.click("button[type=submit]")
    page.wait_for_load_state()
    page.goto(f"{label_studio_server.url}/projects/{project.id}/data?task={project.task_ids[0]}")
    page.wait_for_selector(".konvajs-content canvas", timeout=120_000)
    page.get_by_text("Auto-Annotation").click()
    yield page
    page.close()


def choose(page: Page, tool: str, row: int) -> None:
    page.locator("button.lsf-tool_smart").first.hover()
    page.locator(f"button.lsf-tool_smart[aria-label={tool}]").first.click()
    page.locator(".lsf-label").nth(row).click()


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """A pixel of the image as a place on the page."""
    return on_image(page, x / WIDTH, y / HEIGHT)


def click(page: Page, x: float, y: float, *, inside: bool = True) -> None:
    """Click and wait for the answer."""
    with page.expect_response(lambda answer: "interactive" in answer.url, timeout=60_000):
        if inside:
            page.mouse.click(*at(page, x, y))
        else:
            page.keyboard.down("Alt")
            page.mouse.click(*at(page, x, y))
            page.keyboard.up("Alt")


def draw_box(page: Page, x0: float, y0: float, x1: float, y1: float) -> None:
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
    choose(editor, "key-point-tool", POINT)
    click(editor, 55, 90)
    click(editor, 55, 125)
    click(editor, 145, 150, inside=False)
    assert accept(editor) == 1
    (mask,) = submitted(editor, label_studio, project)
    assert dice(mask, LEFT) > 0.85
    assert not mask[150, 145]


def test_a_click_mends_the_box_drawn_before(
    editor: Page, label_studio: AnnotatingLabelStudio, project: LabelStudioProject
) -> None:
    choose(editor, "rectangle-tool", BOX)
    draw_box(editor, 112, 106, 178, 194)
    choose(editor, "key-point-tool", POINT)
    click(editor, 145, 150)
    click(editor, 176, 108, inside=False)
    assert accept(editor) == 1
    (mask,) = submitted(editor, label_studio, project)
    assert dice(mask, RIGHT) > 0.85


@pytest.mark.parametrize("config", [EXEMPLARS])
def test_an_exemplar_box_brings_everything_like_it(
    editor: Page, label_studio: AnnotatingLabelStudio, project: LabelStudioProject
) -> None:
    choose(editor, "rectangle-tool", BOX)
    draw_box(editor, 22, 44, 88, 136)
    assert accept(editor) >= 2
    masks = submitted(editor, label_studio, project)
    assert all(any(dice(mask, truth) > 0.75 for mask in masks) for truth in (LEFT, RIGHT))
