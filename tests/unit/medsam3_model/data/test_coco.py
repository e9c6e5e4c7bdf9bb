"""COCO files written by hand or by pycocotools, read back."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsam3_model.data.coco import fill_polygon
from medsam3_model.data.datasets import load_dataset
from medsam3_model.errors import DatasetError
from tests.support.dataset_files import H, W, picture, save, spots


def coco(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "images": [
            {"id": 1, "file_name": "a.png", "height": H, "width": W, "patient_id": "p7"},
            {"id": 2, "file_name": "sub/b.png", "height": H, "width": W},
        ],
        "categories": [{"id": 5, "name": "polyp"}, {"id": 9, "name": "tool"}],
        "annotations": [
            {"image_id": 1, "category_id": 5, "segmentation": [[10, 5, 20, 5, 20, 15, 10, 15]]},
            {"image_id": 1, "category_id": 5, "segmentation": [[30, 20, 50, 20, 50, 30, 30, 30]]},
            {"image_id": 2, "category_id": 9, "segmentation": _runs(spots()), "iscrowd": 1},
        ],
    }
    return content | changes


def _runs(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths: down the columns, beginning with background."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(int), [1 - int(mask[-1, -1])]])
    ends = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff([0, *ends]).tolist()}


def coco_folder(root: Path, content: dict[str, Any], place: str = "coco.json") -> Path:
    for name in ("a.png", "sub/b.png"):
        save(root / "images" / name, picture())
    (root / place).parent.mkdir(exist_ok=True)
    (root / place).write_text(json.dumps(content))
    return root / place


@pytest.mark.parametrize("place", ["coco.json", "annotations/val.json"])
@pytest.mark.parametrize("by_folder", [True, False])
def test_coco(tmp_path: Path, place: str, by_folder: bool) -> None:
    file = coco_folder(tmp_path / "set", coco(), place)
    dataset = load_dataset(tmp_path / "set" if by_folder else file)
    assert dataset.name == "set"
    assert dataset.concepts == ("polyp", "tool")
    first, second = dataset
    assert (first.name, first.group, second.name, second.group) == ("a", "p7", "sub/b", "sub/b")
    polyps, tools = first.read("polyp"), second.read("tool")
    assert polyps is not None
    assert tools is not None
    assert np.array_equal(polyps.mask, spots())
    assert np.array_equal(tools.mask, spots())
    assert polyps.boxes.tolist() == [[10, 5, 20, 15], [30, 20, 50, 30]]
    assert tools.boxes.tolist() == [[10, 5, 50, 30]]  # one annotation, one box
    assert first.read("tool") is None
    assert second.read("polyp") is None
    assert second.image().shape == (H, W, 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pycocotools with NumPy 2
@pytest.mark.parametrize("seed", range(8))
def test_coco_runs_are_read_as_pycocotools_writes_them(tmp_path: Path, seed: int) -> None:
    from pycocotools import mask as rle

    rng = np.random.default_rng(seed)
    mask = rng.random((H, W)) < rng.random() ** 3  # from hundreds of short runs to few long ones
    mask[0, 0] = True
    packed = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    for written in (_runs(mask), packed | {"counts": packed["counts"].decode()}):
        content = coco()
        content["annotations"][2]["segmentation"] = written
        found = load_dataset(coco_folder(tmp_path, content)).samples[1].read("tool")
        assert found is not None
        assert np.array_equal(found.mask, mask)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("seed", range(8))
def test_polygons_are_those_of_pycocotools_but_for_their_outline(seed: int) -> None:
    from pycocotools import mask as rle

    rng = np.random.default_rng(seed)
    corners = rng.uniform(-10, 110, (rng.integers(3, 9), 2))  # crossing itself, partly outside
    theirs = rle.decode(rle.frPyObjects([corners.ravel().tolist()], 80, 100)[0]).astype(bool)
    differ = fill_polygon(corners, 80, 100) != theirs
    # pycocotools rounds corners to a grid of fifths of pixels; centres near an edge may flip.
    y, x = np.nonzero(differ)
    ends = np.roll(corners, -1, axis=0)
    points = np.stack([x + 0.5, y + 0.5], 1)[:, None]
    along = np.clip(
        ((points - corners) * (ends - corners)).sum(2) / ((ends - corners) ** 2).sum(1), 0, 1
    )
    distance = np.linalg.norm(points - corners - along[..., None] * (ends - corners), axis=2).min(1)
    assert (distance < 1.0).all()
    assert differ.mean() < 0.02


def test_coco_instances_that_overlap_keep_their_boxes(tmp_path: Path) -> None:
    content = coco()
    content["annotations"][1]["segmentation"] = [[10, 5, 40, 5, 40, 15, 10, 15]]  # hides the first
    found = load_dataset(coco_folder(tmp_path, content)).samples[0].read("polyp")
    assert found is not None
    assert found.boxes.tolist() == [[10, 5, 20, 15], [10, 5, 40, 15]]


def test_coco_groups_come_from_the_csv_first(tmp_path: Path) -> None:
    file = coco_folder(tmp_path, coco())
    (tmp_path / "groups.csv").write_text("name,group\na.png,series1\nb,series2\n")
    assert [sample.group for sample in load_dataset(file)] == ["series1", "series2"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"images": []}, "not a COCO file"),
        (coco(images=[]), "lists no images"),
        (coco(categories=[], annotations=[]), "no categories"),
        (coco(categories=[{"id": 5, "name": "polyp"}]), "not a valid COCO file: KeyError"),
        (coco(images=[{"id": 1, "file_name": "../x.png", "height": 1, "width": 1}]), "lists"),
        (coco(images=[{"id": 1, "file_name": "no.png", "height": 1, "width": 1}]), "neither in"),
        (coco(images=coco()["images"][:1] * 2), "lists 1 images twice"),
    ],
)
def test_coco_files_that_are_wrong(tmp_path: Path, content: dict[str, Any], sentence: str) -> None:
    save(tmp_path / "x.png", picture())
    file = coco_folder(tmp_path / "set", content)
    with pytest.raises(DatasetError, match=sentence):
        load_dataset(file)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [3, 3], "counts": [9]},
        {"size": [H, W], "counts": [9]},
        {"size": [H, W], "counts": [H * W + 5, -5]},
        {"size": [H, W], "counts": "PP"},
        {"size": [H, W], "counts": "ä"},
        {"counts": "x"},
        [[1, 2]],
        [["a", 1]],
        [[1, 2, 3, 4, float("nan"), 6]],
        [[1, 2, 1e300, 4, 5, 6]],
        [[]],
        [[1, 2, 3, 4, 5, 6], {"size": [H, W], "counts": [H * W]}],
        [{"x": 1, "y": 2}],
        [1, 2, 3, 4, 5, 6],
        {"size": [H, W], "counts": [2**62, 2**62, 2**62, 2**62, H * W]},
        {"size": [H, W], "counts": [[H * W]]},
        7,
    ],
)
def test_coco_segmentations_that_are_wrong(tmp_path: Path, segmentation: Any) -> None:
    content = coco()
    content["annotations"][0]["segmentation"] = segmentation
    sample = load_dataset(coco_folder(tmp_path, content)).samples[0]
    with pytest.raises(DatasetError, match=r"'a\.png'.*cannot be read"):
        sample.read("polyp")


NOWHERE = {
    "a box and no segmentation": ({}, "no segmentation"),
    "an empty list": ({"segmentation": []}, "no segmentation"),
    "null": ({"segmentation": None}, "no segmentation"),
    "an empty object": ({"segmentation": {}}, "no segmentation"),
    "outside the image": ({"segmentation": [[-9, -9, -5, -9, -5, -5]]}, "covers no pixel"),
    "without area": ({"segmentation": [[1, 1, 9, 9, 5, 5]]}, "covers no pixel"),
    "runs of background": (
        {"segmentation": {"size": [H, W], "counts": [H * W]}},
        "covers no pixel",
    ),
}


@pytest.mark.parametrize("name", NOWHERE)
def test_an_object_without_a_mask_is_an_error_and_no_absence(tmp_path: Path, name: str) -> None:
    drawn, words = NOWHERE[name]
    box = {"image_id": 2, "category_id": 5, "bbox": [1, 2, 3, 4], **drawn}
    file = coco_folder(tmp_path, coco(annotations=[*coco()["annotations"], box]))
    sample = load_dataset(file).samples[1]
    assert sample.concepts == {"polyp", "tool"}
    with pytest.raises(DatasetError, match=rf"'sub/b\.png'.*{words}"):
        sample.read("polyp")


NAMES = {  # the file's name beside the JSON, and what Label Studio wrote
    "percent-encoded": ("scan #3.png", "scan%20%233.png"),
    "encoded twice": ("scan #3.png", "scan%2520%25233.png"),
    "an upload with an umlaut": ("8e26f0a1-bild_ü.png", "8e26f0a1-bild_%C3%BC.png"),
    "an umlaut in two parts": ("bild_u\u0308.png", "bild_%C3%BC.png"),
    "an umlaut in one part": ("bild_\xfc.png", "bild_u\u0308.png"),
    "folders of Windows": ("x.png", "..\\..\\label-studio\\media\\upload\\1\\x.png"),
    "a drive of Windows": ("x y.png", "C:\\Users\\me\\x%20y.png"),
    "folders below of Windows": ("x.png", "images\\x.png"),
    "folders of the server": ("x.png", "/label-studio/data/media/upload/1/x.png"),
    "a folder above": ("x.png", "../upload/1/x.png"),
    "an upload's address": ("x y.png", "http://localhost:8080/data/upload/1/x%20y.png"),
    "a signed address": ("x.png", "https://s3.example.org/bucket/x.png?X-Amz-Signature=0a&e=1"),
    "a local file": ("x y.png", "/data/local-files/?d=set%201/x%20y.png"),
    "a query without a name": ("x.png", "/data/local-files/?d=set\\x.png"),
    "a percent sign of its own": ("100%25.png", "100%25.png"),
    "no suffix": ("8e26f0a1-scan", "upload/1/8e26f0a1-scan"),
    "no address": ("[x.png", "http://[x.png"),
    "its own words": ("a%20b.png", "a%20b.png"),
}


@pytest.mark.parametrize("name", NAMES)
def test_images_are_found_as_label_studio_names_them(tmp_path: Path, name: str) -> None:
    stored, written = NAMES[name]
    content = coco()
    content["images"][0]["file_name"] = written
    file = coco_folder(tmp_path, content)
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / stored)
    (found,) = (sample for sample in load_dataset(file) if sample.concepts == {"polyp"})
    assert found.image_path.samefile(tmp_path / "images" / stored)
    assert found.image().shape == (H, W, 3)


def test_the_own_words_of_a_name_come_first(tmp_path: Path) -> None:
    content = coco()
    content["images"][0]["file_name"] = "a%20b.png"
    file = coco_folder(tmp_path, content)
    for name in ("a b.png", "a%20b.png"):
        save(tmp_path / "images" / name, picture())
    assert load_dataset(file).samples[0].image_path.name == "a%20b.png"


def test_one_image_under_two_names_is_an_error(tmp_path: Path) -> None:
    content = coco()
    for item, folder in zip(content["images"], ("one", "two"), strict=True):
        item["file_name"] = f"{folder}/a.png"
    with pytest.raises(DatasetError, match="1 images under several names"):
        load_dataset(coco_folder(tmp_path, content))


@pytest.mark.parametrize(
    ("height", "width", "words"),
    [
        (60_000, 60_000, "60,000 × 60,000 pixels"),
        (10**30, 1, "more than the limit"),
        (0, 5, "empty"),
        (-3, 5, "empty"),
        (float("inf"), 5, "not a valid COCO file"),
        (None, 5, "not a valid COCO file"),
    ],
)
def test_sizes_that_no_image_has_are_refused(
    tmp_path: Path, height: Any, width: int, words: str
) -> None:
    content = coco()
    content["images"][0] |= {"height": height, "width": width}
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match=words):
            load_dataset(coco_folder(tmp_path, content))
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_a_polygon_of_many_long_edges_is_filled_piece_by_piece() -> None:
    # 40,000 edges up and down a column of 200 pixels: 8 million crossings.
    x = np.linspace(0, 40, 40_000)
    corners = np.stack([x, np.tile([0.0, 200.0], 20_000)], 1)
    tracemalloc.start()
    try:
        fill_polygon(corners, 200, 50)
        assert tracemalloc.get_traced_memory()[1] < 150 * 2**20
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError, match="winds to and fro"):
        fill_polygon(np.tile([[0.0, 0.0], [1.0, 1e8]], (10, 1)), 10**8, 1)


def test_annotations_of_an_image_that_is_not_listed_are_an_error(tmp_path: Path) -> None:
    file = coco_folder(tmp_path, coco(images=coco()["images"][:1]))
    with pytest.raises(DatasetError, match="annotations of an image 2"):
        load_dataset(file)


def test_json_that_is_not_json_and_files_that_are_neither(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DatasetError, match="cannot be read as JSON"):
        load_dataset(tmp_path / "broken.json")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DatasetError, match="neither a folder nor a COCO"):
        load_dataset(tmp_path / "notes.txt")


def test_two_coco_files_leave_a_choice(tmp_path: Path) -> None:
    coco_folder(tmp_path, coco())
    (tmp_path / "other.json").write_text(json.dumps(coco()))
    (tmp_path / "settings.json").write_text("[1]")
    with pytest.raises(DatasetError, match=r"several COCO files \(coco\.json, other\.json\)"):
        load_dataset(tmp_path)
