"""DICOM series as stacks: frames sorted by position along the normal, split or refused by name.

Names, numbers and the order of files say nothing that can be relied on; positions do: Image
Position and Image Orientation (Patient), DICOM PS3.3, C.7.6.2.1.1.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from medsam3_model.errors import ImageError
from medsam3_model.images.dicom import (
    functional_group,
    has_window_table,
    named_window,
    read_dataset,
    rescaled,
    shown,
    stored_frame,
)
from medsam3_model.images.geometry import (
    PageAxes,
    SopInstance,
    StackGeometry,
    geometry_along,
    page_axes,
    page_of,
    spacing_of,
)
from medsam3_model.images.instances import content_hash
from medsam3_model.images.intensity import full_range
from medsam3_model.images.limits import ImageLimits
from medsam3_model.images.rendering import (
    MOST_PAGES,
    Pixels,
    RefusedStack,
    SourceStack,
    StackOptions,
    at_page_size,
    check_volume,
    checked_page_size,
    windowed,
)

# SOP classes that hold pixels and no picture: what they mean is another object's (PS3.4, B.5).
_NO_PICTURES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation",
}
# Slices whose normals differ by less than 0.8 degrees are parallel.
_PARALLEL = 0.9999
# Of the distance between slices; scanners round positions, and a missing slice is far more.
_UNEVEN = 0.05
_SAMPLED_SLICES = 9
# What tells volumes apart that lie at the same place, the most telling first.
_VOLUMES = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "EchoTime",
    "EffectiveEchoTime",
    "DiffusionBValue",
    "AcquisitionNumber",
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "FrameAcquisitionNumber",
    "StackID",
    "ImageType",
    "AcquisitionTime",
)


@dataclass(frozen=True)
class _Slice:
    """One frame: where its pixels are, and where it is in the patient (mm; DICOM's LPS)."""

    path: Path
    frame: int
    header: Dataset = field(repr=False, compare=False)
    number: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None

    @property
    def normal(self) -> npt.NDArray[np.float64]:
        assert self.orientation is not None
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def place(self) -> float:
        """Position along the normal."""
        assert self.position is not None
        return float(np.dot(self.normal, self.position))

    def value(self, name: str) -> Any:
        """An attribute of the frame, else of the file; None where neither has it."""
        for group in (*_groups(self.header, self.frame), self.header):
            if name in group and group[name].value not in (None, ""):
                return group[name].value
        return None


def series_stacks(
    paths: Iterable[Path], options: StackOptions, limits: ImageLimits
) -> Iterator[SourceStack | RefusedStack]:
    """Every stack that DICOM files hold, in the order of their series, and what was refused.

    Slices of one series that differ in size, orientation or spacing, and volumes at the same place
    (times, echoes), are stacks of their own; files without a position too, each.
    """
    series: dict[tuple[str, str], list[_Slice]] = defaultdict(list)
    seen: set[tuple[str, int]] = set()
    for path in paths:
        try:
            slices = _slices(path, limits)
        except ImageError as error:
            yield RefusedStack(path.name, str(error))
            continue
        if isinstance(slices, str):
            yield RefusedStack(path.name, slices, left_out=True)
            continue
        for one in slices:
            identity = (str(one.header.get("SOPInstanceUID") or path), one.frame)
            if identity not in seen:  # a file that lies there twice
                seen.add(identity)
                study, uid = (one.header.get(f"{of}InstanceUID") for of in ("Study", "Series"))
                series[(str(study or ""), str(uid or path))].append(one)
    for (study, uid), slices in series.items():
        name = f"series-{hashlib.sha256(f'{study} {uid}'.encode()).hexdigest()[:12]}"
        groups = _groups_of(slices)
        for number, group in enumerate(groups, start=1):
            own = name if len(groups) == 1 else f"{name}-{number}"
            notes = () if len(groups) == 1 else (_split_note(number, len(groups)),)
            try:
                stacks = _volumes(group)
                for part, ordered in enumerate(stacks, start=1):
                    called = own if len(stacks) == 1 else f"{own}-t{part}"
                    yield _stack(called, ordered, options, limits, notes)
            except ImageError as error:
                yield RefusedStack(own, str(error))


def _split_note(number: int, parts: int) -> str:
    return (
        f"part {number} of {parts} of a series whose slices differ in orientation, size or spacing"
    )


def _slices(path: Path, limits: ImageLimits) -> list[_Slice] | str:
    """The frames of a file, from its header; or why no stack is made of it."""
    with warnings.catch_warnings():
        # pydicom warns of damage with the values that it found.
        warnings.simplefilter("ignore")
        try:
            limits.check_size(path.stat().st_size)
            with path.open("rb") as file:
                header = read_dataset(file, limits, header=True)
            if reason := _no_picture(header):
                return reason
            return _frames(path, header, limits)
        except (ImageError, MemoryError):
            raise
        except Exception as error:
            raise ImageError(
                f"the DICOM file is damaged or truncated ({type(error).__name__})"
            ) from error


def _no_picture(header: Dataset) -> str | None:
    """Why no stack is made of a file that is in order.

    Raises:
        ImageError: it is not in order.
    """
    if not header.get("SOPClassUID") and not header.get("Rows"):
        raise ImageError("the DICOM file is damaged or truncated: it does not say what it holds")
    if kind := _NO_PICTURES.get(str(header.get("SOPClassUID"))):
        return f"it is {kind}, not an image"
    if not header.get("Rows") or not header.get("Columns"):
        return "it holds no image (a report or a structure set?)"
    if "LOCALIZER" in [str(part).upper() for part in _several(header.get("ImageType"))]:
        return "it is a localizer (scout), of which no stack is made"
    return None


def _frames(path: Path, header: Dataset, limits: ImageLimits) -> list[_Slice]:
    samples, bits = int(header.get("SamplesPerPixel") or 1), int(header.get("BitsAllocated") or 8)
    limits.check_pixels(int(header.Columns), int(header.Rows), bits=samples * bits)
    frames = int(header.get("NumberOfFrames") or 1)
    if not 1 <= frames <= MOST_PAGES:
        raise ImageError(f"the DICOM file announces {frames:,} frames; {MOST_PAGES:,} can be read")
    return [_slice(path, header, frame, frames) for frame in range(frames)]


def _slice(path: Path, header: Dataset, frame: int, frames: int) -> _Slice:
    def group(name: str) -> Dataset:
        return functional_group(header, frame, name) or header

    position = _numbers(group("PlanePositionSequence").get("ImagePositionPatient"), 3)
    orientation = _numbers(group("PlaneOrientationSequence").get("ImageOrientationPatient"), 6)
    spacing = _numbers(group("PixelMeasuresSequence").get("PixelSpacing"), 2)
    offsets = _several(header.get("GridFrameOffsetVector"))
    if position and orientation and len(offsets) == frames > 1:
        # A dose grid: planes at offsets from the first (PS3.3, C.8.8.3.2).
        along = np.cross(orientation[:3], orientation[3:]) * float(offsets[frame])
        position = tuple((np.array(position) + along).tolist())
    elif (
        position and frames > 1 and functional_group(header, frame, "PlanePositionSequence") is None
    ):
        position = None  # one place for many frames: a cine, not a volume
    return _Slice(
        path,
        frame,
        header,
        int(header.get("InstanceNumber") or 0),
        position,
        orientation,
        (spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
    )


def _groups(header: Dataset, frame: int) -> Iterator[Dataset]:
    """Every functional group of a frame of an enhanced file."""
    for name, index in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        sequence = header.get(name)
        if sequence and index < len(sequence):
            for element in sequence[index]:
                if element.VR == "SQ" and element.value:
                    yield element.value[0]


def _several(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if hasattr(value, "__len__") and not isinstance(value, str) else [value]


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    numbers = tuple(float(part) for part in _several(value))
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _groups_of(slices: list[_Slice]) -> list[list[_Slice]]:
    """Slices that can be one stack; each file without a position by itself."""
    groups: list[list[_Slice]] = []
    by_file: dict[Path, list[_Slice]] = defaultdict(list)
    for one in slices:
        if one.position is None or one.orientation is None or one.spacing is None:
            by_file[one.path].append(one)
            continue
        for group in groups:
            if _alike(group[0], one):
                group.append(one)
                break
        else:
            groups.append([one])
    return [*groups, *by_file.values()]


def _alike(first: _Slice, second: _Slice) -> bool:
    assert first.orientation is not None
    assert second.orientation is not None
    assert first.spacing is not None
    assert second.spacing is not None
    same = all(
        first.header.get(name) == second.header.get(name)
        for name in ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation")
    )
    return (
        same
        and np.dot(first.orientation[:3], second.orientation[:3]) > _PARALLEL
        and np.dot(first.orientation[3:], second.orientation[3:]) > _PARALLEL
        and np.allclose(first.spacing, second.spacing, rtol=1e-3)
    )


def _volumes(group: list[_Slice]) -> list[list[_Slice]]:
    """The group as volumes whose slices are at different places, each sorted.

    Raises:
        ImageError: nothing says which slices at the same place belong together.
    """
    if group[0].position is None or group[0].orientation is None or group[0].spacing is None:
        return [sorted(group, key=lambda one: one.frame)]
    if _places_differ(group):
        return [sorted(group, key=lambda one: one.place)]
    for name in _VOLUMES:
        parts: dict[str, list[_Slice]] = defaultdict(list)
        for one in group:
            parts[str(one.value(name))].append(one)
        if len(parts) > 1 and all(_places_differ(part) for part in parts.values()):
            return [sorted(part, key=lambda one: one.place) for part in parts.values()]
    raise ImageError(
        "the series holds several slices at the same place, and neither time, echo nor "
        "acquisition says which belong together: import its parts from folders of their own"
    )


def _places_differ(slices: list[_Slice]) -> bool:
    places = sorted(one.place for one in slices)
    return all(after - before > 1e-3 for before, after in itertools.pairwise(places))


def _affine(slices: list[_Slice]) -> tuple[float, ...] | None:
    """From (slice, row, column) to the patient (RAS, mm); None where positions are not known.

    Raises:
        ImageError: a slice is missing, or distances differ.
    """
    first, last = slices[0], slices[-1]
    if first.position is None or first.orientation is None or first.spacing is None:
        return None
    positions = np.array([one.position for one in slices])
    if len(slices) > 1:
        step = (positions[-1] - positions[0]) / (len(slices) - 1)
        _check_even(slices)
        # Between the first and the last slice every other one is where the affine puts it.
        expected = positions[0] + np.arange(len(slices))[:, None] * step
        off = float(np.abs(positions - expected).max())
        if off > max(_UNEVEN * float(np.linalg.norm(step)), 0.02):
            raise ImageError(
                f"the slices are not on a straight line: one is {off:.2f} mm beside it, so no "
                "volume can be made of them"
            )
    else:
        thickness = last.value("SpacingBetweenSlices") or last.value("SliceThickness") or 1
        step = first.normal * abs(float(thickness) or 1.0)
    rows, columns = first.spacing
    matrix = np.eye(4)
    matrix[:3, 0] = step
    matrix[:3, 1] = np.array(first.orientation[3:]) * rows
    matrix[:3, 2] = np.array(first.orientation[:3]) * columns
    matrix[:3, 3] = positions[0]
    # DICOM counts towards the patient's left and back, the affine towards right and front.
    matrix[:2] *= -1
    if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise ImageError("the orientation of the slices is degenerate: it names no volume")
    return tuple(matrix.ravel().tolist())


def _check_even(slices: list[_Slice]) -> None:
    distances = np.diff([one.place for one in slices])
    usual = float(np.median(distances))
    uneven = np.flatnonzero(np.abs(distances - usual) > max(_UNEVEN * usual, 0.02))
    if len(uneven) == 0:
        return
    at = int(uneven[0])
    wide = float(distances[at])
    if wide > 1.5 * usual:
        raise ImageError(
            f"after slice {at + 1} of {len(slices)} there is a gap of {wide:.2f} mm where the "
            f"others are {usual:.2f} mm apart: a slice is missing; export the series again, or "
            "import the parts from folders of their own"
        )
    raise ImageError(
        f"the slices are {distances.min():.2f} to {distances.max():.2f} mm apart: a volume needs "
        "one distance; import the parts from folders of their own"
    )


def _stack(
    name: str,
    slices: list[_Slice],
    options: StackOptions,
    limits: ImageLimits,
    notes: tuple[str, ...],
) -> SourceStack:
    header = slices[0].header
    affine = _affine(slices)
    shape = (len(slices), int(header.Rows), int(header.Columns))
    axes, spacing = _axes(slices, affine, options)
    pages = shape[axes.page_axis]
    size = checked_page_size(
        (shape[axes.row_axis], shape[axes.column_axis]), spacing, pages, limits
    )
    geometry = geometry_along(
        axes,
        "dicom",
        shape,
        affine,
        size,
        frame_of_reference_uid=_uid(header, "FrameOfReferenceUID"),
        series_instance_uid=_uid(header, "SeriesInstanceUID"),
        study_instance_uid=_uid(header, "StudyInstanceUID"),
        sop_instances=tuple(
            SopInstance(
                str(one.header.get("SOPClassUID") or ""),
                str(one.header.get("SOPInstanceUID") or ""),
                one.frame + 1,
            )
            for one in slices
        ),
    )
    reader = _Reader(slices, limits)
    geometry = replace(geometry, window=reader.window(options))
    if axes.page_axis != 0:
        check_volume(shape)
        if geometry.window is None:
            raise ImageError("colours are cut in the plane of their files: use --plane source")
    sha256 = content_hash(one.path for one in slices)
    return SourceStack(name, sha256, geometry, partial(_pages, reader, geometry), notes)


def _axes(
    slices: list[_Slice], affine: tuple[float, ...] | None, options: StackOptions
) -> tuple[PageAxes, tuple[float, float] | None]:
    """The axes of the pages, and the spacing of their rows and columns where it is known."""
    if options.plane == "source":
        ratio = _numbers(slices[0].header.get("PixelAspectRatio"), 2)
        return PageAxes(0, 1, 2), slices[0].spacing or ((ratio[0], ratio[1]) if ratio else None)
    if affine is None:
        raise ImageError(
            f"it does not say where in the patient it is, so there is no {options.plane} plane: "
            "import it with --plane source"
        )
    axes, spacing = page_axes(affine, options.plane, 0), spacing_of(affine)
    return axes, (spacing[axes.row_axis], spacing[axes.column_axis])


def _uid(header: Dataset, name: str) -> str | None:
    return str(header.get(name) or "") or None


@dataclass
class _Reader:
    """Values of slices; keeps the file that it read last: frames of one file follow each other."""

    slices: list[_Slice]
    limits: ImageLimits
    _path: Path | None = None
    _dataset: Dataset | None = field(default=None, repr=False)

    def decoded(self, index: int) -> tuple[Dataset, npt.NDArray[Any]]:
        """The file of a slice and the stored values of its frame.

        Raises:
            ImageError: damaged, or of another size than its header announces.
        """
        one = self.slices[index]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                if self._path != one.path or self._dataset is None:
                    with one.path.open("rb") as file:
                        self._dataset = read_dataset(file, self.limits)
                    self._path = one.path
                stored = stored_frame(self._dataset, one.frame)
            except (ImageError, MemoryError):
                raise
            except Exception as error:
                raise ImageError(
                    f"slice {index + 1} is damaged or truncated ({type(error).__name__})"
                ) from error
        if stored.shape[:2] != (int(one.header.Rows), int(one.header.Columns)):
            raise ImageError(f"slice {index + 1} is damaged: it is not of the announced size")
        return self._dataset, stored

    def values(self, index: int) -> npt.NDArray[Any]:
        """A slice of grey values after the modality's transformation, (H, W)."""
        dataset, stored = self.decoded(index)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return rescaled(dataset, stored, self.slices[index].frame)

    def window(self, options: StackOptions) -> tuple[float, float] | None:
        """One window for all slices; None for colours, and where a table says how to show them."""
        middle = self.slices[len(self.slices) // 2]
        header = middle.header
        grey = str(header.get("PhotometricInterpretation")).startswith("MONOCHROME")
        chosen = options.window or options.usual_window
        if not grey or (has_window_table(header) and chosen is None):
            return None
        named = chosen or named_window(header, middle.frame)
        if named:
            return named
        count = min(_SAMPLED_SLICES, len(self.slices))
        sampled = np.unique(np.linspace(0, len(self.slices) - 1, count).round().astype(int))
        padding = header.get("PixelPaddingValue")
        kept = []
        for index in sampled:
            dataset, stored = self.decoded(int(index))
            inside = stored if padding is None else stored[stored != padding]
            frame = self.slices[int(index)].frame
            kept.append(rescaled(dataset, inside, frame).reshape(-1))
        return full_range(np.concatenate(kept))


def _pages(reader: _Reader, geometry: StackGeometry) -> Iterator[Pixels]:
    inverted = str(reader.slices[0].header.get("PhotometricInterpretation")) == "MONOCHROME1"
    volume: Any = None
    if geometry.page_axis != 0:
        volume = np.empty(geometry.shape, np.float32)
        for index in range(len(reader.slices)):
            volume[index] = reader.values(index)
    for page in range(geometry.pages):
        if geometry.window is None:
            index = geometry.slice_of(page)
            dataset, stored = reader.decoded(index)
            pixels = shown(dataset, stored, reader.slices[index].frame)
        else:
            values = (
                reader.values(geometry.slice_of(page))
                if volume is None
                else page_of(volume, geometry, page)
            )
            pixels = windowed(values, geometry.window)
            if inverted:
                pixels = 255 - pixels
        yield at_page_size(pixels, geometry)
