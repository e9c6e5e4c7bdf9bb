"""NIfTI volumes come out slice by slice as the editor shows them, and bad ones are refused."""

import gzip

import nibabel
import numpy as np
import pytest

from medsam3_model.errors import ImageError, ImageTooLargeError
from medsam3_model.images.limits import ImageLimits
from medsam3_model.images.reading import read_image


def labelled_volume() -> np.ndarray:
    """RAS+ volume of 4 × 5 × 6 with a bright voxel at right, anterior, superior."""
    values = np.zeros((4, 5, 6), np.float32)
    values[-1, -1, -1] = 100
    return values


ORDERS = ["RAS", "LPS", "LAS", "PIR", "ASL"]


def nifti(order: str = "RAS", kind: type = nibabel.Nifti1Image, **header: float) -> bytes:
    """The same anatomy, stored with its axes in another order."""
    image = kind(labelled_volume(), np.diag([1.0, 1, 1, 1]))
    start = nibabel.io_orientation(image.affine)
    end = nibabel.orientations.axcodes2ornt(order)
    stored = image.as_reoriented(nibabel.orientations.ornt_transform(start, end))
    for name, value in header.items():
        stored.header[name] = value
    return stored.to_bytes()


@pytest.mark.parametrize("order", ORDERS)
def test_nifti_slices_are_in_radiological_convention(order: str) -> None:
    content = nifti(order)
    axial = read_image(content, page=5)
    assert axial.shape == (5, 4, 3)  # y down the columns, x along the rows
    assert axial[0, 0, 0] == 255  # right on the left, anterior at the top
    assert axial.astype(int).sum() == 3 * 255
    coronal = read_image(content, page=4, plane="coronal")
    assert coronal.shape == (6, 4, 3)
    assert coronal[0, 0, 0] == 255
    sagittal = read_image(content, page=3, plane="sagittal")
    assert sagittal.shape == (6, 5, 3)
    assert sagittal[0, 0, 0] == 255
    assert read_image(content, page=0).max() == 0


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_compressed_nifti(kind: type) -> None:
    content = nifti(kind=kind)
    packed = gzip.compress(content)
    np.testing.assert_array_equal(read_image(packed, page=5), read_image(content, page=5))


def test_nifti_display_range_and_scaling() -> None:
    image = nibabel.Nifti1Image(np.full((3, 3, 2), 50, np.int16), np.eye(4))
    image.header.set_slope_inter(2, 10)
    image.header["cal_min"], image.header["cal_max"] = 0, 220
    assert read_image(image.to_bytes())[0, 0, 0] == pytest.approx(255 * 110 / 220, abs=1)


def test_nifti_volumes_follow_one_another() -> None:
    values = np.zeros((3, 3, 2, 2), np.float32)
    values[..., 1, 1] = 7
    content = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
    assert [int(read_image(content, page=page).max()) for page in range(4)] == [0, 0, 0, 255]


def test_two_dimensional_nifti() -> None:
    content = nibabel.Nifti1Image(np.eye(4, dtype=np.float32), np.eye(4)).to_bytes()
    assert read_image(content).shape == (4, 4, 3)


def test_bad_nifti_is_refused() -> None:
    content = nifti()
    with pytest.raises(ImageError, match="no slice 6"):
        read_image(content, page=6)
    with pytest.raises(ImageError, match="a plane is one of"):
        read_image(content, plane="oblique")
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_image(content[:-100])
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_image(gzip.compress(content)[:-30])
    with pytest.raises(ImageError, match="no NIfTI"):
        read_image(gzip.compress(b"text" * 200))


def test_compressed_bomb_is_stopped() -> None:
    packed = gzip.compress(bytes(30_000_000))
    with pytest.raises(ImageTooLargeError, match="unpacks to more"):
        read_image(packed, limits=ImageLimits(max_bytes=2_000_000))
