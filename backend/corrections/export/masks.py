"""Masks: the folder that `medsam3_model.data.datasets` reads, and the same as Label Studio's tasks.

`masks/CONCEPT/` has a binary PNG per image, `instances/CONCEPT/` one number per region.
"""

from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from backend.corrections.datasets import ExportedVersion
from backend.corrections.export.pages import (
    ExportPage,
    PagesWithImages,
    write_file,
    write_json,
    write_png,
)
from backend.corrections.mask_store import MaskStore


def write(version: ExportedVersion, pages: PagesWithImages, folder: Path, masks: MaskStore) -> None:
    """Write a dataset version into a folder."""
    tasks: list[dict[str, Any]] = []
    labels: set[str] = set()
    for page, content in pages:
        if content is not None:
            write_file(folder / "images" / page.file_name(content), content)
        file_name = f"{page.stem}.png"
        for concept in page.concepts:
            path = folder / "masks" / page.folder(concept.label) / file_name
            write_png(path, masks.get(concept.mask_hash))
        for label in sorted({one.label for one in page.instances if one.label}):
            numbered = np.zeros(page.size, np.uint16)
            for number, instance in enumerate(page.instances_of(label), start=1):
                numbered[masks.get(instance.mask_hash)] = number
            write_png(folder / "instances" / page.folder(label) / file_name, numbered)
            labels.add(label)
        image = page.image.reference if content is None else f"images/{page.file_name(content)}"
        tasks.append(_task(page, image, masks))
    write_json(folder / "label_studio.json", tasks)
    tags = "".join(f"    <Label value={quoteattr(label)}/>\n" for label in sorted(labels))
    config = (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <BrushLabels name="brush" toName="image">\n{tags}  </BrushLabels>\n</View>\n'
    )
    write_file(folder / "label_config.xml", config.encode())


def _task(page: ExportPage, image: str, masks: MaskStore) -> dict[str, Any]:
    """A page as a task of Label Studio with its annotation."""
    from backend.labeling import brush_rle

    height, width = page.size
    task = page.item.task
    result = [
        {
            "id": instance.region_id,
            "from_name": "brush",
            "to_name": "image",
            "type": "brushlabels",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": brush_rle.encode(masks.get(instance.mask_hash)),
                "brushlabels": [instance.label] if instance.label else [],
            },
        }
        for instance in page.instances
    ]
    annotation = {
        "id": task.annotation_id,
        "completed_by": task.annotator,
        "result": result,
        "was_cancelled": False,
        "ground_truth": task.ground_truth,
    }
    return {
        "id": task.task_id,
        "data": {"image": image, "group": task.group},
        "annotations": [annotation],
    }
