"""Odd and hostile annotations: each is understood in full or refused by name, never an absence."""

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from backend.corrections.label_rules import check_outlined, outlines, pages_of
from backend.corrections.submissions import (
    points_of,
    read_annotation,
    read_regions,
    regions_of_concepts,
)
from backend.errors import QuarantineError
from backend.labeling import brush_rle
from tests.support.regions import brush, region

HEIGHT, WIDTH = 20, 40
CONFIG = """
<View>
  <Image name="image" value="$image"/><Text name="report" value="$text"/>
  <Labels name="labels" toName="image"><Label value="Tumor"/><Label value="Cyst"/></Labels>
  <Brush name="brush" toName="image"/><Polygon name="poly" toName="image"/>
  <MagicWand name="wand" toName="image"/><Rectangle name="box" toName="image"/>
  <KeyPointLabels name="landmark" toName="image"><Label value="Hilum"/></KeyPointLabels>
  <RectangleLabels name="smart" toName="image" smart="true"><Label value="Tumor"/>
  </RectangleLabels>
  <RectangleLabels name="not" toName="image" negative="true"><Label value="Tumor"/>
  </RectangleLabels>
</View>
"""
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[5:10, 10:20] = True
OTHER = np.zeros((HEIGHT, WIDTH), bool)
OTHER[12:18, 2:9] = True
RLE = {"format": "rle", "rle": brush_rle.encode(MASK)}
BOX = {"x": 25, "y": 25, "width": 25, "height": 25, "rotation": 0}
OVAL = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 20, "rotation": 0}
RING = [[25, 25], [50, 25], [50, 50], [25, 50]]
PATH = [{"id": str(i), "x": x, "y": y} for i, (x, y) in enumerate(RING)]
HUGE = 10**399


def entry(kind: str, value: Any, id_: Any = "a", **fields: object) -> dict[str, Any]:
    made = region("", "brush", kind, {}, HEIGHT, WIDTH)
    return {**made, "id": id_, "value": value, **fields}


def box(**fields: Any) -> dict[str, Any]:
    return entry("rectanglelabels", {**BOX, "rectanglelabels": ["Tumor"], **fields})


def oval(**fields: Any) -> dict[str, Any]:
    return entry("ellipselabels", {**OVAL, "ellipselabels": ["Tumor"], **fields})


def ring(points: Any, **fields: Any) -> dict[str, Any]:
    return entry("polygonlabels", {"points": points, "polygonlabels": ["Tumor"], **fields})


def path(vertices: Any, **fields: Any) -> dict[str, Any]:
    value = {"vertices": vertices, "closed": True, "vectorlabels": ["Tumor"], **fields}
    return entry("vectorlabels", value)


def labels(geometry: Mapping[str, Any] = {}, id_: Any = "a", label: str = "Tumor", **fields: Any):
    return entry("labels", {**geometry, "labels": [label]}, id_, from_name="labels", **fields)


def painted(rle: Any) -> dict[str, Any]:
    return entry("brushlabels", {"format": "rle", "rle": rle, "brushlabels": ["Tumor"]})


def without(one: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in one.items() if key not in keys}


def understood(result: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The mask of each concept, as ingestion sees it."""
    payload = {
        "id": 1,
        "task": 1,
        "project": 1,
        "result": result,
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
    }
    record = read_annotation(payload)
    pages = pages_of(CONFIG, {"image": "/data/upload/1/x.png", "text": "x"})
    regions = read_regions(record.result, pages, max_pixels=1e8)
    kept = outlines(regions, CONFIG)
    check_outlined(kept, points_of(record.result, pages), regions, CONFIG)
    return {
        label: np.logical_or.reduce([one.mask.full() for one in members])
        for (_, label), members in regions_of_concepts(kept).items()
    }


BITMASK = {
    "imageDataURL": "data:image/png;base64,"
    + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\x00" * 30).decode()
}
MARK = brush("m", OTHER, "Tumor")
REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "type is a list": ([{**box(), "type": []}], "no type"),
    "type is an object": ([{**box(), "type": {}}], "no type"),
    "type is missing": ([without(box(), "type")], "no type"),
    "type is a number": ([{**box(), "type": 7}], "no type"),
    "type in capitals": ([{**box(), "type": "RectangleLabels"}], "RectangleLabels"),
    "type of a tool to come": ([entry("lassolabels", {"lassolabels": ["Tumor"]})], "lassolabels"),
    "separated tool to come": ([entry("cuboid", BOX), labels(BOX)], "cuboid"),
    "a video's box on an image": ([entry("videorectangle", {"sequence": []})], "videorectangle"),
    "odd one beside a good one": ([MARK, entry("superpixel", {})], "superpixel"),
    "value is a text": ([{**box(), "value": "x"}], "no value"),
    "value is missing": ([without(box(), "value")], "no value"),
    "value is a list": ([{**box(), "value": [1]}], "no value"),
    "value is empty": ([entry("brushlabels", {})], "brushlabels"),
    "id is an object": ([{**box(), "id": {}}], "neither text nor number"),
    "id is true": ([{**box(), "id": True}], "neither text nor number"),
    "id is a float": ([{**box(), "id": 1.5}], "neither text nor number"),
    "labels are a text": ([box(rectanglelabels="Tumor")], "no list of texts"),
    "labels are objects": ([box(rectanglelabels=[{}])], "no list of texts"),
    "labels are null": ([box(rectanglelabels=[None])], "no list of texts"),
    "no label": ([box(rectanglelabels=[])], "has no label"),
    "label of spaces": ([box(rectanglelabels=[" "])], "has no label"),
    "tool without its labels": ([entry("brush", RLE)], "has no label"),
    "wand without its labels": ([entry("magicwand", RLE)], "magicwand"),
    "labels without their tool": ([labels(BOX)], "belongs to no region"),
    "labels of another id": ([entry("brush", RLE), labels(RLE, "b")], "belongs to no region"),
    "ambiguous labels": (
        [entry("brush", RLE), entry("rectangle", BOX), labels()],
        "belongs to no region",
    ),
    "separated key point": (
        [entry("keypoint", {"x": 1, "y": 1}), labels({"x": 1, "y": 1})],
        "nothing outlines it",
    ),
    "key point of a label": (
        [entry("keypointlabels", {"x": 1, "y": 1, "keypointlabels": ["Tumor"]})],
        "keypointlabels",
    ),
    "open path": ([path(PATH, closed=False)], "nothing outlines it"),
    "open polygon": ([ring(RING, closed=False)], "nothing outlines it"),
    "prompt that was left alone": ([{**box(), "from_name": "smart"}, brush("b", MASK, "Cyst")], ""),
    "width is NaN": ([box(width=math.nan)], "width"),
    "x is infinite": ([box(x=math.inf)], '"x"'),
    "x is a text": ([box(x="25")], '"x"'),
    "x is missing": ([box(x=None)], '"x"'),
    "x is true": ([box(x=True)], '"x"'),
    "x of 400 digits": ([box(x=HUGE)], '"x"'),
    "negative width": ([box(width=-5)], "negative"),
    "negative height": ([box(height=-5)], "negative"),
    "width of zero": ([box(width=0)], "no pixel"),
    "beside the image": ([box(x=150)], "no pixel"),
    "rotation is NaN": ([box(rotation=math.nan)], "rotation"),
    "rotation is a text": ([box(rotation="90")], "rotation"),
    "negative radius": ([oval(radiusX=-5)], "negative"),
    "radius of zero": ([oval(radiusY=0)], "no pixel"),
    "radius of 400 digits": ([oval(radiusX=HUGE)], "radiusX"),
    "radius is NaN": ([oval(radiusY=math.nan)], "radiusY"),
    "two points": ([ring(RING[:2])], "three points"),
    "points are a text": ([ring("x")], "three points"),
    "points are null": ([ring(None)], "three points"),
    "points of three numbers": ([ring([[1, 2, 3]] * 3)], "three points"),
    "points of 400 digits": ([ring([[HUGE, 1], *RING])], "polygonlabels"),
    "a point is NaN": ([ring([[math.nan, 1], *RING])], "finite"),
    "a point is infinite": ([ring([[math.inf, 1], *RING])], "finite"),
    "a polygon on a line": ([ring([[1, 1], [50, 1], [90, 1]])], "no pixel"),
    "vertices are null": ([path(None)], "list of points"),
    "a vertex is a number": ([path([1, 2, 3])], "list of points"),
    "a vertex without x": ([path([{"y": 1}] * 3)], '"x"'),
    "a vertex with an odd id": ([path([{**one, "prevPointId": []} for one in PATH[:1]] * 3)], ""),
    "a vertex whose id is a list": ([path([{**one, "id": [1]} for one in PATH])], "no texts"),
    "a control point is a text": ([path([{**one, "controlPoint2": "x"} for one in PATH])], ""),
    "RLE is a text": ([painted("x")], "bytes"),
    "RLE is null": ([painted(None)], "bytes"),
    "RLE is a number": ([painted(10**9)], "bytes"),
    "RLE is an object": ([painted({"a": 1})], "bytes"),
    "RLE is empty": ([painted([])], "header"),
    "RLE of negative bytes": ([painted([-1] * 20)], "bytes"),
    "RLE of 400 digits": ([painted([HUGE] * 20)], "bytes"),
    "RLE of floats": ([painted([1.5] * 20)], "bytes"),
    "RLE that ends early": ([painted(RLE["rle"][:9])], "cut off"),
    "RLE of another image": ([painted(brush_rle.encode(MASK[:5]))], "another image"),
    "bitmask is damaged": ([entry("bitmasklabels", {**BITMASK, "bitmasklabels": ["Tumor"]})], ""),
    "bitmask behind a link": (
        [entry("bitmasklabels", {"imageDataURL": "http://[::1/x", "bitmasklabels": ["Tumor"]})],
        "PNG data URL",
    ),
    "bitmask that is no text": (
        [entry("bitmasklabels", {"imageDataURL": 7, "bitmasklabels": ["Tumor"]})],
        "PNG data URL",
    ),
    "no size": ([without(box(), "original_width")], "original_width"),
    "size is a float": ([{**box(), "original_width": 40.5}], "original_width"),
    "size is NaN": ([{**box(), "original_width": math.nan}], "original_width"),
    "size is true": ([{**box(), "original_width": True}], "original_width"),
    "size of zero": ([{**box(), "original_height": 0}], "original_width"),
    "negative size": ([{**box(), "original_height": -20}], "original_width"),
    "size of 400 digits": ([{**box(), "original_width": HUGE}], "MEGAPIXELS"),
    "two sizes": ([box(), {**brush("b", MASK[:5], "Tumor")}], "others on"),
    "no image": ([without(box(), "to_name")], "image tag"),
    "another image": ([{**box(), "to_name": "prior"}], "image tag"),
    "image is an object": ([{**box(), "to_name": {}}], "image tag"),
    "a page too far": ([{**box(), "item_index": 9}], "page"),
    "a negative page": ([{**box(), "item_index": -1}], "page"),
    "a page that is a text": ([{**box(), "item_index": "1"}], "page"),
    "a page of 400 digits": ([{**box(), "item_index": HUGE}], "page"),
}


@pytest.mark.parametrize(("result", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(result: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(QuarantineError) as refusal:
        understood(result)
    assert words in str(refusal.value)
    assert len(str(refusal.value)) < 600
    kinds = [one["type"] for one in result if isinstance(one.get("type"), str)]
    assert not kinds or any(kind in str(refusal.value) for kind in kinds)


def separated(kind: str, value: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [entry(kind, value), labels(value)]


UNDERSTOOD: dict[str, tuple[list[dict[str, Any]], dict[str, int]]] = {
    "separated wand": (separated("magicwand", RLE), {"Tumor": 50}),
    "separated brush": (separated("brush", RLE), {"Tumor": 50}),
    "separated polygon": (separated("polygon", {"points": RING}), {"Tumor": 50}),
    "separated rectangle": (separated("rectangle", BOX), {"Tumor": 50}),
    "separated ellipse": (separated("ellipse", OVAL), {"Tumor": 100}),
    "separated vector": (separated("vector", {"vertices": PATH, "closed": True}), {"Tumor": 50}),
    "labels before their tool": ([labels(RLE), entry("brush", RLE)], {"Tumor": 50}),
    "labels without geometry": ([entry("brush", RLE), labels()], {"Tumor": 50}),
    "no id": ([without(painted(RLE["rle"]), "id")], {"Tumor": 50}),
    "id is null": ([{**painted(RLE["rle"]), "id": None}], {"Tumor": 50}),
    "id is empty": ([{**painted(RLE["rle"]), "id": ""}], {"Tumor": 50}),
    "id is a number": ([{**painted(RLE["rle"]), "id": 7}], {"Tumor": 50}),
    "id is zero": ([{**painted(RLE["rle"]), "id": 0}], {"Tumor": 50}),
    "separated with numbers": (
        [entry("brush", RLE, 7), labels(RLE, 7)],
        {"Tumor": 50},
    ),
    "separated without ids": (
        [
            without(entry("brush", RLE), "id"),
            without(entry("rectangle", OVAL | BOX), "id"),
            without(labels(RLE), "id"),
            without(labels(OVAL | BOX, label="Cyst"), "id"),
        ],
        {"Tumor": 50, "Cyst": 100},
    ),
    "several without ids": (
        [
            without(painted(RLE["rle"]), "id"),
            without(painted(brush_rle.encode(OTHER)), "id"),
        ],
        {"Tumor": 92},
    ),
    "one id, two regions": (
        [brush("a", MASK, "Tumor"), brush("a", OTHER, "Tumor")],
        {"Tumor": 92},
    ),
    "one id, two labels": (
        [brush("a", MASK, "Tumor"), brush("a", OTHER, "Cyst")],
        {"Tumor": 50, "Cyst": 42},
    ),
    "one id, two separated regions": (
        [
            entry("brush", RLE),
            labels(RLE),
            entry("rectangle", BOX),
            labels(BOX, label="Cyst"),
        ],
        {"Tumor": 50, "Cyst": 50},
    ),
    "a number and its text": (
        [{**painted(RLE["rle"]), "id": 7}, brush("7", OTHER, "Cyst")],
        {"Tumor": 50, "Cyst": 42},
    ),
    "a tool with labels inside": ([entry("brush", {**RLE, "labels": ["Tumor"]})], {"Tumor": 50}),
    "label is a number": ([box(rectanglelabels=[5])], {"5": 50}),
    "point beside an outline": (
        [MARK, entry("keypointlabels", {"x": 1, "y": 1, "keypointlabels": ["Tumor"]})],
        {"Tumor": 42},
    ),
    "a landmark": (
        [entry("keypointlabels", {"x": 1, "y": 1, "keypointlabels": ["Hilum"]})],
        {},
    ),
    "a point that says no": (
        [entry("keypointlabels", {"x": 1, "y": 1, "keypointlabels": ["Tumor"]}, is_positive=False)],
        {},
    ),
    "a box that says no": ([{**box(), "from_name": "not"}], {}),
    "words of a region": ([MARK, entry("textarea", {"text": ["x"]}, "m")], {"Tumor": 42}),
    "choices": ([entry("choices", {"choices": ["good"]})], {}),
    "relation": ([{"type": "relation", "from_id": "a", "to_id": "b"}], {}),
    "words of a text": (
        [entry("labels", {"start": 0, "end": 1, "labels": ["Tumor"]}, to_name="report")],
        {},
    ),
    "nothing": ([], {}),
}


@pytest.mark.parametrize(("result", "areas"), UNDERSTOOD.values(), ids=UNDERSTOOD)
def test_understood_in_full(result: list[dict[str, Any]], areas: dict[str, int]) -> None:
    assert {label: mask.sum() for label, mask in understood(result).items()} == areas
