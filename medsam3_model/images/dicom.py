"""DICOM files: one frame as RGB bytes, as a viewer shows it.

Values go through the modality transformation (rescale slope and intercept), then the window
(DICOM PS3.3, C.11.2.1.2), then the photometric interpretation.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

from medsam3_model.errors import ImageError
from medsam3_model.images.intensity import full_range, to_bytes
from medsam3_model.images.limits import ImageLimits


def read_dicom(file: BinaryIO, frame: int, limits: ImageLimits) -> npt.NDArray[np.uint8]:
    """One frame, uint8 (Rows, Columns, 3).

    Raises:
        ImageTooLargeError: Rows × Columns exceeds the limit.
        ImageError: no pixels, no such frame, damaged, or compressed in a way that cannot be
            decoded here.
    """
    dataset = _dataset(file)
    rows, columns = (int(dataset.get(name) or 0) for name in ("Rows", "Columns"))
    limits.check_pixels(columns, rows)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if not 0 <= frame < frames:
        raise ImageError(f"the DICOM file has {frames} frames, there is no frame {frame} (from 0)")
    file.seek(0)
    try:
        stored = pixel_array(dataset, index=frame)
        return _shown(dataset, stored, frame)
    except (RuntimeError, NotImplementedError) as error:
        name = getattr(dataset.file_meta.TransferSyntaxUID, "name", "unknown")
        raise ImageError(
            f"the DICOM file is compressed as {name}, which needs another decoder: install "
            "pylibjpeg[all], or decompress it (gdcmconv --raw)"
        ) from error
    except (ValueError, AttributeError, TypeError, KeyError, IndexError, EOFError) as error:
        raise ImageError(f"the DICOM file's pixels are damaged or truncated: {error}") from error


def _dataset(file: BinaryIO) -> Dataset:
    try:
        dataset = pydicom.dcmread(file)
    except (InvalidDicomError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        raise ImageError(f"the DICOM file is damaged or truncated: {error}") from error
    if "PixelData" not in dataset:
        raise ImageError("the DICOM file holds no image (a report or a structure set?)")
    return dataset


def _shown(dataset: Dataset, stored: npt.NDArray[Any], frame: int) -> npt.NDArray[np.uint8]:
    interpretation = str(dataset.PhotometricInterpretation)
    if interpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        return (stored >> 8).astype(np.uint8) if stored.dtype.itemsize > 1 else stored
    if stored.ndim == 3:  # pydicom has turned YBR into RGB
        return _colour(dataset, stored)
    grey = _windowed(dataset, stored, frame)
    if interpretation == "MONOCHROME1":  # small values are bright
        grey = 255 - grey
    return np.repeat(grey[:, :, None], 3, axis=2)


def _colour(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if stored.dtype == np.uint8:
        return np.array(stored)
    return to_bytes(stored, 0, 2 ** int(dataset.BitsStored) - 1)


def _windowed(dataset: Dataset, stored: npt.NDArray[Any], frame: int) -> npt.NDArray[np.uint8]:
    if "VOILUTSequence" in dataset and "WindowCenter" not in dataset:
        table = apply_voi_lut(apply_modality_lut(stored, dataset), dataset)
        return to_bytes(table, 0, 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    # An enhanced file says it for each frame, an ordinary one once.
    rescale = _functional_group(dataset, frame, "PixelValueTransformationSequence")
    values = apply_modality_lut(stored, rescale if rescale is not None else dataset)
    window = _functional_group(dataset, frame, "FrameVOILUTSequence")
    limits = _window(window if window is not None else dataset)
    if limits is None:
        # Padding around the field of view would take up most of the range.
        padding = dataset.get("PixelPaddingValue")
        kept = values if padding is None else values[stored != padding]
        limits = full_range(kept)
    return to_bytes(values, *limits)


def _functional_group(dataset: Dataset, frame: int, name: str) -> Dataset | None:
    """Where an enhanced multi-frame file keeps what an ordinary one has at the top."""
    for groups, index in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        sequence = dataset.get(groups)
        if sequence and index < len(sequence) and sequence[index].get(name):
            return sequence[index][name][0]
    return None


def _window(dataset: Dataset) -> tuple[float, float] | None:
    """Values that become black and white; the first window where there are several."""
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width <= 0:
        return None
    if str(dataset.get("VOILUTFunction", "LINEAR")) == "LINEAR":
        # The standard's half pixel: a window of width 1 is a threshold.
        return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2 + 1e-6
    return centre - width / 2, centre + width / 2


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    several = hasattr(value, "__len__") and not isinstance(value, str)
    return float(value[0] if several else value)
