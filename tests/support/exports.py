"""Dataset versions of made-up corrections, written to disk as `medsam3 export` does."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backend.corrections.cropped_mask import CroppedMask
from backend.corrections.datasets import ExportedVersion, VersionItem
from backend.corrections.export import ExportFormat
from backend.corrections.export.export import export
from backend.corrections.mask_store import MaskStore
from backend.corrections.revisions import (
    CorrectedConcept,
    CorrectedInstance,
    CorrectedTask,
    PageImage,
)
from backend.volumes.sources import StackSource
from medsam3_model.data.datasets import load_dataset
from medsam3_model.data.samples import Dataset
from medsam3_model.evaluation.evaluation import parse_prompts

H, W = 12, 16
FIGURES = {
    "overall": {"accepted": 0, "edited": 0, "rejected": 0, "added": 0, "acceptance_rate": None}
}


@dataclass(frozen=True)
class Exported:
    """A version on disk: its masks by stem and label, and what is read of it."""

    folder: Path
    masks: Mapping[tuple[str, str], np.ndarray]

    def check(self, labels: list[str]) -> Dataset:
        dataset = load_dataset(self.folder)
        assert dataset.concepts == tuple(sorted(labels))
        assert parse_prompts([], dataset) == {label: label for label in labels}
        found = {
            (sample.name, label): truth.mask
            for sample in dataset
            for label in labels
            if (truth := sample.read(label)) is not None
        }
        assert found.keys() == self.masks.keys()
        for key, mask in self.masks.items():
            assert np.array_equal(found[key], mask), key
        return dataset


def png(height: int = H, width: int = W) -> bytes:
    buffer = io.BytesIO()
    grey = np.arange(height * width).astype(np.uint8).reshape(height, width)
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()


def exported(
    folder: Path,
    format_: ExportFormat,
    drawn: list[list[dict[str, np.ndarray]]],
    image: bytes | list[bytes] | None = None,
    reference: str = "/data/upload/1/x.png",
    stacks: Mapping[int, StackSource] | None = None,
    **changes: Any,
) -> Exported:
    """Write tasks, each a list of pages with their masks by label, in a format."""
    shapes = {mask.shape for pages in drawn for page in pages for mask in page.values()}
    height, width = next(iter(shapes), (H, W))
    # One file for all pages, or one for each task.
    image = image or png(height, width)
    contents = image if isinstance(image, list) else [image] * len(drawn)
    store = MaskStore(str(folder / "store"))
    masks: dict[tuple[str, str], np.ndarray] = {}
    items = []
    for number, pages in enumerate(drawn, start=1):
        concepts, instances = [], []
        for index, page in enumerate(pages):
            stem = f"task-{number:08d}" + (f"-page-{index:04d}" if len(pages) > 1 else "")
            for label, mask in page.items():
                (name,) = store.put_all([CroppedMask.of(mask)])
                concepts.append(
                    CorrectedConcept(index, label, height, width, int(mask.sum()), name)
                )
                instances.append(
                    CorrectedInstance(index, label, label, "brushlabels", int(mask.sum()), name)
                )
                masks[stem, label] = mask
        task = CorrectedTask(
            revision_id=f"r{number}",
            annotation_id=number,
            project_id=7,
            task_id=number,
            annotator=1,
            updated_at=datetime(2026, 1, 1, tzinfo=UTC),
            content_hash="c",
            ground_truth=False,
            lead_time=None,
            model_version=None,
            group=f"patient {number // 2}",
            images=tuple(
                PageImage(reference, sha256(contents[number - 1]), width, height) for _ in pages
            ),
            concepts=tuple(concepts),
            instances=tuple(instances),
        )
        items.append(VersionItem(task, "val" if number % 2 else "train"))
    version = ExportedVersion(7, "spring", "d" * 64, 0, tuple(items), stacks or {})
    export(
        version,
        store,
        folder / "out",
        format_,
        statistics=FIGURES,
        **{"read_image": lambda page: contents[page.item.task.task_id - 1], **changes},
    )
    return Exported(folder / "out", masks)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
