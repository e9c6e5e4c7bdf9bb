"""Stacks of a file or folder, by content: DICOM series, NIfTI volumes, TIFF stacks, videos."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from medsam3_model.errors import ImageError
from medsam3_model.images.formats import HEAD_BYTES, image_suffix
from medsam3_model.images.geometry import PageAxes, geometry_along, page_axes, page_of, spacing_of
from medsam3_model.images.intensity import full_range
from medsam3_model.images.limits import ImageLimits
from medsam3_model.images.rendering import (
    Pixels,
    RefusedStack,
    SourceStack,
    StackOptions,
    at_page_size,
    checked_page_size,
    windowed,
)
from medsam3_model.images.series import series_stacks
from medsam3_model.images.video import container_of, video_stack

_SAMPLES_PER_AXIS = 100
_SAMPLED_PAGES = 9


def find_stacks(
    source: Path, options: StackOptions, limits: ImageLimits
) -> Iterator[SourceStack | RefusedStack]:
    """What a file, or a folder with all below it, holds; and what was refused, with the reason.

    Files of other kinds in a folder are passed over.

    Raises:
        ImageError: there is no such file or folder.
    """
    if not source.exists():
        raise ImageError(f"there is no file or folder {source}")
    folder = source.is_dir()
    dicom: list[Path] = []
    for path in sorted(source.rglob("*")) if folder else [source]:
        hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
        if hidden or path.name == "DICOMDIR" or not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
        except OSError as error:
            yield RefusedStack(path.name, f"it cannot be read: {error.strerror}")
            continue
        suffix = image_suffix(head)
        if suffix == ".dcm":
            dicom.append(path)
        elif suffix in (".nii", ".nii.gz", ".tif") or container_of(head):
            yield _of_file(path, suffix, options, limits)
        elif not folder:
            yield RefusedStack(
                path.name,
                "it is no volume, stack or video that can be read: DICOM, NIfTI, TIFF and video "
                "files (MP4, MOV, AVI, MKV, WebM, MPEG, WMV) can",
            )
    yield from series_stacks(dicom, options, limits)


def _of_file(
    path: Path, suffix: str | None, options: StackOptions, limits: ImageLimits
) -> SourceStack | RefusedStack:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.name.partition(".")[0])[:60].strip("-") or "stack"
    try:
        _check_file(path, limits, video=suffix is None)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if suffix is None:
                return video_stack(path, name, sha256, options, limits)
            if suffix == ".tif":
                return _tiff_stack(path, name, sha256, options, limits)
            return _nifti_stack(path, name, sha256, options, limits)
    except ImageError as error:
        return RefusedStack(path.name, str(error))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - parsers of what strangers send: none says what
        return RefusedStack(path.name, f"it is damaged or truncated ({type(error).__name__})")


def _check_file(path: Path, limits: ImageLimits, *, video: bool) -> None:
    """Raises ImageTooLargeError for a file that would be read whole and is too large for it."""
    if not video:  # which is read frame by frame
        limits.check_size(path.stat().st_size)


def _nifti_stack(
    path: Path, name: str, sha256: str, options: StackOptions, limits: ImageLimits
) -> SourceStack:
    from medsam3_model.images.nifti import read_nifti

    with path.open("rb") as file:
        image = read_nifti(file, limits)
    shape = tuple(int(length) for length in image.shape)
    if len(shape) > 4:
        raise ImageError(
            f"the NIfTI file has {len(shape)} dimensions; up to 3 and one of time can be read"
        )
    times = shape[3] if len(shape) == 4 else 1
    if times > 1 and options.time is None:
        raise ImageError(
            f"it holds {times} volumes (a series in time, or echoes): choose one with --time N, "
            f"from 0 to {times - 1}"
        )
    if options.time is not None and not 0 <= options.time < times:
        raise ImageError(f"it holds {times} volumes, there is no --time {options.time} (from 0)")
    affine = tuple(float(value) for value in np.asarray(image.affine, np.float64).ravel())
    if not np.isfinite(affine).all():
        raise ImageError("the NIfTI file's affine is damaged: it names no orientation")
    axes, spacing = page_axes(affine, options.plane, 2), spacing_of(affine)
    three = (*shape[:3], 1)[:3]
    size = checked_page_size(
        (three[axes.row_axis], three[axes.column_axis]),
        (spacing[axes.row_axis], spacing[axes.column_axis]),
        three[axes.page_axis],
        limits,
    )
    time = (options.time or 0) if len(shape) == 4 else None
    geometry = geometry_along(
        axes,
        "nifti",
        shape,
        affine,
        size,
        time_index=time,
        window=options.window or options.usual_window or _range(image, time),
    )

    def pages() -> Iterator[Pixels]:
        assert geometry.window is not None
        for page in range(geometry.pages):
            try:
                values = page_of(image.dataobj, geometry, page)
            except (OSError, EOFError, ValueError) as error:
                raise ImageError("the NIfTI file is damaged or truncated") from error
            yield at_page_size(windowed(values, geometry.window), geometry)

    return SourceStack(name, sha256, geometry, pages)


def _range(image: Any, time: int | None) -> tuple[float, float]:
    """The header's display range, else that of the volume."""
    low, high = float(image.header["cal_min"]), float(image.header["cal_max"])
    if high > low:
        return low, high
    where: list[Any] = [
        slice(None, None, max(1, length // _SAMPLES_PER_AXIS)) for length in image.shape[:3]
    ]
    if time is not None:
        where.append(time)
    try:
        return full_range(np.asarray(image.dataobj[tuple(where)]))
    except (OSError, EOFError, ValueError) as error:
        raise ImageError("the NIfTI file is damaged or truncated") from error


def _tiff_stack(
    path: Path, name: str, sha256: str, options: StackOptions, limits: ImageLimits
) -> SourceStack:
    import tifffile

    from medsam3_model.images.tiff import common_range, open_tiff

    if options.plane != "source":
        raise ImageError("a TIFF stack does not say where in the patient it is: --plane source")
    with path.open("rb") as file:
        first = open_tiff(file, 0, limits)
        file.seek(0)
        tiff = tifffile.TiffFile(file, _multifile=False)
        _refuse_hyperstack(tiff)
        count = first.pages
        size = checked_page_size((first.height, first.width), None, count, limits)
        sizes = set()
        for number in range(count):
            entry: Any = tiff.pages[number]
            sizes.add((entry.imagelength, entry.imagewidth))
        if len(sizes) > 1:
            raise ImageError(
                "the TIFF's pages are of several sizes (a pyramid, or a picture with its "
                "thumbnail): it is no stack"
            )
        window = options.window
        page: Any = tiff.pages[0]
        if window is None and page.samplesperpixel == 1 and page.bitspersample > 8:
            sampled = np.linspace(0, count - 1, min(_SAMPLED_PAGES, count)).round().astype(int)
            window = options.usual_window or common_range(
                file, [int(index) for index in np.unique(sampled)], limits
            )
    axes = PageAxes(0, 1, 2)
    geometry = geometry_along(axes, "tiff", (count, *size), None, size, window=window)

    def pages() -> Iterator[Pixels]:
        for number in range(count):
            with path.open("rb") as file:
                pixels = open_tiff(file, number, limits, window).rgb()
            grey = np.ptp(pixels, axis=2).max() == 0
            yield pixels[:, :, 0] if grey else pixels

    return SourceStack(name, sha256, geometry, pages)


def _refuse_hyperstack(tiff: Any) -> None:
    """Refuses pages that run along more than one axis, or that have no entries of their own."""
    with suppress(IndexError):
        series = tiff.series[0]
        axes = dict(zip(series.axes, series.shape, strict=True))
        along = {axis: length for axis, length in axes.items() if axis not in "YXS" and length > 1}
        if len(along) > 1:
            raise ImageError(
                f"the TIFF is a hyperstack ({', '.join(f'{axis} {n}' for axis, n in along.items())}"
                "): save one channel at one time as a stack"
            )
        if along and next(iter(along.values())) > len(tiff.pages):
            raise ImageError(
                "the TIFF holds its pages without entries of their own (ImageJ does so above "
                "4 GB): save it as one page for each slice"
            )
