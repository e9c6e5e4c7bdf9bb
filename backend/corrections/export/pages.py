"""The pages of an export, and the files that every format writes."""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.corrections.datasets import VersionItem
from backend.corrections.revisions import CorrectedConcept, CorrectedInstance, PageImage
from backend.errors import DatasetVersionError


@dataclass(frozen=True)
class ExportPage:
    """One image of the export: `stem` names its files."""

    stem: str
    item: VersionItem
    item_index: int
    image: PageImage
    concepts: tuple[CorrectedConcept, ...]
    instances: tuple[CorrectedInstance, ...]

    @property
    def file_name(self) -> str:
        """The image's file name: the stem, with the ending of the address."""
        ending = re.search(r"\.(nii\.gz|[A-Za-z0-9]{1,5})$", self.image.reference.split("?")[0])
        return f"{self.stem}.{ending.group(1).lower()}" if ending else self.stem

    @property
    def size(self) -> tuple[int, int]:
        """Height and width: of the masks, or of the image where there is none."""
        for concept in self.concepts:
            return concept.height, concept.width
        if self.image.height is None or self.image.width is None:
            raise DatasetVersionError(
                f"task {self.item.task.task_id} holds no mask, and the size of its image is unknown"
            )
        return self.image.height, self.image.width


# Pages with their image files, None where images are left out.
PagesWithImages = Iterable[tuple[ExportPage, bytes | None]]


def pages_of(items: Sequence[VersionItem]) -> list[ExportPage]:
    """All images of a version, in the order of tasks, annotations and pages."""
    pages = []
    annotations = Counter(item.task.task_id for item in items)
    for item in items:
        task = item.task
        stem = f"task-{task.task_id:08d}"
        if annotations[task.task_id] > 1:
            stem += f"-annotation-{task.annotation_id:08d}"
        for index, image in enumerate(task.images):
            pages.append(
                ExportPage(
                    stem=stem if len(task.images) == 1 else f"{stem}-page-{index:04d}",
                    item=item,
                    item_index=index,
                    image=image,
                    concepts=tuple(
                        concept for concept in task.concepts if concept.item_index == index
                    ),
                    instances=tuple(
                        instance for instance in task.instances if instance.item_index == index
                    ),
                )
            )
    return pages


def folder_name(label: str) -> str:
    """A label as the name of a folder; what file systems refuse is percent-encoded."""

    def encoded(match: re.Match[str]) -> str:
        return f"%{ord(match.group()):02X}"

    safe = re.sub(r'[%/\\:*?"<>|\x00-\x1f]', encoded, label)
    return re.sub(r"^\.|[. ]$", encoded, safe) or "%00"


def write_file(path: Path, content: bytes) -> None:
    """Write a file into a folder that is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_json(path: Path, content: object) -> None:
    """JSON with sorted keys, ended by a newline."""
    write_file(
        path, f"{json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False)}\n".encode()
    )


def write_png(path: Path, pixels: NDArray[Any]) -> None:
    """A greyscale PNG of pixels (H, W): bool as 0 and 255, uint16 as it is."""
    from PIL import Image

    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=False, compress_level=6)
    write_file(path, buffer.getvalue())
