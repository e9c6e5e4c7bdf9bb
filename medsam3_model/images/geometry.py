"""Geometry of a stack: how the pages that an annotator sees come from a volume's array, and back.

A page is a slice of the source across one of its axes, with the other two turned so that it lies as
radiologists look at it, and made larger along one axis where its pixels are not square. All of that
is a choice of axes, directions and nearest neighbours, so that masks go back without any loss.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import nibabel
import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from medsam3_model.errors import ImageError

StackKind = Literal["dicom", "nifti", "tiff", "video"]
Plane = Literal["source", "axial", "coronal", "sagittal"]
# The axis that a plane is across: x runs to the patient's right, y anterior, z superior.
_ACROSS = {"axial": 2, "coronal": 1, "sagittal": 0}


@dataclass(frozen=True)
class SopInstance:
    """The DICOM object that holds a slice.

    Attributes:
        class_uid, instance_uid: of the SOP.
        frame: its number in a multi-frame object, from 1 as the standard counts; 1 in others.
    """

    class_uid: str
    instance_uid: str
    frame: int = 1


@dataclass(frozen=True)
class StackGeometry:
    """Where the pages of a task are in their source.

    Axes are numbered as in `source_shape`; a two-dimensional source has a third axis of length 1.

    Attributes:
        kind: of the source.
        source_shape: of the array as its reader returns it: NIfTI (i, j[, k[, time]]); DICOM
            (slice, row, column) sorted by position along the normal; TIFF (page, row, column);
            video (frame, row, column). Samples of colours are not counted.
        affine: 16 floats, row by row: from the index of a voxel along the first three axes to
            millimetres towards the patient's right, anterior, superior; as the source says it,
            bit by bit. None where the source says none.
        page_axis, row_axis, column_axis: the axis along which pages follow each other, and those
            that run down and across a page.
        page_flip, row_flip, column_flip: whether the page's direction is against the axis.
        page_size: height and width of the rendered pages in pixels.
        page_step: pages show every such slice or frame.
        time_index: along a fourth axis.
        window: values that become black and white; None for colours.
        frame_of_reference_uid, series_instance_uid, study_instance_uid: DICOM's.
        sop_instances: one for each index of axis 0 of a DICOM source.
    """

    kind: StackKind
    source_shape: tuple[int, ...]
    affine: tuple[float, ...] | None
    page_axis: int
    row_axis: int
    column_axis: int
    page_flip: bool
    row_flip: bool
    column_flip: bool
    page_size: tuple[int, int]
    page_step: int = 1
    time_index: int | None = None
    window: tuple[float, float] | None = None
    frame_of_reference_uid: str | None = None
    series_instance_uid: str | None = None
    study_instance_uid: str | None = None
    sop_instances: tuple[SopInstance, ...] = ()

    def __post_init__(self) -> None:
        """Refuses with ValueError what no stack can be."""
        if sorted((self.page_axis, self.row_axis, self.column_axis)) != [0, 1, 2]:
            raise ValueError("page, row and column axis are 0, 1 and 2 in some order")
        if not 2 <= len(self.source_shape) <= 4 or min(self.source_shape) < 1:
            raise ValueError(f"a source of the shape {self.source_shape} is no stack")
        if self.affine is not None and len(self.affine) != 16:
            raise ValueError("an affine has 16 numbers")
        if self.page_step < 1 or min(self.page_size) < 1:
            raise ValueError("steps and sizes are at least 1")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the source along its first three axes."""
        first, second, *more = self.source_shape
        return first, second, more[0] if more else 1

    @property
    def pages(self) -> int:
        """How many pages the stack has."""
        return -(-self.shape[self.page_axis] // self.page_step)

    @property
    def slice_size(self) -> tuple[int, int]:
        """Height and width of a page at the source's resolution."""
        return self.shape[self.row_axis], self.shape[self.column_axis]

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Millimetres from one voxel to the next along the first three axes; None: not known."""
        if self.affine is None:
            return None
        return spacing_of(self.affine)

    @property
    def pixel_volume_ml(self) -> float | None:
        """Millilitres of what one pixel of a page shows, as thick as pages are apart.

        None where the source says no affine, or a degenerate one.
        """
        if self.affine is None:
            return None
        voxel_mm3 = abs(float(np.linalg.det(np.reshape(self.affine, (4, 4))[:3, :3])))
        # A page may be drawn larger than its slice, so that its pixels are square.
        share = math.prod(self.slice_size) / math.prod(self.page_size)
        volume = voxel_mm3 * self.page_step * share / 1000
        return volume if math.isfinite(volume) and volume > 0 else None

    def slice_of(self, page: int) -> int:
        """The index along `page_axis` that a page shows.

        Raises:
            IndexError: there is no such page.
        """
        if not 0 <= page < self.pages:
            raise IndexError(f"the stack has {self.pages} pages, there is no page {page} (from 0)")
        index = page * self.page_step
        return self.shape[self.page_axis] - 1 - index if self.page_flip else index

    def as_json(self) -> str:
        """As JSON text, from which `geometry_from_json` makes an equal one."""
        return json.dumps(asdict(self), allow_nan=False)


def geometry_from_json(text: str) -> StackGeometry:
    """The geometry that `StackGeometry.as_json` wrote.

    Raises:
        ImageError: the text is none.
    """
    try:
        return _reader().validate_python(json.loads(text))
    except (ValidationError, ValueError) as error:
        raise ImageError("the stored geometry of the stack is damaged: import it again") from error


@cache
def _reader() -> TypeAdapter[StackGeometry]:
    return TypeAdapter(StackGeometry)


def spacing_of(affine: tuple[float, ...]) -> tuple[float, float, float]:
    """Millimetres from one voxel to the next along the first three axes."""
    first, second, third = np.linalg.norm(np.reshape(affine, (4, 4))[:3, :3], axis=0)
    return float(first), float(second), float(third)


def page_of(volume: Any, geometry: StackGeometry, page: int) -> npt.NDArray[Any]:
    """One page's values as they are in the source, at its resolution.

    Args:
        volume: an array, or what is indexed like one and read piece by piece, of the shape
            `geometry.source_shape`; for colours with a last axis more.
        geometry: of the stack.
        page: from 0.

    Returns:
        (height, width) of `geometry.slice_size`, or (height, width, samples).

    Raises:
        IndexError: there is no such page.
    """
    dimensions = len(geometry.source_shape)
    where: list[Any] = [slice(None)] * dimensions
    index = geometry.slice_of(page)
    if geometry.page_axis < dimensions:
        where[geometry.page_axis] = index
    if dimensions == 4:
        where[3] = geometry.time_index or 0
    values = np.asarray(volume[tuple(where)])
    if dimensions == 2 and geometry.page_axis != 2:
        # The third axis, of length 1, runs down or across the page.
        values = np.expand_dims(values, 1)
    if geometry.row_axis > geometry.column_axis:
        values = np.swapaxes(values, 0, 1)
    rows, columns = (-1 if flip else 1 for flip in (geometry.row_flip, geometry.column_flip))
    return values[::rows, ::columns]


def masks_to_source(
    geometry: StackGeometry, masks: Mapping[int, npt.NDArray[np.bool_]]
) -> npt.NDArray[np.bool_]:
    """Masks of pages as one mask of the source; pages that are not given are empty.

    A voxel is set where the pixel of the page that lies over its middle is set: exactly the inverse
    of rendering by nearest neighbours, which only ever makes pages larger.

    Args:
        geometry: of the stack.
        masks: page from 0 → bool (height, width) of `geometry.page_size`.

    Returns:
        bool of `geometry.source_shape[:3]`.

    Raises:
        IndexError: there is no such page.
        ValueError: a mask is not as large as the pages.
    """
    volume = np.zeros(geometry.shape, np.bool_)
    # Views with the same memory: what is written to a page is in the volume.
    pages = np.transpose(volume, (geometry.page_axis, geometry.row_axis, geometry.column_axis))
    rows, columns = (-1 if flip else 1 for flip in (geometry.row_flip, geometry.column_flip))
    pages = pages[:, ::rows, ::columns]
    over_rows, over_columns = (
        nearest(length, size)
        for length, size in zip(geometry.slice_size, geometry.page_size, strict=True)
    )
    for page, mask in masks.items():
        if mask.shape != geometry.page_size:
            raise ValueError(f"a mask of {mask.shape} is not as large as {geometry.page_size}")
        pages[geometry.slice_of(page)] = mask[np.ix_(over_rows, over_columns)]
    return volume.reshape(geometry.source_shape[:3])


def nearest(length: int, of: int) -> npt.NDArray[np.intp]:
    """For each of `length` equal cells of a line the one of `of` cells that lies over its middle.

    `nearest(page, source)[nearest(source, page)]` is every index of the source where the page is
    at least as long.
    """
    # Whole numbers only: a middle that falls on an edge must not depend on rounding.
    middles = 2 * np.arange(length, dtype=np.int64) + 1
    return (middles * of // (2 * length)).astype(np.intp)


@dataclass(frozen=True)
class PageAxes:
    """Which axes of a source pages follow, and run down and across; see `StackGeometry`."""

    page_axis: int
    row_axis: int
    column_axis: int
    page_flip: bool = False
    row_flip: bool = False
    column_flip: bool = False


def geometry_along(
    axes: PageAxes,
    kind: StackKind,
    source_shape: tuple[int, ...],
    affine: tuple[float, ...] | None,
    page_size: tuple[int, int],
    **others: Any,
) -> StackGeometry:
    """The geometry of pages along some axes; `others` are its fields that have a default."""
    return StackGeometry(
        kind=kind,
        source_shape=source_shape,
        affine=affine,
        page_axis=axes.page_axis,
        row_axis=axes.row_axis,
        column_axis=axes.column_axis,
        page_flip=axes.page_flip,
        row_flip=axes.row_flip,
        column_flip=axes.column_flip,
        page_size=page_size,
        **others,
    )


def page_axes(affine: tuple[float, ...], plane: Plane, stacking_axis: int) -> PageAxes:
    """The axes of pages in a plane as radiologists look at it: superior or (axial) anterior is at
    the top; on the left is the patient's right (axial, coronal) or anterior (sagittal). Pages run
    to the patient's right, anterior, superior. Oblique volumes go by their nearest axes.

    Args:
        affine: as `StackGeometry.affine`.
        plane: which; `source` is the one that is across `stacking_axis`.
        stacking_axis: the axis along which the source was made, slice by slice.

    Raises:
        ImageError: the affine names no orientation.
    """
    orientation = nibabel.io_orientation(np.reshape(affine, (4, 4)))
    if not np.isfinite(orientation).all():
        raise ImageError("the affine of the source is degenerate: it names no orientation")
    patient_axis = _ACROSS.get(plane, int(orientation[stacking_axis, 0]))
    across, down = (axis for axis in range(3) if axis != patient_axis)
    page_axis, row_axis, column_axis = (
        int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in (patient_axis, down, across)
    )
    # Rows run to inferior or posterior, columns to the patient's left or posterior.
    return PageAxes(
        page_axis,
        row_axis,
        column_axis,
        bool(orientation[page_axis, 1] < 0),
        bool(orientation[row_axis, 1] > 0),
        bool(orientation[column_axis, 1] > 0),
    )


def square_size(size: tuple[int, int], spacing: tuple[float, float]) -> tuple[int, int]:
    """Height and width at which a page's pixels are square: the wider ones are drawn larger.

    Args:
        size: height and width in the source's pixels.
        spacing: of the rows and of the columns, in any unit.

    Returns:
        `size` itself where the spacings differ by 1 % or less.
    """
    finest = min(spacing)
    if not finest > 0 or max(spacing) <= 1.01 * finest:
        return size
    height, width = (
        max(length, round(length * by / finest)) for length, by in zip(size, spacing, strict=True)
    )
    return height, width
