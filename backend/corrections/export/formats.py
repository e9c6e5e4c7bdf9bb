"""The writers of the export's formats; see docs/corrections.md for their files."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from backend.corrections.datasets import ExportedVersion
from backend.corrections.export.coco_runs import pack
from backend.corrections.export.export import (
    ExportFormat,
    ExportPage,
    by_label,
    folder_name,
    write_json,
)
from backend.corrections.mask_store import MaskStore

BoolMask = NDArray[np.bool_]


class Writer(Protocol):
    """Writes one page at a time, and at the end what needs all of them."""

    def __init__(self, folder: Path, masks: MaskStore) -> None: ...

    def add(self, page: ExportPage, image: bytes | None) -> None:
        """Write a page; `image` is its file, where images are wanted."""

    def finish(self, version: ExportedVersion) -> None:
        """Write the rest."""


class Coco:
    """`annotations.json`, `train.json` and `val.json` with RLE; `polygons.json` for other tools."""

    def __init__(self, folder: Path, masks: MaskStore) -> None:
        self._folder, self._masks = folder, masks
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._polygons: dict[int, list[list[float]]] = {}
        self._labels: set[str] = set()

    def add(self, page: ExportPage, image: bytes | None) -> None:
        from backend.labeling.polygons import outline

        height, width = page.size
        image_id = len(self._images) + 1
        self._images.append(
            {
                "id": image_id,
                "file_name": page.file_name if image is not None else page.image.reference,
                "height": height,
                "width": width,
                "split": page.item.split,
                "group": page.item.task.group,
                "task": page.item.task.task_id,
            }
        )
        if image is not None:
            _write(self._folder / "images" / page.file_name, image)
        for instance in page.instances:
            mask = self._masks.get(instance.mask_hash)
            if not mask.any() or not instance.label:
                continue
            id_ = len(self._annotations) + 1
            self._labels.add(instance.label)
            self._polygons[id_] = [
                [round(float(value), 2) for point in ring for value in point]
                for ring in outline(mask)
            ]
            self._annotations.append(
                {
                    "id": id_,
                    "image_id": image_id,
                    "category_id": instance.label,
                    "segmentation": pack(mask),
                    "bbox": _box(mask),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "region": instance.region_id,
                }
            )

    def finish(self, version: ExportedVersion) -> None:
        numbers = {label: number for number, label in enumerate(sorted(self._labels), start=1)}
        for one in self._annotations:
            one["category_id"] = numbers[one["category_id"]]
        categories = [{"id": number, "name": label} for label, number in numbers.items()]
        self._write("annotations.json", version, categories, self._images, self._annotations)
        for split in ("train", "val"):
            images = [one for one in self._images if one["split"] == split]
            ids = {one["id"] for one in images}
            own = [one for one in self._annotations if one["image_id"] in ids]
            self._write(f"{split}.json", version, categories, images, own)
        outlined = [{**one, "segmentation": self._polygons[one["id"]]} for one in self._annotations]
        self._write("polygons.json", version, categories, self._images, outlined)

    def _write(
        self, name: str, version: ExportedVersion, categories: Any, images: Any, annotations: Any
    ) -> None:
        info = {"description": version.name, "version": version.digest}
        write_json(
            self._folder / name,
            {
                "info": info,
                "licenses": [],
                "categories": categories,
                "images": images,
                "annotations": annotations,
            },
        )


class Masks:
    """The folder that `medsam3_model.data.datasets` reads, and the same as Label Studio's tasks."""

    def __init__(self, folder: Path, masks: MaskStore) -> None:
        self._folder, self._masks = folder, masks
        self._groups: list[tuple[str, ...]] = []
        self._tasks: list[dict[str, Any]] = []
        self._labels: set[str] = set()

    def add(self, page: ExportPage, image: bytes | None) -> None:
        if image is not None:
            _write(self._folder / "images" / page.file_name, image)
        task = page.item.task
        self._groups.append((page.stem, task.group, page.item.split, str(task.task_id)))
        for concept in page.concepts:
            path = self._folder / "masks" / folder_name(concept.label) / f"{page.stem}.png"
            _write(path, _png(self._masks.get(concept.mask_hash).astype(np.uint8) * 255))
        for label, instances in by_label(page.instances):
            numbered = np.zeros(page.size, np.uint16)
            for number, one in enumerate(instances, start=1):
                numbered[self._masks.get(one.mask_hash)] = number
            path = self._folder / "instances" / folder_name(label) / f"{page.stem}.png"
            _write(path, _png(numbered))
        self._tasks.append(self._task(page, image is not None))

    def finish(self, version: ExportedVersion) -> None:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("name", "group", "split", "task"))
        writer.writerows(self._groups)
        _write(self._folder / "groups.csv", table.getvalue().encode())
        write_json(self._folder / "label_studio.json", self._tasks)
        labels = "".join(f"    <Label value={_quoted(one)}/>\n" for one in sorted(self._labels))
        config = (
            '<View>\n  <Image name="image" value="$image"/>\n'
            f'  <BrushLabels name="brush" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
        )
        _write(self._folder / "label_config.xml", config.encode())

    def _task(self, page: ExportPage, with_image: bool) -> dict[str, Any]:
        from backend.labeling import brush_rle

        height, width = page.size
        self._labels |= {one.label for one in page.instances}
        result = [
            {
                "id": one.region_id,
                "from_name": "brush",
                "to_name": "image",
                "type": "brushlabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "format": "rle",
                    "rle": brush_rle.encode(self._masks.get(one.mask_hash)),
                    "brushlabels": [one.label],
                },
            }
            for one in page.instances
        ]
        image = f"images/{page.file_name}" if with_image else page.image.reference
        submission = {
            "id": page.item.task.annotation_id,
            "completed_by": page.item.task.annotator,
            "result": result,
            "was_cancelled": False,
            "ground_truth": page.item.task.ground_truth,
        }
        return {
            "id": page.item.task.task_id,
            "data": {"image": image, "group": page.item.task.group},
            "annotations": [submission],
        }


class Nifti:
    """One binary volume per task and concept: `masks/CONCEPT/task-....nii.gz`, (x, y, page)."""

    def __init__(self, folder: Path, masks: MaskStore) -> None:
        self._folder, self._masks = folder, masks
        self._pages: list[ExportPage] = []

    def add(self, page: ExportPage, image: bytes | None) -> None:
        if image is not None:
            _write(self._folder / "images" / page.file_name, image)
        if self._pages and self._pages[-1].item is not page.item:
            self._write_volumes()
        self._pages.append(page)

    def finish(self, version: ExportedVersion) -> None:
        self._write_volumes()

    def _write_volumes(self) -> None:
        import nibabel

        pages, self._pages = self._pages, []
        stem = pages[0].stem.partition("-page-")[0] if pages else ""
        for label in sorted({one.label for page in pages for one in page.concepts}):
            layers = [
                self._masks.get(one.mask_hash).T
                if (one := next((c for c in page.concepts if c.label == label), None))
                else np.zeros(page.size[::-1], np.bool_)
                for page in pages
            ]
            volume = nibabel.Nifti1Image(np.stack(layers, axis=2).astype(np.uint8), np.eye(4))
            # Without the time of writing, which gzip would put into its header.
            content = gzip.compress(volume.to_bytes(), mtime=0)
            _write(self._folder / "masks" / folder_name(label) / f"{stem}.nii.gz", content)


class HuggingFace:
    """`train/` and `val/` with a `metadata.jsonl`, as `load_dataset("imagefolder")` reads them."""

    def __init__(self, folder: Path, masks: MaskStore) -> None:
        self._folder, self._masks = folder, masks
        self._rows: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}

    def add(self, page: ExportPage, image: bytes | None) -> None:
        task = page.item.task
        home = self._folder / page.item.split
        if image is not None:
            _write(home / "images" / page.file_name, image)
        for concept in page.concepts:
            name = f"masks/{folder_name(concept.label)}/{page.stem}.png"
            _write(home / name, _png(self._masks.get(concept.mask_hash).astype(np.uint8) * 255))
            self._rows[page.item.split].append(
                {
                    # The first file is what the loader calls "image".
                    "file_name": f"images/{page.file_name}" if image is not None else name,
                    "mask_file_name": name,
                    "concept": concept.label,
                    "task": task.task_id,
                    "page": page.item_index,
                    "group": task.group,
                    "annotation": task.annotation_id,
                    "annotator": task.annotator,
                    "reference": page.image.reference,
                }
            )

    def finish(self, version: ExportedVersion) -> None:
        for split, rows in self._rows.items():
            if rows:
                lines = "".join(f"{json.dumps(row, sort_keys=True)}\n" for row in rows)
                _write(self._folder / split / "metadata.jsonl", lines.encode())


WRITERS: dict[ExportFormat, type[Writer]] = {
    ExportFormat.COCO: Coco,
    ExportFormat.MASKS: Masks,
    ExportFormat.NIFTI: Nifti,
    ExportFormat.HF_DATASET: HuggingFace,
}


def _box(mask: BoolMask) -> list[int]:
    """Left, top, width and height in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def _png(pixels: NDArray[Any]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=False, compress_level=6)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _quoted(text: str) -> str:
    from xml.sax.saxutils import quoteattr

    return quoteattr(text)
