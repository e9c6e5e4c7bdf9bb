"""The editor in a real Chromium on a real Label Studio: what an annotator sees and does."""

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

from backend.labeling.region_masks import region_mask
from tests.support.annotating import AnnotatingLabelStudio
from tests.support.editor import (
    BRAIN_LABELS,
    HEIGHT,
    WIDTH,
    accept_suggestion,
    choose_smart_tool,
    image_size,
    on_image,
    painted,
    regions,
    submit,
)
from tests.support.masks import dice
from tests.support.projects import LabelStudioProject


def test_the_predicted_masks_are_on_the_canvas_and_can_be_submitted(
    page: Page, label_studio: AnnotatingLabelStudio, brain_project: LabelStudioProject
) -> None:
    (prediction,) = label_studio.task(brain_project.task_ids[0])["predictions"]
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
    (annotation,) = label_studio.annotations(brain_project.task_ids[0])
    assert {one["id"] for one in annotation["result"]} == {one["id"] for one in predicted}
    for one in annotation["result"]:
        (origin,) = [two for two in predicted if two["id"] == one["id"]]
        assert (region_mask(one, HEIGHT, WIDTH) == region_mask(origin, HEIGHT, WIDTH)).all()


def test_a_smart_rectangle_brings_a_mask_of_the_label(
    page: Page, label_studio: AnnotatingLabelStudio, brain_project: LabelStudioProject
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
    (annotation,) = label_studio.annotations(brain_project.task_ids[0])
    (drawn,) = [one for one in annotation["result"] if one["origin"] == "manual"]
    assert drawn["type"] == "brushlabels"
    assert drawn["value"]["brushlabels"] == [BRAIN_LABELS[0]]
    assert region_mask(drawn, HEIGHT, WIDTH).mean() > 0.05


def test_a_smart_key_point_brings_a_mask_of_the_label(
    page: Page, label_studio: AnnotatingLabelStudio, brain_project: LabelStudioProject
) -> None:
    before = regions(page).count()
    choose_smart_tool(page, "key-point-tool", label_row=2)
    # A click on a visible region would select it.
    page.get_by_role("button", name="Hide all regions").click()
    page.mouse.click(*on_image(page, 0.4, 0.5))
    accept_suggestion(page)
    expect(regions(page)).to_have_count(before + 1)
    submit(page)
    (annotation,) = label_studio.annotations(brain_project.task_ids[0])
    (drawn,) = [one for one in annotation["result"] if one["origin"] == "manual"]
    assert drawn["value"]["brushlabels"] == [BRAIN_LABELS[0]]
    assert region_mask(drawn, HEIGHT, WIDTH).any()
