"""The pages of an export, and the files that every format writes."""

import hashlib
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.corrections.datasets import VersionItem
from backend.corrections.revisions import CorrectedConcept, CorrectedInstance, PageImage
from backend.corrections.submissions import BOX_SHAPES
from backend.errors import DatasetVersionError

# Bytes of a folder's name; the least of file systems in use, those that encrypt names, take 143.
_LONGEST_NAME = 100
# The first letter of a device's name, which is encoded.
_DEVICES = r"^[CPANL](?=(?:ON|RN|UX|UL|OM[0-9¹²³]|PT[0-9¹²³])(?:\.|\Z))"


@dataclass(frozen=True)
class ExportPage:
    """One image of the export.

    Attributes:
        stem: names its files.
        folders: the folder of every label of the version.
    """

    stem: str
    folders: Mapping[str, str]
    item: VersionItem
    item_index: int
    image: PageImage
    concepts: tuple[CorrectedConcept, ...]
    instances: tuple[CorrectedInstance, ...]

    def file_name(self, content: bytes) -> str:
        """The image's file name: the stem with the suffix of what is in the file.

        Raises `DatasetVersionError` for a file that `medsam3 evaluate` could not read.
        """
        from medsam3_model.images.formats import image_suffix

        suffix = image_suffix(content)
        if suffix is None:
            raise DatasetVersionError(
                f"the image of task {self.item.task.task_id} is in no format that can be read: "
                "export without images, or skip the task in Label Studio"
            )
        return self.stem + suffix

    def folder(self, label: str) -> str:
        """The folder of a label's masks."""
        return self.folders[label]

    def instances_of(self, label: str) -> list[CorrectedInstance]:
        """The regions whose union is the label's mask: of boxes and outlines the outlines."""
        of_label = [instance for instance in self.instances if instance.label == label]
        outlines = [instance for instance in of_label if instance.shape not in BOX_SHAPES]
        return outlines or of_label

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
    tasks = [item.task for item in items]
    labels = {concept.label for task in tasks for concept in task.concepts}
    labels |= {instance.label for task in tasks for instance in task.instances}
    folders = folder_names(labels - {""})
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
                    folders=folders,
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


def folder_names(labels: Iterable[str]) -> dict[str, str]:
    """A folder for each label: no two are the same on any file system.

    Some file systems take capitals and small letters, or the two spellings of an accented letter,
    for the same, and none has names of any length. So a name that is not the label's alone, or is
    long, ends with the first digits of its SHA-256. `concepts.json` leads back to the label.
    """
    names = {label: folder_name(label) for label in sorted(set(labels))}
    taken = Counter(_as_compared(name) for name in names.values())
    for label, name in names.items():
        if taken[_as_compared(name)] > 1 or len(name.encode()) > _LONGEST_NAME:
            start = name.encode()[:_LONGEST_NAME].decode(errors="ignore").rstrip(". ")
            names[label] = f"{start}~{hashlib.sha256(label.encode()).hexdigest()[:8]}"
    return names


def _as_compared(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def folder_name(label: str) -> str:
    """A label as the name of a folder; what file systems refuse is percent-encoded."""

    def encoded(match: re.Match[str]) -> str:
        return f"%{ord(match.group()):02X}"

    safe = re.sub(r'[%/\\:*?"<>|\x00-\x1f\x7f]', encoded, label)
    safe = re.sub(r"^\.|[. ]\Z", encoded, safe) or "%00"
    # Names of devices, on Windows, with whatever follows a dot.
    return re.sub(_DEVICES, encoded, safe, flags=re.IGNORECASE)


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
