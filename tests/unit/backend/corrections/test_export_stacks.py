"""Stacks go back to the geometry of their source, bit by bit, whatever that is."""

import gzip
import hashlib
import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from backend.corrections.export import ExportFormat
from backend.errors import DatasetVersionError
from backend.volumes.sources import StackSource
from medsam3_model.images.geometry import StackGeometry, page_of
from tests.support.exports import exported

ORIENTATIONS = [
    np.array([[sign * (row == axis) for axis in axes] for row, sign in enumerate(signs)], float)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
OBLIQUE = nibabel.eulerangles.euler2mat(0.3, -0.7, 1.9)


def volume_file(
    path: Path, rotation: np.ndarray, shape: tuple[int, ...] = (4, 5, 6), kind: Any = None
) -> Any:
    """A NIfTI file whose two transforms differ in their numbers and codes."""
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([0.7, 1.1, 3.3])
    affine[:3, 3] = -12.3, 45.6, 7.89
    image = (kind or nibabel.Nifti1Image)(np.zeros(shape, np.int16), affine)
    image.set_sform(affine, code=1)
    moved = affine.copy()
    moved[:3, 3] += 0.1
    image.set_qform(moved, code=2)
    image.header["descrip"] = b"Jane Doe"
    image.to_filename(path)
    return nibabel.load(path)


def stack_of(path: Path, **changes: Any) -> tuple[StackSource, StackGeometry]:
    image: Any = nibabel.load(path)
    values = {
        "kind": "nifti",
        "source_shape": image.shape,
        "affine": tuple(float(value) for value in image.affine.ravel()),
        "page_axis": 1,
        "row_axis": 2,
        "column_axis": 0,
        "page_flip": True,
        "row_flip": True,
        "column_flip": False,
        "page_size": (18, 4),
        **changes,
    }
    geometry = StackGeometry(**values)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return StackSource(str(path), digest, geometry.as_json()), geometry


def written(folder: Path, path: Path, **changes: Any) -> tuple[bytes, np.ndarray]:
    """The volume that is exported of random masks, and what must be in it."""
    stack, geometry = stack_of(path, **changes)
    truth = np.random.default_rng(0).random((*geometry.source_shape, 1)[:3]) < 0.5
    truth = truth.reshape(geometry.source_shape[:3])
    flat = StackGeometry(**{**vars(geometry), "source_shape": truth.shape, "time_index": None})
    pages = []
    for page in range(geometry.pages):
        mask = page_of(truth, flat, page)
        rows, columns = (
            big // small for big, small in zip(geometry.page_size, mask.shape, strict=True)
        )
        pages.append({"Tumor": np.repeat(np.repeat(mask, rows, 0), columns, 1)})
    out = exported(folder, ExportFormat.NIFTI, [pages], stacks={1: stack}).folder
    (file,) = (out / "masks" / "Tumor").iterdir()
    return gzip.decompress(file.read_bytes()), truth


def check(content: bytes, source: Any, truth: np.ndarray) -> None:
    kind = type(source)
    image = kind.from_bytes(content)
    for name in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b",
                 "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):  # fmt: skip
        assert image.header[name].tobytes() == source.header[name].tobytes(), name
    assert image.header["pixdim"][:4].tobytes() == source.header["pixdim"][:4].tobytes()
    assert np.array_equal(image.affine, source.affine)
    assert image.shape == truth.shape
    assert np.array_equal(np.asarray(image.dataobj) != 0, truth)
    assert b"Jane Doe" not in content


def test_every_orientation_comes_back_bit_by_bit(tmp_path: Path) -> None:
    assert len(ORIENTATIONS) == 48
    for number, rotation in enumerate(ORIENTATIONS):
        path = tmp_path / f"{number}.nii"
        source = volume_file(path, rotation)
        check(*_arguments(tmp_path / str(number), path, source))


def _arguments(folder: Path, path: Path, source: Any, **changes: Any) -> tuple[Any, ...]:
    content, truth = written(folder, path, **changes)
    return content, source, truth


@pytest.mark.parametrize(
    ("shape", "kind", "changes"),
    [
        ((4, 5, 6), nibabel.Nifti1Image, {}),
        ((4, 5, 6), nibabel.Nifti2Image, {}),
        ((4, 5, 6, 3), nibabel.Nifti1Image, {"time_index": 2}),
        ((4, 5), nibabel.Nifti1Image, {"page_axis": 2, "row_axis": 1, "page_size": (10, 4)}),
    ],
    ids=["oblique", "NIfTI 2", "4D", "2D"],
)
def test_oblique_and_other_dimensions_come_back_bit_by_bit(
    tmp_path: Path, shape: tuple[int, ...], kind: Any, changes: dict[str, Any]
) -> None:
    path = tmp_path / "scan.nii.gz"
    source = volume_file(path, OBLIQUE, shape, kind)
    check(*_arguments(tmp_path, path, source, **changes))


def test_dicom_masks_have_the_affine_of_the_series(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    source = volume_file(path, OBLIQUE)
    content, truth = written(tmp_path, path, kind="dicom")
    image: Any = nibabel.Nifti1Image.from_bytes(content)
    assert np.array_equal(np.asarray(image.dataobj) != 0, truth.transpose(2, 1, 0))
    assert np.array_equal(image.affine, source.affine[:, [2, 1, 0, 3]].astype(np.float32))


def test_a_source_that_is_gone_or_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    volume_file(path, np.eye(3))
    stack, _ = stack_of(path)
    pages = [{"Tumor": np.ones((18, 4), bool)}] * 5
    with pytest.raises(DatasetVersionError, match="not those that were made of its volume"):
        exported(tmp_path / "fewer", ExportFormat.NIFTI, [pages[:4]], stacks={1: stack})
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DatasetVersionError, match="volume of task 1 is no longer where it was"):
        exported(tmp_path / "changed", ExportFormat.NIFTI, [pages], stacks={1: stack})
    path.unlink()
    with pytest.raises(DatasetVersionError, match="volume of task 1 is no longer where it was"):
        exported(tmp_path / "gone", ExportFormat.NIFTI, [pages], stacks={1: stack})
