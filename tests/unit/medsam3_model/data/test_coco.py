"""COCO files written by hand or by pycocotools, read back."""

import json
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
            {"image_id": 2, "category_id": 5, "bbox": [1, 2, 3, 4]},  # a box alone is no mask
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
        7,
    ],
)
def test_coco_segmentations_that_are_wrong(tmp_path: Path, segmentation: Any) -> None:
    content = coco()
    content["annotations"][0]["segmentation"] = segmentation
    sample = load_dataset(coco_folder(tmp_path, content)).samples[0]
    with pytest.raises(DatasetError, match=r"'a\.png'.*cannot be read"):
        sample.read("polyp")


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
