"""The truth about a concept in an image: its mask and its separate instances, from a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3_model.boxes import connected_instances, instance_boxes
from medsam3_model.errors import DatasetError


@dataclass(frozen=True, eq=False)
class ConceptTruth:
    """The truth about one concept in one image.

    Attributes:
        mask: bool (H, W), all instances together.
        boxes: float32 (N, 4), one tight box per instance, x0, y0, x1, y1 in pixels at pixel
            edges; specks of a few pixels have none (`boxes.instance_boxes`).
        labels: int32 (H, W), instances numbered from 1, background 0. Where the data set does
            not separate instances, the mask's 4-connected components.
    """

    mask: NDArray[np.bool_]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int32]


def from_labels(labels: NDArray[Any]) -> ConceptTruth:
    """A `ConceptTruth` from an instance map of integers (H, W), 0 for background."""
    if labels.size and labels.max() > np.iinfo(np.uint16).max:
        # Some tools write a hash or a packed colour as the number of an instance.
        _, positions = np.unique(np.append(labels.ravel(), 0), return_inverse=True)
        labels = positions[:-1].reshape(labels.shape)
    numbers = labels.astype(np.int32)
    return ConceptTruth(numbers != 0, instance_boxes(numbers), numbers)


def from_mask(mask: NDArray[np.bool_]) -> ConceptTruth:
    """A `ConceptTruth` from a bool mask (H, W); its 4-connected components are the instances."""
    labels = connected_instances(mask)
    return ConceptTruth(mask, instance_boxes(labels), labels)


def read_mask_file(path: Path) -> ConceptTruth:
    """The foreground of a mask file, in whatever way it was saved.

    1-bit, palette and 16-bit files, and 8-bit files whose values stay below 128, hold numbers:
    everything but 0 is foreground, and where there are several numbers each is an instance.
    Other grey and colour files (0/255, JPEG, antialiased edges) are cut at 128, in colour the
    brightest channel; files of floats at 0.5. Raises `DatasetError` where it cannot be read.
    """
    pixels, numbered = _read_pixels(path)
    if pixels.ndim == 3:
        pixels = pixels[..., :3].max(2)
    if pixels.dtype.kind == "f":
        return from_mask(pixels > 0.5)
    # An 8-bit file does not say whether it holds grey values or numbers; numbers are small.
    if not numbered and pixels.max() >= 128:
        return from_mask(pixels >= 128)
    if len(np.unique(pixels)) > 2:
        return from_labels(pixels)
    return from_mask(pixels != 0)


def read_instances_file(path: Path) -> ConceptTruth:
    """An instance map: one value per instance, 0 for background.

    Raises `DatasetError` where the file cannot be read or is a colour image.
    """
    pixels, _ = _read_pixels(path)
    if pixels.ndim == 3 or pixels.dtype.kind == "f":
        raise DatasetError(f"{path} is no instance map: one whole number per instance is expected.")
    return from_labels(pixels)


def _read_pixels(path: Path) -> tuple[NDArray[Any], bool]:
    """Pixels (H, W) or (H, W, C) and whether the file's kind says that they are numbers."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            kind = image.mode
            pixels = np.asarray(image.convert("L") if kind == "LA" else image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"The mask {path} cannot be read: {error}") from error
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    return pixels, kind not in ("L", "LA", "RGB", "RGBA")
