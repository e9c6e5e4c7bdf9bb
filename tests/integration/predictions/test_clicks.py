"""What a further click builds on: kept in Redis, of no harm when it is gone."""

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.labeling import brush_rle
from backend.labeling.prompts import InteractivePrompt
from backend.labeling.region_masks import region_mask
from backend.models.versions import default_version
from backend.predictions.clicks import KEPT_S, RedisAnswers, with_drawn_box
from backend.predictions.inference import Inference
from backend.services import Services
from backend.tables import Suggestion
from medsam3_model.boxes import tight_box
from medsam3_model.errors import PromptError
from medsam3_model.pretraining.phantoms.brushes import Phantom
from medsam3_model.pretraining.phantoms.phantoms import phantom
from tests.support.images import png
from tests.support.masks import dice

LESION, NUCLEI = phantom("dermoscopy", 304), phantom("microscopy", 3)
TRUTH = LESION.layers["skin lesion"] > 0
H, W = TRUTH.shape
(Y, X) = (float(np.mean(places)) for places in np.nonzero(TRUTH))
X0, Y0, X1, Y1 = tight_box(TRUTH).tolist()
CONFIG = """<View><Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image" smart="true"><Label value="Mass" prompt="skin lesion"/>
    <Label value="Cyst"/><Label value="Nucleus" prompt="cell nucleus"/></BrushLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="Mass"/>
    <Label value="Cyst"/></RectangleLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="Mass"/>
    <Label value="Cyst"/></KeyPointLabels>
  <RectangleLabels name="like" toName="image" smart="true" exemplar="true"><Label value="Nucleus"/>
  </RectangleLabels>
</View>"""
EVERYTHING = """<View><Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image"><Label value="Object" everything="true"/></BrushLabels>
</View>"""


def task(services: Services, *regions: dict[str, Any], picture: Phantom = LESION) -> Suggestion:
    address = "data:image/png;base64," + base64.b64encode(png(picture.image)).decode()
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


def box(
    name: str, x0: float, y0: float, x1: float, y1: float, label: str = "Mass"
) -> dict[str, Any]:
    value = {"x": 100 * x0 / W, "y": 100 * y0 / H, "rotation": 0}
    sides = {"width": 100 * (x1 - x0) / W, "height": 100 * (y1 - y0) / H}
    return region(name, "rectanglelabels", label, **value, **sides)


@pytest.fixture
def inference(services: Services) -> Inference:
    return Inference(services)


def masks(
    inference: Inference,
    services: Services,
    *drawn: dict[str, Any],
    config: str = CONFIG,
    picture: Phantom = LESION,
) -> list[NDArray[np.bool_]]:
    answered = inference.predict(task(services, *drawn, picture=picture), config).regions
    return [region_mask(each, H, W) for each in answered]


def kept(services: Services, kind: str) -> list[bytes]:
    return list(services.redis.scan_iter(f"medsam3:clicks:{kind}:*"))


def test_a_second_click_builds_on_the_first_and_needs_it_not(
    inference: Inference, services: Services
) -> None:
    clicks = click(X, Y), click(X, Y + 10)
    masks(inference, services, clicks[0])
    first = set(kept(services, "answer"))
    assert first
    (mended,) = masks(inference, services, *clicks)
    assert dice(mended, TRUTH) > 0.8
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
    (boxed,) = masks(inference, services, box("box", X0, Y0, X1, Y1))
    assert dice(boxed, TRUTH) > 0.8
    (clicked,) = masks(inference, services, click(X, Y))
    assert dice(clicked, TRUTH) > 0.8
    # Only what is too much: without the box there would be nothing to take it from.
    (less,) = masks(inference, services, click(X0 + 2, Y0 + 2, inside=False))
    assert dice(less, TRUTH) > 0.8
    with pytest.raises(PromptError, match="no click is in the object"):
        masks(inference, services, click(X0 + 2, Y0 + 2, "Cyst", inside=False))


def test_a_click_elsewhere_means_another_object(services: Services) -> None:
    def asked(x: float, y: float) -> tuple[Any, ...]:
        prompt = InteractivePrompt(label="Mass", points=((x, y),), point_labels=(1,))
        return with_drawn_box(services.redis, 7, 1, prompt).boxes

    drawn = InteractivePrompt(label="Mass", boxes=((10, 10, 40, 50),), box_labels=(1,))
    assert with_drawn_box(services.redis, 7, 1, drawn) == drawn
    assert asked(20, 20) == ((10, 10, 40, 50),)
    assert asked(60, 20) == ()
    two = replace(drawn, boxes=drawn.boxes * 2, box_labels=(1, 1))
    with_drawn_box(services.redis, 7, 1, two)
    assert asked(20, 20) == ()


def test_a_stroke_is_answered_with_its_object(inference: Inference, services: Services) -> None:
    stroke = np.zeros((H, W), np.bool_)
    stroke[int(Y) - 1 : int(Y) + 2, int(X) - 20 : int(X) + 20] = True
    drawn = region("mask", "brushlabels", format="rle", rle=brush_rle.encode(stroke & TRUTH))
    (found,) = masks(inference, services, drawn)
    assert dice(found, TRUTH) > 0.7


def test_an_exemplar_brings_each_thing_like_it(inference: Inference, services: Services) -> None:
    layer = NUCLEI.layers["cell nucleus"]
    largest = layer == np.bincount(layer[layer > 0]).argmax()
    drawn = box("like", *tight_box(largest).tolist(), label="Nucleus")
    found = masks(inference, services, drawn, picture=NUCLEI)
    assert dice(found[0], largest) > 0.8
    assert len(found) > 10
    assert not kept(services, "box")


def test_everything_is_proposed_without_a_name(inference: Inference, services: Services) -> None:
    assert len(masks(inference, services, config=EVERYTHING, picture=NUCLEI)) > 5


def test_answers_are_of_one_model_and_one_image(services: Services) -> None:
    logits = np.linspace(-9, 9, 36, dtype=np.float32).reshape(6, 6)
    RedisAnswers(services.redis, "a", "image").put("key", logits)
    assert RedisAnswers(services.redis, "b", "image").get("key") is None
    assert RedisAnswers(services.redis, "a", "other").get("key") is None
    found = RedisAnswers(services.redis, "a", "image").get("key")
    assert found is not None
    np.testing.assert_allclose(found, logits, atol=0.01)
