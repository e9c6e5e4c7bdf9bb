"""YOLO segmentation: `data.yaml`, `images/` and `labels/` with a folder for each side of the split.

As Ultralytics documents it: each image has a text file, each of its lines one object, the number of
the class and then the corners x y of one polygon as shares of the image's width and height. A
polygon has neither holes nor parts. So a hole is joined to the outer ring by a cut that runs in
both directions and encloses nothing, and a region in several parts becomes several lines.
"""

from pathlib import Path

import numpy as np

from backend.corrections.datasets import ExportedVersion
from backend.corrections.export.pages import ExportPage, PagesWithImages, write_file
from backend.corrections.export.pictures import upright_file
from backend.corrections.mask_store import MaskStore
from backend.errors import DatasetVersionError
from backend.labeling.masks import Mask, extent

# The least intersection over union of a region with what its polygons fill.
_LEAST_IOU = 0.98
# Digits behind the point: a hundredth of a pixel in an image of 10,000.
_DIGITS = 6


def write(version: ExportedVersion, pages: PagesWithImages, folder: Path, masks: MaskStore) -> None:
    """Write a dataset version into a folder."""
    import yaml

    numbers = {label: number for number, label in enumerate(_labels(version))}
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
    for page, content in pages:
        if content is not None:
            image, suffix = upright_file(page, content)
            write_file(folder / "images" / page.item.split / (page.stem + suffix), image)
        lines = [
            f"{numbers[label]} {ring}\n"
            for label in sorted({instance.label for instance in page.instances} - {""})
            for instance in page.instances_of(label)
            for ring in _rings(page, masks.get(instance.mask_hash))
        ]
        # An empty file says that the image holds nothing.
        path = folder / "labels" / page.item.split / f"{page.stem}.txt"
        write_file(path, "".join(lines).encode())
    described = {
        # Without "path" the folders are looked for beside this file, wherever that is.
        "train": "images/train",
        "val": "images/val",
        "names": {number: label for label, number in numbers.items()},
    }
    text = yaml.safe_dump(described, allow_unicode=True, sort_keys=False, width=2**31)
    write_file(folder / "data.yaml", text.encode())


def _labels(version: ExportedVersion) -> list[str]:
    """The labels of all regions that have pixels, whatever page they are on."""
    return sorted(
        {
            instance.label
            for item in version.items
            for instance in item.task.instances
            if instance.label and instance.area
        }
    )


def _rings(page: ExportPage, mask: Mask) -> list[str]:
    """A region's polygons as text, checked against its mask."""
    from backend.labeling.polygons import fill, outline

    box = extent(mask)
    if box is None:
        return []
    height, width = mask.shape
    rings = [
        np.round(ring / (width, height), _DIGITS)
        for ring in outline(mask, least_dice=0.995, specks=0)
    ]
    top, left, bottom, right = box
    cropped, filled = mask[top:bottom, left:right], np.zeros((bottom - top, right - left), bool)
    for ring in rings:
        filled |= fill(ring * (width, height) - (left, top), *filled.shape)
    union = np.count_nonzero(filled | cropped)
    if np.count_nonzero(filled & cropped) < _LEAST_IOU * union:
        raise DatasetVersionError(
            f"a region of task {page.item.task.task_id} has more parts or holes than polygons can "
            "hold: export as masks or coco"
        )
    return [" ".join(f"{share:.{_DIGITS}f}" for share in ring.ravel()) for ring in rings]
