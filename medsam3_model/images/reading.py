"""Images of the field as RGB bytes, at the size and orientation in which they are annotated.

PNG, JPEG, TIFF (stacks, 8 and 16 bit), WebP, BMP, GIF, AVIF and JPEG 2000 through Pillow, DICOM
through pydicom, NIfTI through nibabel. Headers are checked before anything is decoded.
"""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from medsam3_model.errors import ImageError, ImageTooLargeError
from medsam3_model.images.intensity import full_range, to_bytes
from medsam3_model.images.limits import DEFAULT_LIMITS, ImageLimits

# Not all that Pillow reads: some of its formats start other programs (EPS).
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")
# Chromium turns JPEG, PNG and AVIF by their EXIF orientation, and WebP not.
_NOT_TURNED_BY_BROWSERS = ("WEBP",)
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


def read_image(
    source: bytes | Path | str,
    *,
    page: int = 0,
    plane: str = "axial",
    limits: ImageLimits = DEFAULT_LIMITS,
) -> npt.NDArray[np.uint8]:
    """Read one image, or one page of a stack.

    - EXIF orientation is applied where browsers apply it, so that masks fit what the
      editor shows.
    - Transparent pixels become white, as on the editor's page.
    - Deep grey images (16 bit, float) are stretched from their 0.5th to their 99.5th percentile,
      unless they are empty; DICOM by its window, else likewise.
    - A NIfTI slice is turned to radiological convention: the patient's right on the left,
      anterior (axial) or superior (coronal, sagittal) at the top.

    Args:
        source: the file's content or path.
        page: of a TIFF stack, an animation, a multi-frame DICOM or a NIfTI volume (slices along
            `plane`; those of a second volume follow the first's), from 0.
        plane: "axial", "coronal" or "sagittal"; NIfTI only.
        limits: checked against the header before decoding.

    Returns:
        uint8 (H, W, 3), red, green, blue.

    Raises:
        ImageTooLargeError: more bytes or pixels than the limits allow.
        ImageError: damaged, truncated, of an unknown format, or without that page.
    """
    with _opened(source, limits) as file:
        head = file.read(352)
        file.seek(0)
        if head[128:132] == b"DICM":
            from medsam3_model.images.dicom import read_dicom

            return read_dicom(file, page, limits)
        if head.startswith(b"\x1f\x8b") or _is_nifti(head):
            from medsam3_model.images.nifti import read_nifti

            return read_nifti(file, page, plane, limits)
        return _read_picture(file, page, limits)


def _is_nifti(head: bytes) -> bool:
    """Whether a file begins with a NIfTI header: its size, 348 or 540 bytes, and its magic."""
    if len(head) < 348:
        return False
    return any(struct.unpack(f"{order}i", head[:4])[0] in (348, 540) for order in "<>") and (
        head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2")
    )


def _opened(source: bytes | Path | str, limits: ImageLimits) -> BinaryIO:
    if isinstance(source, bytes):
        limits.check_size(len(source))
        return io.BytesIO(source)
    path = Path(source)
    try:
        limits.check_size(path.stat().st_size)
        return path.open("rb")
    except OSError as error:
        raise ImageError(f"{path.name} cannot be read: {error.strerror}") from error


def _opened_picture(file: BinaryIO) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # The limit here is our own, and it is checked next.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            "the file is no image that can be read: PNG, JPEG, TIFF, WebP, BMP, GIF, AVIF, "
            "JPEG 2000, DICOM and NIfTI can"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"the image has far too many pixels: {error}") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise ImageError(f"the image's header is damaged: {error}") from error


def _read_picture(file: BinaryIO, page: int, limits: ImageLimits) -> npt.NDArray[np.uint8]:
    with _opened_picture(file) as image:
        pages = getattr(image, "n_frames", 1)
        if not 0 <= page < pages:
            raise ImageError(f"the image has {pages} pages, there is no page {page} (from 0)")
        limits.check_pixels(*image.size)
        try:
            image.seek(page)
            # Pages may differ in size, so this one's is checked before it is decoded, too.
            limits.check_pixels(*image.size)
            image.load()
        except ImageError:
            raise
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError) as error:
            raise ImageError(f"the image is damaged or truncated: {error}") from error
        upright: Image.Image = image
        if image.format not in _NOT_TURNED_BY_BROWSERS:
            upright = _turned(image)
        return _to_rgb(upright)


def _turned(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, TypeError, struct.error):
        return image  # a damaged EXIF block: browsers show the pixels as they are stored


def _to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode in _DEEP_MODES:
        values = np.asarray(image)
        grey = to_bytes(values, *full_range(values))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        background = Image.new("RGBA", coloured.size, "white")
        image = Image.alpha_composite(background, coloured)
    return np.array(image.convert("RGB"))
