"""YOLO and nnU-Net data sets by the rules that their trainers document; masks come back."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from backend.corrections.export import ExportFormat, OverlapRule
from backend.errors import DatasetVersionError
from backend.labeling.polygons import fill
from tests.support.exports import exported, png

SIZE = 96, 128
# Ultralytics takes these, and no image with a side below ten pixels.
YOLO_IMAGES = {".png", ".jpg"}


def disc(y: float, x: float, radius: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def shapes() -> dict[str, np.ndarray]:
    """One mask a label: a ring, a sieve, parts, one pixel, a corner, all of the image, noise."""
    sieve = disc(48, 64, 40)
    for y, x in ((30, 50), (30, 80), (48, 64), (66, 50), (66, 80)):
        sieve &= ~disc(y, x, 6)
    pixel = np.zeros(SIZE, bool)
    pixel[95, 127] = True
    noise = np.random.default_rng(0).random(SIZE) < 0.02
    return {
        "ring": disc(40, 60, 30) & ~disc(44, 56, 15),
        "ring in a ring": disc(48, 64, 45) & ~disc(48, 64, 35) | disc(48, 64, 20),
        "sieve": sieve,
        "parts": disc(20, 20, 9) | disc(70, 100, 5) | disc(80, 20, 2),
        "pixel": pixel,
        "corner": disc(0, 0, 30),
        "all of it": np.ones(SIZE, bool),
        "noise": noise,
        "no: yes # {x} \u2028 🫀 \x7f": disc(50, 50, 20),
    }


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return np.count_nonzero(first & second) / np.count_nonzero(first | second)


def read_yolo(folder: Path) -> dict[tuple[str, str, str], np.ndarray]:
    """Masks by split, image and label, as Ultralytics finds and checks them."""
    described = yaml.safe_load((folder / "data.yaml").read_text("utf-8"))
    assert sorted(described["names"]) == list(range(len(described["names"])))
    found = {}
    for split in ("train", "val"):
        for image in sorted((folder / described[split]).iterdir()):
            assert image.suffix in YOLO_IMAGES
            with Image.open(image) as opened:
                width, height = opened.size
                assert min(opened.size) >= 10
            # The last folder called images becomes labels.
            labels = Path("/labels/".join(str(image).rsplit("/images/", 1))).with_suffix(".txt")
            rows = [line.split() for line in labels.read_text().splitlines()]
            assert len({tuple(row) for row in rows}) == len(rows)
            assert all(len(row) > 6 and len(row) % 2 for row in rows)
            for number, *corners in rows:
                points = np.array(corners, float).reshape(-1, 2)
                assert 0 <= points.min() <= points.max() <= 1
                key = split, image.stem, described["names"][int(number)]
                filled = fill(points * (width, height), height, width)
                found[key] = found.get(key, np.zeros((height, width), bool)) | filled
    return found


def test_yolo_polygons_fill_the_masks(tmp_path: Path) -> None:
    drawn = [[shapes()], [{"ring": disc(50, 90, 25)}], [{}]]
    written = exported(tmp_path, ExportFormat.YOLO, drawn)
    found = read_yolo(written.folder)
    splits = {"task-00000001": "val", "task-00000002": "train", "task-00000003": "val"}
    expected = {(splits[stem], stem, label): mask for (stem, label), mask in written.masks.items()}
    assert found.keys() == expected.keys()
    for key, mask in expected.items():
        assert iou(found[key], mask) >= 0.98, key
    # An image that holds nothing says so by an empty file.
    assert (written.folder / "labels/val/task-00000003.txt").read_bytes() == b""


def test_yolo_refuses_what_polygons_cannot_hold(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random(SIZE) < 0.25
    with pytest.raises(DatasetVersionError, match="more parts or holes than polygons can hold"):
        exported(tmp_path, ExportFormat.YOLO, [[{"noise": noise}]])


def read_nnunet(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """Masks by case and label, checked as nnU-Net verifies a data set before it plans."""
    (root,) = folder.glob("Dataset*")
    assert re.fullmatch(r"Dataset\d{3}_\S+", root.name)
    described = json.loads((root / "dataset.json").read_text())
    assert {"channel_names", "labels", "numTraining", "file_ending"} <= described.keys()
    channels = described["channel_names"]
    assert list(channels) == [str(number) for number in range(len(channels))]
    names = {number: label for label, number in described["labels"].items()}
    assert sorted(names) == list(range(len(names)))
    assert names[0] == "background"
    ending = described["file_ending"]
    # The number of the file's channels follows the case; colours are one file.
    cases = {path.name.removesuffix(f"_0000{ending}") for path in (root / "imagesTr").iterdir()}
    labels = {path.name.removesuffix(ending) for path in (root / "labelsTr").iterdir()}
    assert cases == labels
    assert len(cases) == described["numTraining"]
    (fold,) = json.loads((root / "splits_final.json").read_text())
    assert sorted(fold["train"] + fold["val"]) == sorted(cases)
    found = {}
    for case in sorted(cases):
        image = np.asarray(Image.open(root / "imagesTr" / f"{case}_0000{ending}"))
        numbered = np.asarray(Image.open(root / "labelsTr" / f"{case}{ending}"))
        assert image.shape[:2] == numbered.shape
        assert image.shape[2:] == ((3,) if len(channels) == 3 else ())
        assert set(np.unique(numbered)) <= set(names)
        for number in set(np.unique(numbered)) - {0}:
            found[case, names[number]] = numbered == number
    return found


def apart() -> dict[str, np.ndarray]:
    return {
        "ring": disc(40, 40, 30) & ~disc(44, 36, 15),
        "in the ring": disc(44, 36, 10),
        "parts": disc(80, 110, 9) | disc(20, 110, 2),
    }


@pytest.mark.parametrize("colours", [False, True], ids=["grey", "a coloured image among grey"])
def test_nnunet_label_maps_hold_the_masks(tmp_path: Path, colours: bool) -> None:
    drawn = [[apart()], [{"parts": disc(50, 90, 25)}], [{}]]
    grey = Image.open(io.BytesIO(png(*SIZE)))
    buffer = io.BytesIO()
    Image.merge("RGB", (grey, grey, Image.new("L", grey.size))).save(buffer, "PNG")
    images = [png(*SIZE), buffer.getvalue() if colours else png(*SIZE), png(*SIZE)]
    written = exported(tmp_path, ExportFormat.NNUNET, drawn, images)
    found = read_nnunet(written.folder)
    assert found.keys() == written.masks.keys()
    assert all(np.array_equal(found[key], mask) for key, mask in written.masks.items())
    (root,) = written.folder.glob("Dataset*")
    assert root.name == "Dataset007_spring"
    (fold,) = json.loads((root / "splits_final.json").read_text())
    assert fold == {"train": ["task-00000002"], "val": ["task-00000001", "task-00000003"]}


def test_nnunet_has_one_label_a_pixel(tmp_path: Path) -> None:
    drawn = [[{"Liver": disc(48, 64, 40), "Tumor": disc(40, 60, 10)}]]
    with pytest.raises(DatasetVersionError, match='task 1 "Liver" and "Tumor" have 317 pixels'):
        exported(tmp_path / "refused", ExportFormat.NNUNET, drawn)
    written = exported(
        tmp_path / "resolved", ExportFormat.NNUNET, drawn, overlap=OverlapRule.SMALLEST
    )
    found = read_nnunet(written.folder)
    liver, tumor = drawn[0][0].values()
    assert np.array_equal(found["task-00000001", "Tumor"], tumor)
    assert np.array_equal(found["task-00000001", "Liver"], liver & ~tumor)
    rows = list(csv.DictReader((written.folder / "overlaps.csv").read_text().splitlines()))
    assert rows == [{"name": "task-00000001", "label": "Liver", "pixels": "317"}]


@pytest.mark.parametrize("label", ["background", "Ignore"])
def test_nnunet_refuses_names_that_mean_something_else(tmp_path: Path, label: str) -> None:
    with pytest.raises(DatasetVersionError, match=f'nnU-Net gives "{label}" a meaning'):
        exported(tmp_path, ExportFormat.NNUNET, [[{label: disc(9, 9, 5)}]])


@pytest.mark.parametrize("format_", [ExportFormat.YOLO, ExportFormat.NNUNET])
def test_images_are_upright_files_that_trainers_read(tmp_path: Path, format_: ExportFormat) -> None:
    """A turned JPEG is written as the editor shows it; a plain one stays as it is for YOLO."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, : SIZE[1] // 2] = 250
    turned, plain = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(turned, "JPEG", exif=exif)
    Image.fromarray(pixels).save(plain, "JPEG")
    contents = [turned.getvalue(), plain.getvalue(), png(*SIZE)]
    written = exported(tmp_path, format_, [[{"x": disc(9, 9, 5)}]] * 3, contents)
    files = sorted(path for path in written.folder.rglob("images*/**/task-*") if path.is_file())
    by_name = {path.name[:13]: path for path in files}
    bright = np.asarray(Image.open(by_name["task-00000001"]).convert("L")).mean(axis=0) > 125
    assert not bright[: SIZE[1] // 2 - 8].any()
    assert bright[SIZE[1] // 2 + 8 :].all()
    if format_ is ExportFormat.YOLO:
        assert by_name["task-00000002"].read_bytes() == contents[1]
    with pytest.raises(DatasetVersionError, match="pixels, its masks"):
        exported(tmp_path / "small", format_, [[{"x": disc(9, 9, 5)}]], png(20, 30))
    with pytest.raises(DatasetVersionError, match="export with images"):
        exported(tmp_path / "none", format_, [[{"x": disc(9, 9, 5)}]], read_image=None)
    with pytest.raises(DatasetVersionError, match="leave out --overlap"):
        exported(tmp_path / "o", ExportFormat.COCO, [[{}]], overlap=OverlapRule.SMALLEST)
