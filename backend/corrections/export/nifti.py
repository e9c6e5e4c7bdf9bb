"""NIfTI: a binary volume per task and concept, `masks/CONCEPT/task-....nii.gz`.

A stack that was made of a volume gets its masks in the volume's own geometry: as many voxels, and
the same affine bit by bit. Other pages are no volume of a patient: theirs is (x, y, page).
"""

import gzip
import hashlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backend.corrections.datasets import ExportedVersion
from backend.corrections.export.pages import ExportPage, PagesWithImages, write_file
from backend.corrections.export.volumes import check_sizes, checked_geometry, drawn_masks
from backend.corrections.mask_store import MaskStore
from backend.errors import DatasetVersionError
from backend.labeling.masks import Mask
from backend.volumes.sources import StackSource

if TYPE_CHECKING:
    from medsam3_model.images.geometry import StackGeometry

# Texts of a header, which may be a patient's; the second version of NIfTI has fewer.
_TEXTS = ("descrip", "aux_file", "db_name", "intent_name")


def write(version: ExportedVersion, pages: PagesWithImages, folder: Path, masks: MaskStore) -> None:
    """Write a dataset version into a folder."""
    for _, of_task in groupby(pages, key=lambda entry: entry[0].item):
        slices = []
        for page, content in of_task:
            if content is not None:
                write_file(folder / "images" / page.file_name(content), content)
            slices.append(page)
        stem = slices[0].stem.partition("-page-")[0]
        labels = sorted({concept.label for page in slices for concept in page.concepts})
        if not labels:
            continue
        check_sizes(slices)
        stack = version.stacks.get(slices[0].item.task.task_id)
        volume = _pixel_volume if stack is None else _in_source(stack, slices)
        for label in labels:
            drawn = drawn_masks(slices, label, masks)
            # Without the time of writing, which gzip would put into its header.
            content = gzip.compress(volume(slices, drawn).to_bytes(), mtime=0)
            write_file(folder / "masks" / slices[0].folder(label) / f"{stem}.nii.gz", content)


def _pixel_volume(slices: Sequence[ExportPage], drawn: dict[int, Mask]) -> Any:
    """Masks by page as (x, y, page); the unit affine says nothing, and the description so."""
    import nibabel

    from medsam3_model.data.masks import PIXEL_VOLUME

    volume = np.zeros((*slices[0].size[::-1], len(slices)), np.uint8)
    for index, page in enumerate(slices):
        if page.item_index in drawn:
            volume[:, :, index] = drawn[page.item_index].T
    image = nibabel.Nifti1Image(volume, np.eye(4))
    image.header["descrip"] = PIXEL_VOLUME
    return image


def _in_source(stack: StackSource, slices: Sequence[ExportPage]) -> Any:
    """What makes a NIfTI image of masks by page, in the geometry of the stack's source."""
    from medsam3_model.images.geometry import masks_to_source

    task_id = slices[0].item.task.task_id
    geometry = checked_geometry(stack, slices)
    if geometry.affine is None:
        return _pixel_volume
    header = _source_header(stack, geometry, task_id) if geometry.kind == "nifti" else None

    def image(slices: Sequence[ExportPage], drawn: dict[int, Mask]) -> Any:
        volume = masks_to_source(geometry, drawn).astype(np.uint8)
        return _image_of(volume, geometry, header)

    return image


def _source_header(stack: StackSource, geometry: "StackGeometry", task_id: int) -> Any:
    """The header of a NIfTI source: its two transforms and their codes are in no geometry."""
    import nibabel

    path = Path(stack.source)
    header: Any = None
    try:
        with path.open("rb") as file:
            unchanged = hashlib.file_digest(file, "sha256").hexdigest() == stack.source_sha256
        if unchanged:
            header = nibabel.load(path).header
    except OSError:
        header = None
    if header is None or tuple(header.get_best_affine().ravel()) != geometry.affine:
        raise DatasetVersionError(
            f"the volume of task {task_id} is no longer where it was imported from, or has "
            "changed: put it back, or export as masks"
        )
    return header


def _image_of(volume: Any, geometry: "StackGeometry", header: Any) -> Any:
    import nibabel

    if header is None:
        affine: Any = np.array(geometry.affine, np.float64).reshape(4, 4)
        if geometry.kind == "dicom":
            # From (slice, row, column) to NIfTI's habit of naming the fastest axis first.
            volume, affine = volume.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]]
        image = nibabel.Nifti1Image(volume, affine)
        image.set_sform(affine, code="scanner")
        image.set_qform(affine, code="scanner")
        image.header.set_xyzt_units("mm")
        return image
    header, spacing = header.copy(), header["pixdim"].copy()
    header.extensions.clear()
    for name in set(_TEXTS) & set(header.keys()):
        header[name] = b""
    # What is said of the source's values is not true of masks.
    header["cal_min"] = header["cal_max"] = 0
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header.set_data_shape(volume.shape)
    two = isinstance(header, nibabel.Nifti2Header)
    # Without an affine beside it, the header's own transforms stay as they are, bit by bit.
    image = (nibabel.Nifti2Image if two else nibabel.Nifti1Image)(volume, None, header)
    # Of two dimensions the third spacing is lost with the shape, and the qform needs it.
    image.header["pixdim"] = spacing
    return image
