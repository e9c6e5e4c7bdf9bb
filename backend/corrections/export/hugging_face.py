"""Hugging Face: `train/` and `val/` with a `metadata.jsonl`, for `load_dataset("imagefolder")`."""

import json
from pathlib import Path
from typing import Any

from backend.corrections.datasets import ExportedVersion
from backend.corrections.export.pages import PagesWithImages, write_file, write_png
from backend.corrections.mask_store import MaskStore


def write(version: ExportedVersion, pages: PagesWithImages, folder: Path, masks: MaskStore) -> None:
    """Write a dataset version into a folder; one line of metadata per image and concept."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for page, content in pages:
        task, split = page.item.task, page.item.split
        if content is not None:
            write_file(folder / split / "images" / page.file_name(content), content)
        for concept in page.concepts:
            name = f"masks/{page.folder(concept.label)}/{page.stem}.png"
            write_png(folder / split / name, masks.get(concept.mask_hash))
            rows[split].append(
                {
                    # The first file is what the loader calls "image".
                    "file_name": name if content is None else f"images/{page.file_name(content)}",
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
    for split, of_split in rows.items():
        if of_split:
            lines = "".join(f"{json.dumps(row, sort_keys=True)}\n" for row in of_split)
            write_file(folder / split / "metadata.jsonl", lines.encode())
