"""Images of the field as RGB bytes, at the size and orientation in which they are annotated.

PNG, JPEG, WebP, BMP, GIF, PPM, AVIF and JPEG 2000 through Pillow, TIFF through tifffile, DICOM
through pydicom, NIfTI through nibabel. Headers are checked before anything is decoded, and size and
pixels come from one opened file, so that they cannot disagree.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from medsam3_model.errors import ImageError, ImageTooLargeError
from medsam3_model.images.formats import is_dicom, is_nifti
from medsam3_model.images.intensity import full_range, grey_rgb, strips, to_bytes
from medsam3_model.images.limits import DEFAULT_LIMITS, ImageLimits
from medsam3_model.images.orientation import SIDEWAYS, turned
from medsam3_model.images.picture import Picture, chosen_page

# Not all that Pillow reads: some of its formats start other programs (EPS).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")
# Chromium turns JPEG, PNG and AVIF by their EXIF orientation, and WebP not.
_NOT_TURNED_BY_BROWSERS = ("WEBP",)
_ORIENTATION = 0x0112
# By color type, of the PNG standard.
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


def read_image(
    source: bytes | Path | str,
    *,
    page: int | None = None,
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
            `plane`; those of a second volume follow the first's), from 0. None is the middle of a
            stack or volume, and the first of an animation.
        plane: "axial", "coronal" or "sagittal"; NIfTI only.
        limits: checked against the header before decoding.

    Returns:
        uint8 (H, W, 3), red, green, blue.

    Raises:
        ImageTooLargeError: more bytes or pixels than the limits allow.
        ImageError: damaged, truncated, of an unknown format, or without that page.
    """
    with open_picture(source, page=page, plane=plane, limits=limits) as picture:
        return picture.rgb()


@contextmanager
def open_picture(
    source: bytes | Path | str,
    *,
    page: int | None = None,
    plane: str = "axial",
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Iterator[Picture]:
    """The same with its pixels still undecoded; arguments and errors as of `read_image`."""
    try:
        # Libraries warn about damage with what they found, and that may be a patient's.
        with warnings.catch_warnings(), _opened(source, limits) as file:
            warnings.simplefilter("ignore")
            yield _picture(file, page, plane, limits)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError("the image has far too many pixels") from error
    except Exception as error:
        # Five libraries parse what strangers send, and none says all that it may raise.
        raise ImageError(f"the image is damaged or truncated ({type(error).__name__})") from error


def _picture(file: BinaryIO, page: int | None, plane: str, limits: ImageLimits) -> Picture:
    head = file.read(352)
    file.seek(0)
    # Before TIFF: a DICOM file of a microscope begins like one, to be readable as both.
    if is_dicom(head):
        from medsam3_model.images.dicom import open_dicom

        return open_dicom(file, page, limits)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        from medsam3_model.images.tiff import open_tiff

        return open_tiff(file, page, limits)
    if head.startswith(b"\x1f\x8b") or is_nifti(head):
        from medsam3_model.images.nifti import open_nifti

        return open_nifti(file, page, plane, limits)
    return _open_common(file, page, head, limits)


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


def _open_common(file: BinaryIO, page: int | None, head: bytes, limits: ImageLimits) -> Picture:
    """PNG, JPEG and the other formats of the web."""
    if head[:4] == b"RIFF" and head[12:16] == b"VP8X":
        # Its decoder allocates the canvas as soon as it is opened.
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
        limits.check_pixels(width, height)
    try:
        image = Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            "the file is no image that can be read: PNG, JPEG, TIFF, WebP, BMP, GIF, PPM, AVIF, "
            "JPEG 2000, DICOM and NIfTI can"
        ) from error
    pages = getattr(image, "n_frames", 1)
    chosen = chosen_page(page, pages, "image", "page", volume=False)
    limits.check_pixels(*image.size)
    orientation = _orientation(image)
    if chosen:
        image.seek(chosen)
        # Pages may differ in size, so this one's is checked before it is decoded, too.
        limits.check_pixels(*image.size)
    width, height = image.size
    if orientation in SIDEWAYS:
        width, height = height, width
    # An animation is one picture to the editor, which shows all of it.
    return Picture(
        height,
        width,
        chosen,
        pages if page is not None else 1,
        partial(_decode, file, image, orientation),
    )


def _orientation(image: Image.Image) -> int:
    """Of the EXIF block before the pixels alone: browsers know no other (XMP, behind them)."""
    if image.format in _NOT_TURNED_BY_BROWSERS or "exif" not in image.info:
        return 1
    exif = Image.Exif()
    try:
        exif.load(image.info["exif"])
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - a damaged block: browsers show the pixels as they are stored
        return 1


def _decode(file: BinaryIO, image: Image.Image, orientation: int) -> npt.NDArray[np.uint8]:
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"the image is damaged or truncated: {error}") from error
    if image.format == "PNG":
        _check_rows(file, image)
    pixels = _grey(image) if image.mode in _DEEP_MODES else _coloured(image)
    return np.ascontiguousarray(turned(pixels, orientation))


def _check_rows(file: BinaryIO, image: Image.Image) -> None:
    """Refuses a PNG that holds fewer rows than it announces: Pillow leaves those black."""
    width, height = image.size
    last = image.crop((0, height - 1, width, height))
    if np.asarray(last).any() and not image.info.get("interlace"):
        return
    missing = 0
    unpacker = zlib.decompressobj()
    file.seek(8)
    while len(head := file.read(8)) == 8 and not unpacker.eof:
        length, kind = struct.unpack(">I4s", head)
        piece = file.read(length)
        file.seek(4, io.SEEK_CUR)
        if kind == b"IHDR":
            bits, colour = piece[8:10]
            missing = height * ((width * bits * _PNG_SAMPLES[colour] + 7) // 8)
        elif kind == b"IDAT":
            while piece and not unpacker.eof:
                missing -= len(unpacker.decompress(piece, 2**20))
                piece = unpacker.unconsumed_tail
    if missing > 0:
        raise ImageError("the image is damaged: it holds fewer rows than it announces")


def _grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    width, height = image.size
    values = np.empty((height, width), np.asarray(image.crop((0, 0, 1, 1))).dtype)
    for rows in strips(height, width):
        values[rows] = np.asarray(image.crop((0, rows.start, width, rows.stop)))
    image.close()  # whose pixels are the larger half of what this needs
    return grey_rgb(to_bytes(values, *full_range(values)))


def _coloured(image: Image.Image) -> npt.NDArray[np.uint8]:
    """A few rows at a time: whole copies of a large image would be several."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    transparent = image.has_transparency_data
    for rows in strips(height, width):
        strip = image.crop((0, rows.start, width, rows.stop))
        if transparent:
            coloured = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
        pixels[rows] = np.asarray(strip.convert("RGB"))
    image.close()
    return pixels
