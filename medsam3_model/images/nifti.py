"""NIfTI volumes: one slice as RGB bytes, in radiological convention."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from medsam3_model.errors import ImageError
from medsam3_model.images.intensity import full_range, grey_rgb, to_bytes
from medsam3_model.images.limits import ImageLimits
from medsam3_model.images.picture import Picture, chosen_page

# The axis that a plane cuts: x runs to the patient's right, y anterior, z superior (RAS+).
_SLICE_AXES = {"axial": 2, "coronal": 1, "sagittal": 0}
_SAMPLES_PER_AXIS = 100


@dataclass(frozen=True)
class _Volume:
    """A volume whose values are still unread, and how its axes run in the patient.

    Attributes:
        values: nibabel's array proxy, at least three axes in stored order.
        stored_axis: for x, y and z the stored axis that runs along it.
        backwards: for x, y and z whether that axis runs against it.
        display_range: cal_min and cal_max of the header; equal where it names none.
    """

    values: Any
    stored_axis: tuple[int, int, int]
    backwards: tuple[bool, bool, bool]
    display_range: tuple[float, float]

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along x, y, z and the remaining axes."""
        stored = self.values.shape
        return (*(stored[axis] for axis in self.stored_axis), *stored[3:])

    def slice(self, axis: int, index: int, rest: tuple[int, ...]) -> npt.NDArray[Any]:
        """One slice across x, y or z; its two axes are the others, ascending, in RAS+ order."""
        where: list[Any] = [slice(None)] * 3
        here = self.stored_axis[axis]
        where[here] = self.values.shape[here] - 1 - index if self.backwards[axis] else index
        plane = np.asarray(self.values[(*where, *rest)])
        first, second = (other for other in range(3) if other != axis)
        # The volume may be stored with its axes in another order, and each the other way round.
        if self.stored_axis[first] > self.stored_axis[second]:
            plane = plane.T
        steps = [-1 if self.backwards[other] else 1 for other in (first, second)]
        return plane[:: steps[0], :: steps[1]]


def open_nifti(file: BinaryIO, page: int | None, plane: str, limits: ImageLimits) -> Picture:
    """One slice, superior or (axial) anterior at the top; on the left is the patient's right
    (axial, coronal) or anterior (sagittal). The first volume's middle one where none is asked for.

    Raises:
        ImageTooLargeError: the volume unpacks to more bytes, or the slice has more pixels, than
            the limits allow.
        ImageError: damaged, no such slice, or an unknown plane.
    """
    volume = _volume(file, limits)
    if plane not in _SLICE_AXES:
        raise ImageError(f"a plane is one of {', '.join(_SLICE_AXES)}, not {plane!r}")
    axis = _SLICE_AXES[plane]
    shape = volume.shape
    slices, volumes = shape[axis], int(np.prod(shape[3:], dtype=int))
    chosen = slices // 2 if page is None else page
    chosen_page(chosen, slices * volumes, "volume", f"{plane} slice")
    width, height = (shape[other] for other in range(3) if other != axis)
    limits.check_pixels(width, height)
    rest = tuple(int(i) for i in np.unravel_index(chosen // slices, shape[3:])) if shape[3:] else ()

    def decode() -> npt.NDArray[np.uint8]:
        values = volume.slice(axis, chosen % slices, rest)
        grey = to_bytes(values, *_display_range(volume, rest))
        # The slice's first axis runs along the rows of the picture, its second up the columns.
        return grey_rgb(grey.T[::-1, ::-1])

    return Picture(height, width, chosen, slices * volumes, decode)


def read_nifti(file: BinaryIO, limits: ImageLimits) -> Any:
    """nibabel's image of a NIfTI file, its values still unread.

    Raises:
        ImageTooLargeError: its header announces more bytes than the limits allow.
        ImageError: damaged, or colours.
    """
    content = _unpacked(file, limits)
    kind = nibabel.Nifti2Image if content[4:7] in (b"n+2", b"ni2") else nibabel.Nifti1Image
    try:
        image = kind.from_bytes(content)
        shape, kept = image.shape, image.get_data_dtype()
        if len(shape) < 2 or min(shape) < 1:
            raise ImageError(f"the NIfTI file holds no volume: its shape is {shape}")
        if kept.fields is not None:
            raise ImageError("the NIfTI file holds colours or other records, not grey values")
        # The header alone says how large the values are; none is read before this.
        limits.check_size(math.prod(shape) * kept.itemsize)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, TypeError) as error:
        raise ImageError(f"the NIfTI file is damaged or truncated: {error}") from error
    return image


def _volume(file: BinaryIO, limits: ImageLimits) -> _Volume:
    image = read_nifti(file, limits)
    shape = image.shape
    try:
        values: Any = image.dataobj
        if len(shape) == 2:
            values = values.reshape((*shape, 1))
        # Row n: which patient axis the stored axis n runs along, and in which direction.
        orientation = nibabel.io_orientation(image.affine)
        stored = [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3)]
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise ImageError(f"the NIfTI file is damaged or truncated: {error}") from error
    except IndexError as error:
        raise ImageError(
            "the NIfTI file's affine is degenerate: it names no orientation"
        ) from error
    return _Volume(
        values,
        (stored[0], stored[1], stored[2]),
        tuple(bool(orientation[axis, 1] < 0) for axis in stored),  # type: ignore[arg-type]
        (float(image.header["cal_min"]), float(image.header["cal_max"])),
    )


def _unpacked(file: BinaryIO, limits: ImageLimits) -> bytes:
    head = file.read(2)
    file.seek(0)
    if head != b"\x1f\x8b":
        return file.read()
    unpacked = io.BytesIO()
    try:
        with gzip.GzipFile(fileobj=file) as packed:
            # Piece by piece: a small file may unpack to more than the memory holds.
            while piece := packed.read(2**20):
                unpacked.write(piece)
                limits.check_unpacked(unpacked.tell())
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"the compressed file is damaged or truncated: {error}") from error
    content = unpacked.getvalue()
    if content[344:347] not in (b"n+1", b"ni1") and content[4:7] not in (b"n+2", b"ni2"):
        raise ImageError("the compressed file holds no NIfTI volume")
    return content


def _display_range(volume: _Volume, rest: tuple[int, ...]) -> tuple[float, float]:
    """The header's display range, else that of the volume: the same for all of its slices."""
    low, high = volume.display_range
    if high > low:
        return low, high
    steps = [slice(None, None, max(1, n // _SAMPLES_PER_AXIS)) for n in volume.values.shape[:3]]
    return full_range(np.asarray(volume.values[(*steps, *rest)]))
