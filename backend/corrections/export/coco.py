"""COCO: `annotations.json`, `train.json` and `val.json` with run lengths, `polygons.json` without.

The run lengths are exact. Other tools, among them Label Studio's import, read polygons only.
"""

from pathlib import Path
from typing import Any

import numpy as np

from backend.corrections.datasets import ExportedVersion
from backend.corrections.export.pages import PagesWithImages, write_file, write_json
from backend.corrections.mask_store import MaskStore
from backend.labeling.masks import Mask, extent


def write(version: ExportedVersion, pages: PagesWithImages, folder: Path, masks: MaskStore) -> None:
    """Write a dataset version into a folder."""
    from backend.labeling.polygons import outline

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    polygons: dict[int, list[list[float]]] = {}
    for page, content in pages:
        height, width = page.size
        image = {
            "id": len(images) + 1,
            "file_name": page.image.reference if content is None else page.file_name(content),
            "height": height,
            "width": width,
            "split": page.item.split,
            "group": page.item.task.group,
            "task": page.item.task.task_id,
        }
        images.append(image)
        if content is not None:
            write_file(folder / "images" / page.file_name(content), content)
        labels = sorted({instance.label for instance in page.instances})
        for instance in (one for label in labels for one in page.instances_of(label)):
            mask = masks.get(instance.mask_hash)
            box = extent(mask)
            if box is None or not instance.label:
                continue
            top, left, bottom, right = box
            id_ = len(annotations) + 1
            polygons[id_] = [
                [round(float(value), 2) for point in ring for value in point]
                for ring in outline(mask)
            ]
            annotations.append(
                {
                    "id": id_,
                    "image_id": image["id"],
                    # The label until all labels are known, see below.
                    "category_id": instance.label,
                    "segmentation": run_lengths(mask),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "region": instance.region_id,
                }
            )
    drawn_labels = sorted({annotation["category_id"] for annotation in annotations})
    numbers = {label: number for number, label in enumerate(drawn_labels, start=1)}
    for annotation in annotations:
        annotation["category_id"] = numbers[annotation["category_id"]]

    def write_part(name: str, images: list[dict[str, Any]], annotations: Any) -> None:
        content = {
            "info": {"description": version.name, "version": version.digest},
            "licenses": [],
            "categories": [{"id": number, "name": label} for label, number in numbers.items()],
            "images": images,
            "annotations": annotations,
        }
        write_json(folder / name, content)

    write_part("annotations.json", images, annotations)
    for split in ("train", "val"):
        of_split = [image for image in images if image["split"] == split]
        ids = {image["id"] for image in of_split}
        drawn = [annotation for annotation in annotations if annotation["image_id"] in ids]
        write_part(f"{split}.json", of_split, drawn)
    outlined = [{**drawn, "segmentation": polygons[drawn["id"]]} for drawn in annotations]
    write_part("polygons.json", images, outlined)


def run_lengths(mask: Mask) -> dict[str, object]:
    """A mask bool (H, W) as `{"size": [H, W], "counts": "..."}`, columns first.

    The code is that of `pycocotools` (`rleEncode`, `rleToString`): from the fourth count on the
    difference to the last but one is written, in groups of five bits, lowest first. Each group is
    one character: its five bits, a sixth that says that more follow, and 48 ("0") added.
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(changes, prepend=0, append=flat.size).tolist()
    if flat.size and flat[0]:
        counts.insert(0, 0)  # runs begin with background
    characters = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            # The fifth bit is the sign, so the rest may be left out only if it repeats that bit.
            more = value != (-1 if bits & 16 else 0)
            characters.append(chr((bits | 32 if more else bits) + 48))
    return {"size": [int(side) for side in mask.shape], "counts": "".join(characters)}
