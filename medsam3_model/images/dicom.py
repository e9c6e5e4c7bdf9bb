"""DICOM files: one frame as RGB bytes, as a viewer shows it.

Values go through the modality transformation (rescale slope and intercept), then the window
(DICOM PS3.3, C.11.2.1.2), then the photometric interpretation.
"""

from __future__ import annotations

import io
import logging
import zlib
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset as read_elements
from pydicom.filewriter import write_file_meta_info
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medsam3_model.errors import ImageError
from medsam3_model.images import dicom_codecs
from medsam3_model.images.intensity import full_range, grey_rgb, strips, to_bytes
from medsam3_model.images.limits import ImageLimits
from medsam3_model.images.picture import Picture, chosen_page

# It logs values of the header, and those are the patient's.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_SAMPLE = 4_000_000


def open_dicom(file: BinaryIO, frame: int | None, limits: ImageLimits) -> Picture:
    """One frame; of several the middle one where none is asked for.

    Raises:
        ImageTooLargeError: Rows × Columns exceeds the limit, or the file unpacks to more bytes.
        ImageError: no pixels, no such frame, damaged, or compressed in a way that cannot be
            decoded here.
    """
    dataset = read_dataset(file, limits)
    if not any(name in dataset for name in _PIXELS):
        raise ImageError("the DICOM file holds no image (a report or a structure set?)")
    rows, columns = (int(dataset.get(name) or 0) for name in ("Rows", "Columns"))
    samples = int(dataset.get("SamplesPerPixel") or 1)
    bits = int(dataset.get("BitsAllocated") or 8)
    limits.check_pixels(columns, rows, bits=samples * bits)
    frames = int(dataset.get("NumberOfFrames") or 1)
    chosen = chosen_page(frame, frames, "DICOM file", "frame")
    return Picture(rows, columns, chosen, frames, partial(_decode, dataset, chosen))


def read_dataset(file: BinaryIO, limits: ImageLimits, *, header: bool = False) -> Dataset:
    """A DICOM file's data set; of a file without meta header with the syntax that it shows.

    Args:
        file: at its beginning.
        limits: a deflated file unpacks to no more.
        header: only what comes before the pixels.
    """
    content = _inflated(file, limits)
    dataset: Dataset = pydicom.dcmread(content, force=True, stop_before_pixels=header)
    if "TransferSyntaxUID" not in dataset.file_meta and not header:
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise ImageError(
                "the DICOM file is compressed and does not say how (it has no transfer syntax): "
                "export it again with its meta header"
            )
        implicit, little = dataset.original_encoding
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
    return dataset


def _inflated(file: BinaryIO, limits: ImageLimits) -> BinaryIO:
    """The file; a deflated one unpacked here, as pydicom would do so without any limit."""
    start = 132 if file.read(132)[128:] == b"DICM" else 0
    file.seek(start)
    meta = read_elements(file, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        file.seek(0)
        return file
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    content = unpacker.decompress(file.read(), limits.max_bytes + 1)
    limits.check_unpacked(len(content))
    if not unpacker.eof:
        raise ImageError("the DICOM file is damaged or truncated: its deflated part has no end")
    unpacked = DicomBytesIO()
    unpacked.write(bytes(128) + b"DICM")
    information = pydicom.dataset.FileMetaDataset(meta)
    information.TransferSyntaxUID = ExplicitVRLittleEndian
    write_file_meta_info(unpacked, information, enforce_standard=False)
    unpacked.write(content)
    return io.BytesIO(unpacked.getvalue())


def _decode(dataset: Dataset, frame: int) -> npt.NDArray[np.uint8]:
    return shown(dataset, stored_frame(dataset, frame), frame)


def stored_frame(dataset: Dataset, frame: int) -> npt.NDArray[Any]:
    """A frame's stored values: (H, W), or (H, W, 3) for colours.

    Raises:
        ImageError: they are damaged, or compressed in a way that cannot be decoded here.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = dicom_codecs.PLUGIN if dicom_codecs.is_available(syntax) else ""
    try:
        return pixel_array(dataset, index=frame, decoding_plugin=plugin)
    except (RuntimeError, NotImplementedError) as error:
        raise ImageError(
            f"the DICOM file is compressed as {getattr(syntax, 'name', 'unknown')} and could not "
            "be decoded: it is damaged, or decompress it (gdcmconv --raw)"
        ) from error


def shown(dataset: Dataset, stored: npt.NDArray[Any], frame: int) -> npt.NDArray[np.uint8]:
    """Stored values of a frame as a viewer shows them: uint8 (H, W, 3)."""
    interpretation = str(dataset.PhotometricInterpretation)
    if interpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        return (stored >> 8).astype(np.uint8) if stored.dtype.itemsize > 1 else stored
    if stored.ndim == 3:  # pydicom has turned YBR into RGB
        return _colour(dataset, stored)
    grey = _windowed(dataset, stored, frame)
    if interpretation == "MONOCHROME1":  # small values are bright
        np.subtract(255, grey, out=grey)
    return grey_rgb(grey)


def _colour(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if stored.dtype == np.uint8 and int(dataset.BitsStored) == 8:
        return np.array(stored)
    return to_bytes(stored, 0, 2 ** int(dataset.BitsStored) - 1)


def _windowed(dataset: Dataset, stored: npt.NDArray[Any], frame: int) -> npt.NDArray[np.uint8]:
    rescale = _rescale(dataset, frame)
    table = has_window_table(dataset)
    limits = None if table else named_window(dataset, frame)
    if table:
        limits = (0.0, 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    elif limits is None:
        # Padding around the field of view would take up most of the range.
        padding = dataset.get("PixelPaddingValue")
        kept = stored if padding is None else stored[stored != padding]
        if kept.size > _SAMPLE:
            kept = kept.reshape(-1)[:: kept.size // _SAMPLE]
        limits = full_range(apply_modality_lut(kept, rescale))
    grey = np.empty(stored.shape, np.uint8)
    for rows in strips(*stored.shape):
        values = apply_modality_lut(stored[rows], rescale)
        if table:
            values = apply_voi_lut(values, dataset)
        grey[rows] = to_bytes(values, *limits)
    return grey


def has_window_table(dataset: Dataset) -> bool:
    """Whether a table, and no window, says how values are shown."""
    return "VOILUTSequence" in dataset and "WindowCenter" not in dataset


def named_window(dataset: Dataset, frame: int) -> tuple[float, float] | None:
    """Values that become black and white, where the file names a window for the frame."""
    # An enhanced file says it for each frame, an ordinary one once.
    return _window(functional_group(dataset, frame, "FrameVOILUTSequence") or dataset)


def rescaled(dataset: Dataset, stored: npt.NDArray[Any], frame: int) -> npt.NDArray[Any]:
    """Stored values after the modality's transformation (Hounsfield units in CT)."""
    return np.asarray(apply_modality_lut(stored, _rescale(dataset, frame)))


def _rescale(dataset: Dataset, frame: int) -> Dataset:
    return functional_group(dataset, frame, "PixelValueTransformationSequence") or dataset


def functional_group(dataset: Dataset, frame: int, name: str) -> Dataset | None:
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
