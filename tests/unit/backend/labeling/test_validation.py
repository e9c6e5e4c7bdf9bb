"""What may leave: our reading of the config is at least as strict as Label Studio's own SDK."""

import numpy as np
import pytest
from label_studio_sdk.label_interface import LabelInterface

from backend.errors import RegionError
from backend.labeling.concepts import concepts_for
from backend.labeling.config import parse_label_config
from backend.labeling.regions import InstanceMask, regions_for
from backend.labeling.validation import validate

HEIGHT, WIDTH = 30, 40
TAGS = ("BrushLabels", "BitmaskLabels", "PolygonLabels", "RectangleLabels", "EllipseLabels")
BARE = ("Brush", "Bitmask", "Polygon", "Rectangle", "Ellipse")
LABELS = '<Label value="Tumor"/><Label value="Cyst" alias="C-01"/>'
EVERY_TAG = (
    '<View><Image name="image" value="$image"/>'
    + "".join(f'<{tag} name="{tag.lower()}" toName="image">{LABELS}</{tag}>' for tag in TAGS)
    + "</View>"
)
SEPARATED = (
    '<View><Image name="image" value="$image"/>'
    + "".join(f'<{tag} name="{tag.lower()}" toName="image"/>' for tag in BARE)
    + f'<Labels name="labels" toName="image">{LABELS}</Labels></View>'
)


def regions_of(xml: str) -> list[dict]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[5:20, 8:30] = True
    return [
        region
        for concept in concepts_for(parse_label_config(xml), {})
        for region in regions_for(concept, [InstanceMask(mask, 0.5)], width=WIDTH, height=HEIGHT)
    ]


def region_of(tag: str) -> dict:
    return next(region for region in regions_of(EVERY_TAG) if region["type"] == tag.lower())


@pytest.mark.parametrize("xml", [EVERY_TAG, SEPARATED])
def test_what_we_make_is_taken_by_us_and_by_the_sdk(xml: str) -> None:
    regions = regions_of(xml)
    assert {region["value"].get(region["type"], [None])[0] for region in regions} >= {
        "Tumor",
        "C-01",
    }
    validate(regions, xml)
    assert LabelInterface(xml).validate_prediction({"result": regions}, return_errors=True) == []


def test_nothing_to_check() -> None:
    validate([], "not even a config")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"from_name": "other"}, "'from_name' 'other' not found"),
        ({"from_name": None}, "'from_name' None not found"),
        ({"from_name": ["brushlabels"]}, "not found in the labeling config"),
        ({"to_name": "other"}, "'to_name' 'other' is not the image"),
        ({"to_name": None}, "'to_name' None is not the image"),
        ({"type": "polygonlabels"}, "does not match that of 'brushlabels'"),
        ({"type": "labels"}, "does not match that of 'brushlabels'"),
        ({"type": None}, "does not match that of 'brushlabels'"),
        ({"id": ""}, "id '' is missing or used twice"),
        ({"id": None}, "id '' is missing or used twice"),
        ({"original_width": 0}, "must be positive integers"),
        ({"original_width": True}, "must be positive integers"),
        ({"original_height": None}, "must be positive integers"),
        ({"original_height": 30.0}, "must be positive integers"),
        ({"original_width": WIDTH + 1}, "the geometry of a region"),
        ({"score": 1.5}, "score 1.5 is not between 0 and 1"),
        ({"score": float("nan")}, "score nan is not between 0 and 1"),
        ({"score": "high"}, "score high is not between 0 and 1"),
        ({"item_index": -1}, "item_index -1"),
        ({"item_index": "1"}, "item_index 1"),
        ({"value": None}, "the value of a region of 'brushlabels' is missing"),
    ],
)
def test_faults_of_the_frame(change: dict, match: str) -> None:
    with pytest.raises(RegionError, match=match):
        validate([{**region_of("BrushLabels"), **change}], EVERY_TAG)


@pytest.mark.parametrize("labels", [None, [], "Tumor", ["Bone"], ["tumor"], ["Cyst"], [1], [{}]])
def test_faults_of_the_label(labels: object) -> None:
    region = region_of("BrushLabels")
    value = {**region["value"], "brushlabels": labels}
    with pytest.raises(RegionError, match=r"offers no label|has no label"):
        validate([{**region, "value": value}], EVERY_TAG)


@pytest.mark.parametrize(
    ("tag", "change"),
    [
        ("BrushLabels", {"rle": []}),
        ("BrushLabels", {"rle": None}),
        ("BrushLabels", {"rle": [0, 0, 0, 300, 1]}),
        ("BrushLabels", {"rle": ["0", "1", "2", "3", "4"]}),
        ("BrushLabels", {"format": "png"}),
        ("BitmaskLabels", {"imageDataURL": None}),
        ("BitmaskLabels", {"imageDataURL": "https://example.org/mask.png"}),
        ("BitmaskLabels", {"imageDataURL": "data:image/png;base64,"}),
        ("PolygonLabels", {"points": []}),
        ("PolygonLabels", {"points": [[1, 1], [2, 2]]}),
        ("PolygonLabels", {"points": [[1, 1], [2, 2], [3]]}),
        ("PolygonLabels", {"points": [[1, 1], [2, 2], [3, 101]]}),
        ("PolygonLabels", {"points": [[1, 1], [2, 2], [3, float("inf")]]}),
        ("PolygonLabels", {"points": {"x": 1}}),
        ("RectangleLabels", {"x": -1}),
        ("RectangleLabels", {"width": 0}),
        ("RectangleLabels", {"height": None}),
        ("RectangleLabels", {"height": float("nan")}),
        ("RectangleLabels", {"rotation": "90"}),
        ("EllipseLabels", {"y": 101}),
        ("EllipseLabels", {"radiusX": 0}),
        ("EllipseLabels", {"radiusY": 51}),
        ("EllipseLabels", {"rotation": None}),
    ],
)
def test_faults_of_the_geometry(tag: str, change: dict) -> None:
    region = region_of(tag)
    with pytest.raises(RegionError, match=f"not one that <{tag}> draws"):
        validate([{**region, "value": {**region["value"], **change}}], EVERY_TAG)


def test_an_id_used_twice() -> None:
    region = region_of("BrushLabels")
    with pytest.raises(RegionError, match="used twice"):
        validate([region, region], EVERY_TAG)


def test_long_lists_of_faults_are_cut() -> None:
    with pytest.raises(RegionError, match=r"and \d+ more"):
        validate([{**region_of("BrushLabels"), "from_name": "other"}] * 9, EVERY_TAG)
