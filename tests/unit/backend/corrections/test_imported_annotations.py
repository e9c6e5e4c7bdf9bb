"""Annotations as imports write them: each region is read right, or refused by its name."""

from typing import Any

import numpy as np
import pytest

from backend.corrections.label_rules import check_outlined, missing_label, outlines, pages_of
from backend.corrections.submissions import (
    points_of,
    read_annotation,
    read_regions,
    regions_of_concepts,
)
from backend.errors import QuarantineError, Trouble
from backend.labeling import brush_rle

CONFIG = """<View><Image name="image" valueList="$images"/>
<BrushLabels name="brush" toName="image"><Label value="Tumor"/><Label value="Cyst"/></BrushLabels>
<RectangleLabels name="box" toName="image"><Label value="Node"/></RectangleLabels>
<KeyPointLabels name="point" toName="image"><Label value="Tumor"/></KeyPointLabels>
<Labels name="labels" toName="image"><Label value="Tumor"/><Label value="Cyst"/></Labels>
<MagicWand name="wand" toName="image"/><Brush name="plain" toName="image"/>
<Text name="report" value="$report"/></View>"""
DATA = {"images": ["/data/upload/7/a.png", "/data/upload/7/b.png"], "report": "none"}
SIDE = 20
HUGE = 10**399
NAN, INF = float("nan"), float("inf")


def square(at: int = 2) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[at : at + 4, at : at + 4] = True
    return mask


def rle(at: int = 2) -> dict[str, Any]:
    return {"format": "rle", "rle": brush_rle.encode(square(at))}


def one(kind: str = "brushlabels", value: object = None, **fields: Any) -> dict[str, Any]:
    """An entry; a field that is ... is left out."""
    entry = {
        "id": "a",
        "from_name": "brush",
        "to_name": "image",
        "type": kind,
        "original_width": SIDE,
        "original_height": SIDE,
        "value": {**rle(), "brushlabels": ["Tumor"]} if value is None else value,
        **fields,
    }
    return {key: content for key, content in entry.items() if content is not ...}


def pair(kind: str, value: dict[str, Any], label: str = "Tumor", **fields: Any) -> list[Any]:
    """What the editor writes for a tool beside `<Labels>`: both entries carry the outline."""
    return [
        one(kind, value, from_name="plain", **fields),
        one("labels", {**value, "labels": [label]}, from_name="labels", **fields),
    ]


def box(**fields: Any) -> list[Any]:
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, **fields}
    return [one("rectanglelabels", {**value, "rectanglelabels": ["Node"]}, from_name="box")]


def polygon(points: object, **fields: Any) -> list[Any]:
    return pair("polygon", {"points": points, "closed": True, **fields})


SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30]]
BOX = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0}
OVAL = {"x": 20, "y": 20, "radiusX": 10, "radiusY": 10, "rotation": 0}
PATH = [{"x": x, "y": y, "id": str(n)} for n, (x, y) in enumerate(SQUARE)]
POINT = {"x": 10, "y": 10, "width": 1}
CHOICE = {"choices": ["Good"]}


def take_in(result: object) -> dict[tuple[int, str], int]:
    """Pixels of each concept, by page and label, as an annotation with this result is stored."""
    moment = "2026-01-01T00:00:00Z"
    sent = {"id": 1, "task": 2, "project": 3, "created_at": moment, "updated_at": moment}
    record = read_annotation({**sent, "result": result})
    record.content_hash()
    pages = pages_of(CONFIG, DATA)
    submitted = read_regions(record.result, pages, max_pixels=1e8)
    regions = outlines(submitted, CONFIG)
    check_outlined(regions, points_of(record.result, pages), submitted, CONFIG)
    if reason := missing_label({(r.control, label) for r in regions for label in r.labels}, CONFIG):
        raise QuarantineError(Trouble.CONFIG, reason)
    assert len({region.id for region in regions}) == len(regions)
    concepts: dict[tuple[int, str], int] = {}
    for key, members in regions_of_concepts(regions).items():
        concepts[key] = int(np.any([member.mask.full() for member in members], axis=0).sum())
    return concepts


TUMOR = {(0, "Tumor"): 16}
READ: dict[str, tuple[list[Any], dict[tuple[int, str], int]]] = {
    "magic wand": (pair("magicwand", rle()), TUMOR),
    "brush": (pair("brush", rle()), TUMOR),
    "polygon": (polygon(SQUARE), TUMOR),
    "rectangle": (pair("rectangle", BOX), TUMOR),
    "ellipse": (pair("ellipse", OVAL), {(0, "Tumor"): 12}),
    "closed vector path": (pair("vector", {"vertices": PATH, "closed": True}), TUMOR),
    "labels first": (pair("magicwand", rle())[::-1], TUMOR),
    "labels without outline": (
        [pair("brush", rle())[0], one("labels", {"labels": ["Cyst"]})],
        {(0, "Cyst"): 16},
    ),
    "no id": ([one(id=...)], TUMOR),
    "empty id": ([one(id="")], TUMOR),
    "null id": ([one(id=None)], TUMOR),
    "two without id": (
        [one(id=...), one(value={**rle(9), "brushlabels": ["Cyst"]}, id=...)],
        {(0, "Tumor"): 16, (0, "Cyst"): 16},
    ),
    "pair without id": (pair("magicwand", rle(), id=...), TUMOR),
    "two pairs without id": (
        pair("brush", rle(), id=...) + pair("brush", rle(9), "Cyst", id=...),
        {(0, "Tumor"): 16, (0, "Cyst"): 16},
    ),
    "numeric id": ([one(id=7)], TUMOR),
    "numeric id as float": ([one(id=7.0)], TUMOR),
    "numeric pair": (pair("brush", rle(), id=7), TUMOR),
    "id as number and as text": (
        [pair("brush", rle(), id=7)[0], pair("brush", rle(), id="7")[1]],
        TUMOR,
    ),
    "repeated id, other outline": (
        [one(), one(value={**rle(9), "brushlabels": ["Cyst"]})],
        {(0, "Tumor"): 16, (0, "Cyst"): 16},
    ),
    "repeated id, same label": (
        [one(), one(value={**rle(9), "brushlabels": ["Tumor"]})],
        {(0, "Tumor"): 32},
    ),
    "repeated id, other page": ([one(), one(item_index=1)], {**TUMOR, (1, "Tumor"): 16}),
    "repeated pairs": (
        pair("brush", rle()) + pair("brush", rle(9), "Cyst"),
        {(0, "Tumor"): 16, (0, "Cyst"): 16},
    ),
    "the same twice": ([one(), one()], TUMOR),
    "the label under another name": ([one("brush", {**rle(), "brushlabels": ["Tumor"]})], TUMOR),
    "choices alone": ([one("choices", CHOICE, id=...)], {}),
    "choices of a region": ([one(), one("choices", {**rle(), **CHOICE})], TUMOR),
    "relation": ([one(), {"type": "relation", "from_id": "a", "to_id": "b"}], TUMOR),
    "text area": ([one("textarea", {"text": ["x"]})], {}),
    "number": ([one("number", {"number": 3})], {}),
    "rating without value": ([one("rating", ...)], {}),
    "words of a report": ([one("labels", {"start": 0, "labels": ["x"]}, to_name="report")], {}),
    "a series elsewhere": ([one("timeserieslabels", {"start": 0}, to_name="series")], {}),
    "point beside its mask": (
        [one(), one("keypointlabels", {**POINT, "keypointlabels": ["Tumor"]}, id="k")],
        TUMOR,
    ),
    "point of no label": ([one("keypoint", POINT)], {}),
    "null page": ([one(item_index=None)], TUMOR),
    "nothing": ([], {}),
}


@pytest.mark.parametrize("name", READ)
def test_an_odd_annotation_is_read(name: str) -> None:
    result, concepts = READ[name]
    assert take_in(result) == concepts


REFUSED: dict[str, list[Any]] = {
    "type is a list": [one([])],  # type: ignore[arg-type]
    "type is an object": [one({"a": 1})],  # type: ignore[arg-type]
    "type is null": [one(None)],  # type: ignore[arg-type]
    "type is missing": [one(...)],  # type: ignore[arg-type]
    "type is empty": [one("")],
    "type in capitals": [one("BrushLabels")],
    "unknown type": [one("lasso")],
    "series on an image": [one("timeserieslabels", {"start": 0, "timeserieslabels": ["Tumor"]})],
    "video on an image": [one("videorectangle", {"sequence": [], "labels": ["Tumor"]})],
    "value is a text": [one(value="x")],
    "value is a list": [one(value=[])],
    "value is missing": [one(value=...)],
    "value is empty": [one(value={})],
    "labels on nothing": [one("labels", {"labels": ["Tumor"]})],
    "labels of another id": [pair("brush", rle())[0], one("labels", {"labels": ["Tumor"]}, id="b")],
    "labels without id": [pair("brush", rle())[0], one("labels", {"labels": ["Tumor"]}, id=...)],
    "labels of two regions": [
        pair("brush", rle())[0],
        pair("brush", rle(9))[0],
        one("labels", {"labels": ["Tumor"]}),
    ],
    "id is a list": [one(id=[])],
    "id is true": [one(id=True)],
    "id is no number": [one(id=NAN)],
    "id is half": [one(id=1.5)],
    "id of 4000 digits": [one(id=10**3999)],
    "id with a null": [one(id="a\0")],
    "id of half a sign": [one(id="a\ud800")],
    "no label": [one(value={**rle(), "brushlabels": []})],
    "label is null": [one(value={**rle(), "brushlabels": [None]})],
    "label is an object": [one(value={**rle(), "brushlabels": [{}]})],
    "label with a null": [one(value={**rle(), "brushlabels": ["Tumor\0"]})],
    "separated without labels": [one("magicwand", rle(), from_name="wand")],
    "width of 400 digits": [one(original_width=HUGE)],
    "width is negative": [one(original_width=-SIDE)],
    "width is no number": [one(original_width=NAN)],
    "width is infinite": [one(original_width=INF)],
    "width is true": [one(original_width=True, original_height=True)],
    "width is missing": [one(original_width=...)],
    "no pixels": [one(original_width=0)],
    "another size on the page": [
        one(),
        one("rectanglelabels", {**BOX, "rectanglelabels": ["Node"]}, id="b", original_width=9),
    ],
    "page is negative": [one(item_index=-1)],
    "page is a text": [one(item_index="1")],
    "page is an empty text": [one(item_index="")],
    "page is true": [one(item_index=True)],
    "page behind the last": [one(item_index=2)],
    "page of 400 digits": [one(item_index=HUGE)],
    "another image tag": [one(to_name="photo")],
    "image tag is a list": [one(to_name=[])],
    "run lengths of another image": [one(original_width=SIDE + 1)],
    "run lengths cut off": [one(value={"rle": rle()["rle"][:9], "brushlabels": ["Tumor"]})],
    "run lengths of 400 digits": [one(value={"rle": [HUGE], "brushlabels": ["Tumor"]})],
    "polygon of two points": polygon(SQUARE[:2]),
    "polygon of no points": polygon([]),
    "polygon of texts": polygon([["a", "b"]] * 3),
    "polygon of 400 digits": polygon([[HUGE, 1], [2, 2], [3, 1]]),
    "polygon far away": polygon([[1e300, 1], [2, 2], [3, 1]]),
    "polygon on a line": polygon([[1, 1], [2, 2], [3, 3]]),
    "polygon of nothing": polygon(None),
    "polygon that is open": polygon(SQUARE, closed=False),
    "box of 400 digits": box(x=HUGE),
    "box turned by no number": box(rotation=NAN),
    "box turned endlessly": box(rotation=INF),
    "box turned by a text": box(rotation="90"),
    "box of infinite width": box(width=INF),
    "box of no width": box(width=0),
    "box outside": box(x=200),
    "ellipse of negative radius": pair("ellipse", {**OVAL, "radiusX": -5}),
    "ellipse of 400 digits": pair("ellipse", {**OVAL, "radiusY": HUGE}),
    "vector path that is open": pair("vector", {"vertices": PATH, "closed": False}),
    "vector path with links that are lists": pair(
        "vector", {"vertices": [{**at, "prevPointId": [1]} for at in PATH], "closed": True}
    ),
    "vector path with handles that are texts": pair(
        "vector", {"vertices": [{**at, "controlPoint1": "x"} for at in PATH], "closed": True}
    ),
    "bitmask that is no PNG": pair("bitmask", {"imageDataURL": "data:image/png;base64,AAAA"}),
    "bitmask that is a number": pair("bitmask", {"imageDataURL": 1}),
    "point alone": [one("keypointlabels", {**POINT, "keypointlabels": ["Tumor"]})],
    "separated point alone": pair("keypoint", POINT),
    "point on another page": [
        one(),
        one("keypointlabels", {**POINT, "keypointlabels": ["Tumor"]}, id="a2", item_index=1),
    ],
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_odd_annotation_is_refused_by_the_name_of_its_region(name: str) -> None:
    with pytest.raises(
        QuarantineError, match=r"^region \S+ ?\S* \(|^a region without id \("
    ) as refusal:
        take_in(REFUSED[name])
    assert len(str(refusal.value)) < 400
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("result", [None, {}, "x", 3, [None], ["x"], [[]], [3]])
def test_a_result_that_is_no_list_of_regions_is_refused(result: object) -> None:
    with pytest.raises(QuarantineError, match=r"no annotation: look at .*result"):
        take_in(result)


def test_an_unknown_label_is_refused_by_its_name() -> None:
    with pytest.raises(QuarantineError, match="no label 'Bone'"):
        take_in([one(value={**rle(), "brushlabels": ["Tumor", "Bone"]})])
