"""What a further click builds on: kept in Redis, of no harm when it is gone."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from backend.labeling.region_masks import region_mask
from backend.models.versions import default_version
from backend.predictions.clicks import KEPT_S, KeptAnswers
from backend.predictions.inference import Inference
from backend.services import Services
from backend.tables import Suggestion
from medsam3_model.errors import PromptError
from tests.support.masks import dice

H, W = 120, 160
CONFIG = """<View><Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image" smart="true"><Label value="Mass" prompt="mass"/>
    <Label value="Cyst"/></BrushLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="Mass"/>
    <Label value="Cyst"/></RectangleLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="Mass"/>
    <Label value="Cyst"/></KeyPointLabels>
  <RectangleLabels name="like" toName="image" smart="true" exemplar="true"><Label value="Mass"/>
  </RectangleLabels>
</View>"""
EVERYTHING = """<View><Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image"><Label value="Object" everything="true"/></BrushLabels>
</View>"""


def ellipse(x: float, y: float, across: float, down: float) -> NDArray[np.bool_]:
    row, column = np.mgrid[:H, :W] + 0.5
    return np.asarray(((column - x) / across) ** 2 + ((row - y) / down) ** 2 <= 1)


LEFT, RIGHT = ellipse(45, 60, 28, 36), ellipse(120, 60, 24, 28)


def task(services: Services, *regions: dict[str, Any]) -> Suggestion:
    noise = np.random.default_rng(0).normal(0, 6, (H, W, 1))
    grey = np.where(LEFT | RIGHT, 170.0, 70.0)[..., None] + noise
    file = io.BytesIO()
    Image.fromarray(np.repeat(grey.clip(0, 255), 3, 2).astype(np.uint8)).save(file, "PNG")
    address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Suggestion(
        project_id=7,
        task_id=1,
        task_data={"image": address},
        model_version=default_version(services),
        context={"result": list(regions)} if regions else None,
    )


def region(name: str, kind: str, label: str = "Mass", **value: Any) -> dict[str, Any]:
    return {
        "id": f"{name}{value}",
        "from_name": name,
        "to_name": "image",
        "type": kind,
        "original_width": W,
        "original_height": H,
        "value": {**value, kind: [label]},
    }


def click(x: float, y: float, label: str = "Mass", inside: bool = True) -> dict[str, Any]:
    place = {"x": 100 * x / W, "y": 100 * y / H, "width": 0.5}
    return region("point", "keypointlabels", label, **place) | {"is_positive": inside}


def box(name: str, x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    value = {"x": 100 * x0 / W, "y": 100 * y0 / H, "rotation": 0}
    sides = {"width": 100 * (x1 - x0) / W, "height": 100 * (y1 - y0) / H}
    return region(name, "rectanglelabels", **value, **sides)


@pytest.fixture
def inference(services: Services) -> Inference:
    return Inference(services)


def masks(
    inference: Inference, services: Services, *drawn: dict[str, Any], config: str = CONFIG
) -> list[NDArray[np.bool_]]:
    answered = inference.predict(task(services, *drawn), config).regions
    return [region_mask(each, H, W) for each in answered]


def kept(services: Services, kind: str) -> list[bytes]:
    return list(services.redis.scan_iter(f"medsam3:clicks:{kind}:*"))


def test_a_second_click_builds_on_the_first_and_needs_it_not(
    inference: Inference, services: Services
) -> None:
    clicks = click(45, 60), click(45, 30)
    masks(inference, services, clicks[0])
    first = set(kept(services, "answer"))
    assert first
    (mended,) = masks(inference, services, *clicks)
    assert set(kept(services, "answer")) > first
    assert all(0 < services.redis.ttl(name) <= KEPT_S for name in kept(services, "answer"))
    services.redis.flushdb()
    (again,) = masks(inference, services, *clicks)
    assert dice(again, mended) > 0.99
    for name in kept(services, "answer"):
        services.redis.set(name, b"damaged")
    (damaged,) = masks(inference, services, *clicks)
    assert dice(damaged, mended) > 0.99


def test_a_click_in_the_box_drawn_before_mends_its_answer(
    inference: Inference, services: Services
) -> None:
    (boxed,) = masks(inference, services, box("box", 15, 22, 76, 98))
    assert dice(boxed, LEFT) > 0.8
    (clicked,) = masks(inference, services, click(45, 60))
    assert dice(clicked, LEFT) > 0.8
    # Only what is too much: without the box there would be nothing to take it from.
    (less,) = masks(inference, services, click(74, 24, inside=False))
    assert dice(less, LEFT) > 0.8
    (elsewhere,) = masks(inference, services, click(120, 60))
    assert not elsewhere[LEFT & ~RIGHT].mean() > 0.2
    with pytest.raises(PromptError, match="no click is in the object"):
        masks(inference, services, click(74, 24, "Cyst", inside=False))


def test_a_stroke_is_answered_with_its_object(inference: Inference, services: Services) -> None:
    from backend.labeling import brush_rle

    stroke = ellipse(45, 60, 3, 20)
    drawn = region("mask", "brushlabels", format="rle", rle=brush_rle.encode(stroke))
    (found,) = masks(inference, services, drawn)
    assert dice(found, LEFT) > 0.75


def test_an_exemplar_brings_each_thing_like_it(inference: Inference, services: Services) -> None:
    found = masks(inference, services, box("like", 15, 22, 76, 98))
    assert dice(found[0], LEFT) > 0.8
    assert any(dice(mask, RIGHT) > 0.7 for mask in found[1:])
    assert not kept(services, "box")


def test_everything_is_proposed_without_a_name(inference: Inference, services: Services) -> None:
    found = masks(inference, services, config=EVERYTHING)
    assert all(any(dice(mask, truth) > 0.7 for mask in found) for truth in (LEFT, RIGHT))


def test_answers_are_of_one_model_and_one_image(services: Services) -> None:
    logits = np.linspace(-9, 9, 36, dtype=np.float32).reshape(6, 6)
    KeptAnswers(services.redis, "a", "image").put("key", logits)
    assert KeptAnswers(services.redis, "b", "image").get("key") is None
    assert KeptAnswers(services.redis, "a", "other").get("key") is None
    found = KeptAnswers(services.redis, "a", "image").get("key")
    assert found is not None
    np.testing.assert_allclose(found, logits, atol=0.01)
