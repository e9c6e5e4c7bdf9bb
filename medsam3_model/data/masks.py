"""The truth about a concept in an image: its mask and its separate instances, from a file."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3_model.boxes import connected_instances, instance_boxes
from medsam3_model.errors import DatasetError, ImageError
from medsam3_model.images.limits import DEFAULT_LIMITS

# What `medsam3 export` writes into the header of its NIfTI files: no patient's space, pixels.
PIXEL_VOLUME = b"medsam3 masks in pixels: x, y, page"

_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_PLAIN = ("1", "L", "RGB", "I", "F")


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

    - 1-bit, palette and 16-bit files, and 8-bit files whose values stay below 128, hold numbers:
      everything but 0 is foreground, and where there are several numbers each is an instance.
    - Other grey and colour files (0/255, JPEG, antialiased edges) are cut at 128, in colour the
      brightest channel; files of floats at 0.5.
    - Where pixels are transparent, the others are the foreground, but for black ones beside
      bright ones.

    Raises `DatasetError` where the file cannot be read, or it does not say what is foreground.
    """
    pixels, numbered, lossless = _read_pixels(path)
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise DatasetError(f"The mask {path} holds values that are not finite numbers.")
        return from_mask(pixels > 0.5)
    if pixels.dtype == np.bool_:
        return from_mask(pixels)
    if pixels.ndim == 3:
        pixels = pixels.max(2)
    # An 8-bit file does not say whether it holds grey values or numbers; numbers are small.
    if not numbered and pixels.max() >= 128:
        mask = pixels >= 128
        if lossless:
            _check_nothing_is_cut_away(path, pixels, mask)
        return from_mask(mask)
    if len(np.unique(pixels)) > 2:
        return from_labels(pixels)
    return from_mask(pixels != 0)


def read_instances_file(path: Path) -> ConceptTruth:
    """An instance map: one value per instance, 0 for background.

    Raises `DatasetError` where the file cannot be read, or is no map of whole numbers.
    """
    pixels, _, _ = _read_pixels(path)
    if pixels.ndim == 3 or pixels.dtype.kind == "f" or pixels.min() < 0:
        raise DatasetError(f"{path} is no instance map: one whole number per instance is expected.")
    return from_labels(pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels)


def read_volume_page(path: Path, page: int) -> ConceptTruth:
    """One page of a NIfTI file that `medsam3 export` wrote: pixels (x, y, page), 0 and 1.

    Raises `DatasetError` where the file is damaged, is not one of those, or has no such page.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        volume: Any = nibabel.load(path)
        if bytes(volume.header["descrip"].tobytes()).rstrip(b"\0") != PIXEL_VOLUME:
            raise DatasetError(
                f"{path} is a NIfTI volume in the patient's space, which does not say which pixel "
                "of the image is which. Save the mask of each image as PNG."
            )
        width, height, pages = volume.shape
        DEFAULT_LIMITS.check_pixels(width, height)
        if not 0 <= page < pages:
            raise DatasetError(f"{path} has {pages} pages, but there is an image for page {page}.")
        return from_mask(np.asarray(volume.dataobj[:, :, page]).T != 0)
    except (
        ImageFileError,
        HeaderDataError,
        ImageError,
        OSError,
        EOFError,
        ValueError,
        zlib.error,
    ) as error:
        raise DatasetError(f"The mask {path} cannot be read: {error}") from error


def _check_nothing_is_cut_away(path: Path, pixels: NDArray[Any], mask: NDArray[np.bool_]) -> None:
    """Soft edges lie beside what is bright; what lies apart is an object with a small number."""
    if not (pixels[~mask] > 0).any():
        return
    parts = connected_instances(pixels)
    lost = np.setdiff1d(parts[~mask & (pixels > 0)], parts[mask])
    if lost.size:
        raise DatasetError(
            f"The mask {path} holds values below and above 128 that lie apart, so it does not say "
            "what is foreground. Save 0 and 255, or numbers of instances in 16 bits."
        )


def _read_pixels(path: Path) -> tuple[NDArray[Any], bool, bool]:
    """Pixels (H, W) or (H, W, 3), whether they are numbers by kind, and whether all are exact."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            DEFAULT_LIMITS.check_pixels(*image.size)
            if getattr(image, "n_frames", 1) > 1:
                raise DatasetError(f"The mask {path} has several pages. Save one for each image.")
            kind = image.mode
            lossless = image.format not in ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000") and (
                image.info.get("compression") != "jpeg"
            )
            if kind == "P":
                return _palette_pixels(image), True, lossless
            if kind not in _TRANSPARENT and "transparency" in image.info:
                kind = "RGBA"
            if kind in _TRANSPARENT:
                pixels = np.asarray(image.convert("RGBA"))
            elif kind in _PLAIN or kind.startswith("I;16"):
                pixels = np.asarray(image)
            else:
                raise DatasetError(f"The mask {path} is saved as {kind}. Save it in grey.")
    except (OSError, SyntaxError, ValueError, ImageError, Image.DecompressionBombError) as error:
        raise DatasetError(f"The mask {path} cannot be read: {error}") from error
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return _opaque_pixels(path, pixels), False, lossless
    return pixels, kind not in ("L", "RGB"), lossless


def _palette_pixels(image: Any) -> NDArray[Any]:
    """The numbers of a palette file; where it has two colours, which of them is the mask."""
    numbers = np.asarray(image)
    used = np.unique(numbers)
    if used.size == 2:
        first, second = (
            np.asarray(image.convert("RGBA"))[numbers == number][0].astype(int) for number in used
        )
        # The mask is what can be seen, and of two colours the one that is not black.
        if (first[3] > 0) != (second[3] > 0):
            return numbers == used[int(second[3] > 0)]
        if first[:3].any() != second[:3].any():
            return numbers == used[int(second[:3].any())]
    return numbers


def _opaque_pixels(path: Path, rgba: NDArray[np.uint8]) -> NDArray[Any]:
    """Bool (H, W) where some pixels are transparent; the colours (H, W, 3) where none is."""
    colour, alpha = rgba[..., :3], rgba[..., 3]
    if alpha.min() == alpha.max():
        if not alpha.max() and colour.any():
            raise DatasetError(f"The mask {path} is transparent everywhere. Save it in grey.")
        return colour
    opaque = alpha >= max(1, int(alpha.max()) // 2)
    brightest = colour.max(2)
    black = opaque & (brightest == 0)
    # Black alone is ink; black beside something bright is its background.
    return opaque & ~black if (brightest[opaque] >= 128).any() else opaque
