"""NIfTI: a binary volume per task and concept, `masks/CONCEPT/task-....nii.gz`, (x, y, page)."""

import gzip
from itertools import groupby
from pathlib import Path

import numpy as np

from backend.corrections.datasets import ExportedVersion
from backend.corrections.export.pages import PagesWithImages, write_file
from backend.corrections.mask_store import MaskStore
from backend.errors import DatasetVersionError


def write(version: ExportedVersion, pages: PagesWithImages, folder: Path, masks: MaskStore) -> None:
    """Write a dataset version into a folder."""
    import nibabel

    from medsam3_model.data.masks import PIXEL_VOLUME

    for _, of_task in groupby(pages, key=lambda entry: entry[0].item):
        slices = []
        for page, content in of_task:
            if content is not None:
                write_file(folder / "images" / page.file_name(content), content)
            slices.append(page)
        stem = slices[0].stem.partition("-page-")[0]
        labels = sorted({concept.label for page in slices for concept in page.concepts})
        # A volume has one size, also where a page has no mask: nothing is invented or stretched.
        if labels and len({page.size for page in slices}) > 1:
            raise DatasetVersionError(
                f"the pages of task {slices[0].item.task.task_id} differ in size, which a volume "
                "cannot hold: export as masks or coco"
            )
        for label in labels:
            volume = np.zeros((*slices[0].size[::-1], len(slices)), np.uint8)
            for index, page in enumerate(slices):
                for concept in page.concepts:
                    if concept.label == label:
                        volume[:, :, index] = masks.get(concept.mask_hash).T
            # Without the time of writing, which gzip would put into its header.
            file = nibabel.Nifti1Image(volume, np.eye(4))
            file.header["descrip"] = PIXEL_VOLUME
            content = gzip.compress(file.to_bytes(), mtime=0)
            write_file(folder / "masks" / slices[0].folder(label) / f"{stem}.nii.gz", content)
