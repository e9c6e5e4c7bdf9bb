"""Exporting a dataset version: one folder in one of the formats.

Every file depends on the version's revisions and images alone, in a fixed order and without the
time of the export, so that two exports are the same byte for byte. Each format has `dataset.json`
(where everything comes from), `README.md` (the data card), `groups.csv` and `concepts.json` (which
label a folder is about) beside its own files. `medsam3 evaluate` reads those of `FOR_EVALUATION`.
"""

import csv
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.corrections.datasets import ExportedVersion
from backend.corrections.export import (
    FOR_OTHER_TRAINERS,
    WITHOUT_IMAGES,
    ExportFormat,
    OverlapRule,
    coco,
    coco_video,
    dicom_seg,
    hugging_face,
    masks,
    nifti,
    nnunet,
    yolo,
)
from backend.corrections.export.pages import (
    ExportPage,
    PagesWithImages,
    pages_of,
    write_file,
    write_json,
)
from backend.corrections.mask_store import MaskStore
from backend.errors import DatasetVersionError

if TYPE_CHECKING:
    from medsam3_model.images.limits import ImageLimits

_Writer = Callable[[ExportedVersion, PagesWithImages, Path, MaskStore], None]
_WRITERS: dict[ExportFormat, _Writer] = {
    ExportFormat.COCO: coco.write,
    ExportFormat.COCO_VIDEO: coco_video.write,
    ExportFormat.MASKS: masks.write,
    ExportFormat.NIFTI: nifti.write,
    ExportFormat.HF_DATASET: hugging_face.write,
    ExportFormat.YOLO: yolo.write,
}


def export(
    version: ExportedVersion,
    store: MaskStore,
    folder: Path,
    format_: ExportFormat,
    *,
    statistics: Mapping[str, Any],
    read_image: Callable[[ExportPage], bytes] | None = None,
    overlap: OverlapRule | None = None,
    label_config: str = "",
    limits: "ImageLimits | None" = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write a dataset version.

    Args:
        version: from `open_version`.
        store: the files of its masks.
        folder: is created; must be empty.
        format_: see docs/corrections.md for the files of each.
        statistics: of `statistics.compute`, for the data card.
        read_image: fetches a page's image file; None leaves the images out.
        overlap: for nnU-Net, which keeps one label of a pixel; refused where it is None.
        label_config: the project's, for DICOM SEG, whose codes are in it.
        limits: of a DICOM series that is read; None takes the default ones.
        progress: called with the numbers of pages written and of all pages, after each.

    Returns:
        How many images were written about.

    Raises:
        DatasetVersionError: the folder is not empty, an image is not the one annotated, or the
            format cannot hold what was asked for.
        MaskError: a mask file is missing or damaged.
    """
    writer = _writer(format_, overlap, label_config, limits)
    if format_ in WITHOUT_IMAGES:
        read_image = None
    if read_image is None and format_ in FOR_OTHER_TRAINERS:
        raise DatasetVersionError(f"{format_} is nothing without its images: export with images")
    if folder.exists() and any(folder.iterdir()):
        raise DatasetVersionError(f"{folder} is not empty: name a new folder")
    from medsam3_model.data.exported import CONCEPTS_FILE

    folder.mkdir(parents=True, exist_ok=True)
    pages = pages_of(version.items)
    write_json(folder / "dataset.json", provenance(version, pages))
    write_file(folder / "groups.csv", _groups(pages))
    labels = {name: label for page in pages[:1] for label, name in page.folders.items()}
    write_json(folder / CONCEPTS_FILE, {"folders": labels})

    def with_images() -> PagesWithImages:
        # One image at a time: a version may hold more than fits into memory.
        for number, page in enumerate(pages, start=1):
            yield page, None if read_image is None else _checked(page, read_image(page))
            progress(number, len(pages))

    writer(version, with_images(), folder, store)
    (folder / "README.md").write_text(data_card(version, pages, statistics, format_))
    return len(pages)


def _writer(
    format_: ExportFormat,
    overlap: OverlapRule | None,
    label_config: str,
    limits: "ImageLimits | None",
) -> _Writer:
    from medsam3_model.images.limits import DEFAULT_LIMITS

    if format_ is ExportFormat.NNUNET:
        return partial(nnunet.write, overlap=overlap or OverlapRule.REFUSE)
    if overlap is not None:
        raise DatasetVersionError(f"{format_} keeps all labels of a pixel: leave out --overlap")
    if format_ is ExportFormat.DICOM_SEG:
        return partial(dicom_seg.write, label_config=label_config, limits=limits or DEFAULT_LIMITS)
    return _WRITERS[format_]


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
                "concepts": {concept.label: concept.area for concept in page.concepts},
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
            counts["regions"] += sum(instance.label == concept.label for instance in page.instances)
    splits = [page.item.split for page in pages]
    groups = {page.item.task.group for page in pages}
    annotators = sorted({page.item.task.annotator for page in pages if page.item.task.annotator})
    overall = statistics["overall"]
    hub = format_ is ExportFormat.HF_DATASET
    lines = [
        *(["---", f"pretty_name: {version.name}", "---", ""] if hub else []),
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


def _groups(pages: Sequence[ExportPage]) -> bytes:
    """`groups.csv`, which says for every format what must stay on one side of a split."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("name", "group", "split", "task"))
    for page in pages:
        task = page.item.task
        rows.writerow((page.stem, task.group, page.item.split, task.task_id))
    return table.getvalue().encode()


def _checked(page: ExportPage, content: bytes) -> bytes:
    """The image file, if it is the one that was annotated."""
    if hashlib.sha256(content).hexdigest() != page.image.hash:
        raise DatasetVersionError(
            f"the image of task {page.item.task.task_id} is not the one that was annotated: "
            "export without images, or put the image back"
        )
    return content


def _percent(share: float | None) -> str:
    return "no suggestions" if share is None else f"{100 * share:.1f} %"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
