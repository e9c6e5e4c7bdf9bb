"""Exporting a dataset version: COCO, folders of masks, NIfTI, or a Hugging Face folder.

Every file depends on the version's revisions and images alone, in a fixed order and without the
time of the export, so that two exports are the same byte for byte. Each format has `dataset.json`
(where everything comes from) and `README.md` (the data card) beside its own files.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from backend.corrections.datasets import ExportedVersion, VersionItem
from backend.corrections.mask_store import MaskStore
from backend.corrections.revisions import CorrectedConcept, CorrectedInstance, PageImage
from backend.errors import DatasetVersionError


class ExportFormat(StrEnum):
    """What can be written."""

    COCO = "coco"
    MASKS = "masks"
    NIFTI = "nifti"
    HF_DATASET = "hf-dataset"


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
        found = re.search(r"\.(nii\.gz|[A-Za-z0-9]{1,5})$", self.image.reference.split("?")[0])
        return f"{self.stem}.{found.group(1).lower()}" if found else self.stem

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


ReadImage = Callable[[ExportPage], bytes]


def export(
    version: ExportedVersion,
    masks: MaskStore,
    folder: Path,
    format_: ExportFormat,
    *,
    statistics: Mapping[str, Any],
    read_image: ReadImage | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write a dataset version.

    Args:
        version: from `open_version`.
        masks: the files of its masks.
        folder: is created; must be empty.
        format_: see docs/corrections.md for the files of each.
        statistics: of `describe_items`, for the data card.
        read_image: fetches a page's image file; None leaves the images out.
        progress: called with the numbers of pages written and of all pages, after each.

    Returns:
        How many images were written about.

    Raises:
        DatasetVersionError: the folder is not empty, or an image is not the one annotated.
        MaskError: a mask file is missing or damaged.
    """
    from backend.corrections.export.formats import WRITERS

    if folder.exists() and any(folder.iterdir()):
        raise DatasetVersionError(f"{folder} is not empty: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    pages = pages_of(version.items)
    write_json(folder / "dataset.json", provenance(version, pages))
    writer = WRITERS[format_](folder, masks)
    for number, page in enumerate(pages, start=1):
        content = None if read_image is None else checked(page, read_image(page))
        writer.add(page, content)
        progress(number, len(pages))
    writer.finish(version)
    (folder / "README.md").write_text(data_card(version, pages, statistics, format_))
    return len(pages)


def pages_of(items: Sequence[VersionItem]) -> list[ExportPage]:
    """All images of a version, in the order of tasks, annotations and pages."""
    found = []
    annotations = Counter(item.task.task_id for item in items)
    for item in items:
        task = item.task
        stem = f"task-{task.task_id:08d}"
        if annotations[task.task_id] > 1:
            stem += f"-annotation-{task.annotation_id:08d}"
        for index, image in enumerate(task.images):
            found.append(
                ExportPage(
                    stem=stem if len(task.images) == 1 else f"{stem}-page-{index:04d}",
                    item=item,
                    item_index=index,
                    image=image,
                    concepts=tuple(one for one in task.concepts if one.item_index == index),
                    instances=tuple(one for one in task.instances if one.item_index == index),
                )
            )
    return found


def provenance(version: ExportedVersion, pages: Sequence[ExportPage]) -> dict[str, Any]:
    """Where each image's masks come from, as JSON."""
    return {
        "name": version.name,
        "project": version.project_id,
        "digest": version.digest,
        "forgotten": version.forgotten,
        "images": [
            {
                "name": page.stem,
                "reference": page.image.reference,
                "sha256": page.image.hash,
                "split": page.item.split,
                "group": page.item.task.group,
                "task": page.item.task.task_id,
                "page": page.item_index,
                "annotation": page.item.task.annotation_id,
                "annotator": page.item.task.annotator,
                "submitted_at": page.item.task.updated_at.isoformat(),
                "content_hash": page.item.task.content_hash,
                "ground_truth": page.item.task.ground_truth,
                "model_version": page.item.task.model_version,
                "concepts": {one.label: one.area for one in page.concepts},
            }
            for page in pages
        ],
    }


def data_card(
    version: ExportedVersion,
    pages: Sequence[ExportPage],
    statistics: Mapping[str, Any],
    format_: ExportFormat,
) -> str:
    """What is in the dataset, for people."""
    by_concept: dict[str, dict[str, int]] = {}
    for page in pages:
        for concept in page.concepts:
            counts = by_concept.setdefault(concept.label, {"train": 0, "val": 0, "regions": 0})
            counts[page.item.split] += 1
            counts["regions"] += sum(one.label == concept.label for one in page.instances)
    splits = [page.item.split for page in pages]
    groups = {page.item.task.group for page in pages}
    annotators = sorted({page.item.task.annotator for page in pages if page.item.task.annotator})
    overall = statistics["overall"]
    lines = [
        *(
            ["---", f"pretty_name: {version.name}", "---", ""]
            if format_ is ExportFormat.HF_DATASET
            else []
        ),
        f"# Dataset {version.name} of project {version.project_id}",
        "",
        f"{len(pages)} images of {len(groups)} groups; {splits.count('train')} for training and "
        f"{splits.count('val')} for validation. A group is never in both.",
        "",
        f"Annotators: {', '.join(map(str, annotators)) or 'unknown'} (ids in Label Studio).",
        f"Of the suggested regions {overall['accepted']} were accepted, {overall['edited']} edited "
        f"and {overall['rejected']} rejected; {overall['added']} were added by hand.",
        f"Acceptance rate: {_percent(overall['acceptance_rate'])}.",
        "",
        "| concept | training images | validation images | regions |",
        "| --- | --- | --- | --- |",
        *(
            f"| {_cell(label)} | {counts['train']} | {counts['val']} | {counts['regions']} |"
            for label, counts in sorted(by_concept.items())
        ),
        "",
        f"Content: `{version.digest}`. Where each mask comes from is in `dataset.json`.",
    ]
    if version.forgotten:
        lines += ["", f"{version.forgotten} annotations of this version were removed on request."]
    return "\n".join(lines) + "\n"


def checked(page: ExportPage, content: bytes) -> bytes:
    """The image file, if it is the one that was annotated."""
    if hashlib.sha256(content).hexdigest() != page.image.hash:
        raise DatasetVersionError(
            f"the image of task {page.item.task.task_id} is not the one that was annotated: "
            "export without images, or put the image back"
        )
    return content


def write_json(path: Path, content: object) -> None:
    """JSON with sorted keys, ended by a newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n")


def folder_name(label: str) -> str:
    """A label as the name of a folder; what file systems refuse is percent-encoded."""
    safe = re.sub(r'[%/\\:*?"<>|\x00-\x1f]', lambda one: f"%{ord(one.group()):02X}", label)
    return re.sub(r"^\.|[. ]$", lambda one: f"%{ord(one.group()):02X}", safe) or "%00"


def labels_of(pages: Sequence[ExportPage]) -> list[str]:
    """All labels, sorted."""
    return sorted({concept.label for page in pages for concept in page.concepts})


def by_label(
    instances: Sequence[CorrectedInstance],
) -> Iterator[tuple[str, list[CorrectedInstance]]]:
    """The instances of each label, both in a fixed order."""
    for label in sorted({one.label for one in instances}):
        yield label, [one for one in instances if one.label == label]


def _percent(share: float | None) -> str:
    return "no suggestions" if share is None else f"{100 * share:.1f} %"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
