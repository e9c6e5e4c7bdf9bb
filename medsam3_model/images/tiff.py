"""TIFF files of every depth and layout: one page as RGB bytes, through tifffile.

Pillow reads planes as if they were interleaved and few depths; tifffile gives values as they are
stored, and what they mean (photometric interpretation, alpha, palette) is applied here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from medsam3_model.errors import ImageError
from medsam3_model.images.intensity import full_range, grey_rgb, strips, to_bytes
from medsam3_model.images.limits import ImageLimits
from medsam3_model.images.orientation import SIDEWAYS, turned
from medsam3_model.images.picture import Picture, chosen_page

# What it complains about is told by the errors here.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)

_COLOURS = {"MINISWHITE": 1, "MINISBLACK": 1, "PALETTE": 1, "RGB": 3, "SEPARATED": 4, "YCBCR": 3}
_MAX_PAGES = 100_000


def open_tiff(
    file: BinaryIO,
    page: int | None,
    limits: ImageLimits,
    window: tuple[float, float] | None = None,
) -> Picture:
    """One page; of a stack of equal pages the middle one where none is asked for.

    Pages of several sizes are no stack (a picture with its thumbnail, a pyramid): then the first.

    Args:
        file: at its beginning.
        page: from 0.
        limits: checked before a pixel is decoded.
        window: deep values that become black and white; None: by their range on this page.

    Raises:
        ImageTooLargeError: it has more pixels, or more bytes unpacked, than the limits allow.
        ImageError: damaged, no such page, or of a kind that is not read; the message names it.
    """
    size = file.seek(0, 2)
    file.seek(0)
    tiff = tifffile.TiffFile(file, _multifile=False)
    pages = len(tiff.pages)
    if pages > _MAX_PAGES:
        raise ImageError(f"the TIFF file has {pages:,} pages; {_MAX_PAGES:,} can be read")
    sizes = [_size(tiff.pages[number]) for number in range(pages)] if page is None else []
    stack = len(set(sizes)) == 1
    chosen = chosen_page(page, pages, "image", "page", volume=stack)
    opened: Any = tiff.pages[chosen]
    _check(opened, size, limits)
    height, width = opened.imagelength, opened.imagewidth
    orientation = _orientation(opened)
    if orientation in SIDEWAYS:
        height, width = width, height
    decode = partial(_decode, file, opened, chosen, orientation, window)
    return Picture(height, width, chosen, pages if stack or page is not None else 1, decode)


def _size(page: Any) -> tuple[int, int]:
    return page.imagelength, page.imagewidth


def _orientation(page: Any) -> int:
    value = page.tags.valueof("Orientation", 1)
    return value if isinstance(value, int) else 1


def _check(page: Any, size: int, limits: ImageLimits) -> None:
    """Refuses by name what is too large or not understood, before a pixel is decoded."""
    depth = page.bitspersample
    samples, kind = page.samplesperpixel, _kind(page)
    limits.check_pixels(page.imagewidth, page.imagelength, bits=samples * max(8, depth))
    if page.is_tiled:
        limits.check_pixels(page.tilewidth, page.tilelength, bits=samples * max(8, depth))
    if page.imagedepth > 1 or page.tiledepth > 1:
        raise ImageError("the TIFF page holds a volume; one page for each slice can be read")
    if page.sampleformat in (5, 6) or (page.dtype is not None and page.dtype.kind == "c"):
        raise ImageError("the TIFF holds complex numbers, which are no picture")
    if kind not in _COLOURS:
        raise ImageError(
            f"the TIFF's colors are {kind}; gray, RGB, palette, CMYK and YCbCr can be read"
        )
    extra = samples - _COLOURS[kind]
    if extra < 0 or (extra > 1 and page.extrasamples[:1] not in ((1,), (2,))):
        raise ImageError(
            f"the TIFF has {samples} channels of kind {kind}: nobody says which of them to show; "
            "save gray or RGB"
        )
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if offset + count > size:
            raise ImageError("the TIFF is damaged or truncated: its pixels lie behind its end")
    if len(page.dataoffsets) == 0 or len(page.dataoffsets) != len(page.databytecounts):
        raise ImageError("the TIFF is damaged: it does not say where its pixels are")
    if not any(page.databytecounts):
        raise ImageError("the TIFF holds no pixels")


def _kind(page: Any) -> str:
    return str(getattr(page.photometric, "name", page.photometric))


def _decode(
    file: BinaryIO,
    page: Any,
    number: int,
    orientation: int,
    window: tuple[float, float] | None,
) -> npt.NDArray[np.uint8]:
    if _kind(page) == "YCBCR":
        # Halved colours and their coefficients: libtiff, which Pillow uses for these, knows them.
        file.seek(0)
        with Image.open(file, formats=("TIFF",)) as image:
            image.seek(number)
            return np.array(image.convert("RGB"))
    values = _values(page)
    return np.ascontiguousarray(turned(_rgb(page, values, window), orientation))


def _values(page: Any) -> npt.NDArray[Any]:
    """Stored values (H, W, samples)."""
    values: npt.NDArray[Any] = page.asarray()
    if values.ndim == 3 and page.planarconfig == 2 and page.samplesperpixel > 1:
        values = np.moveaxis(values, 0, 2)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.shape != (page.imagelength, page.imagewidth, page.samplesperpixel):
        raise ImageError(f"the TIFF's layout {page.axes} is not read")
    return values


def _rgb(
    page: Any, values: npt.NDArray[Any], window: tuple[float, float] | None
) -> npt.NDArray[np.uint8]:
    kind = _kind(page)
    if kind == "PALETTE":
        return _palette(page, values[:, :, 0])
    colours = values[:, :, : _COLOURS[kind]]
    limits = window or (None if _plain(page) else _range(page, colours))
    shown = colours if limits is None else to_bytes(colours, *limits)
    if kind == "MINISWHITE":
        shown = 255 - shown
    alpha = page.extrasamples[:1] if values.shape[2] > _COLOURS[kind] else ()
    if alpha in ((1,), (2,)):
        opacity = values[:, :, _COLOURS[kind]]
        top = 1.0 if opacity.dtype.kind == "f" else 2.0**page.bitspersample - 1
        covered = to_bytes(opacity, 0, top) if not _plain(page) else opacity
        if kind == "SEPARATED":
            return _over_white(_from_cmyk(shown), covered, associated=False)
        return _over_white(shown, covered, associated=alpha == (1,))
    if kind == "SEPARATED":
        return _from_cmyk(shown)
    return grey_rgb(shown[:, :, 0]) if shown.shape[2] == 1 else np.asarray(shown)


def common_range(file: BinaryIO, pages: Sequence[int], limits: ImageLimits) -> tuple[float, float]:
    """Values that become black and white on all pages of a stack: the widest of some pages' ranges.

    Raises:
        ImageError: as of `open_tiff`.
    """
    size = file.seek(0, 2)
    file.seek(0)
    tiff = tifffile.TiffFile(file, _multifile=False)
    ranges = []
    for number in pages:
        page: Any = tiff.pages[number]
        _check(page, size, limits)
        ranges.append(_range(page, _values(page)[:, :, : _COLOURS[_kind(page)]]))
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _plain(page: Any) -> bool:
    return bool(page.dtype == np.uint8 and page.bitspersample == 8)


def _range(page: Any, values: npt.NDArray[Any]) -> tuple[float, float]:
    """Values that become 0 and 255: what the type can hold, where that says how bright it is."""
    bits, kind, grey = page.bitspersample, values.dtype.kind, values.shape[2] == 1
    if kind in "ub" and (bits <= 8 or (not grey and bits <= 16)):
        return 0.0, 2.0**bits - 1
    if kind == "i" and bits == 8:
        return -128.0, 127.0
    low, high = full_range(values)
    if kind == "f" and not grey and low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high


def _palette(page: Any, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    colours = page.colormap
    if colours is None or values.dtype.kind != "u" or int(values.max()) >= colours.shape[1]:
        raise ImageError("the TIFF is damaged: its palette lacks a color that it uses")
    # The standard's colours have 16 bits; some programs write 8.
    table = (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8).T
    return np.asarray(table[values])


def _from_cmyk(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    def some(rows: slice) -> npt.NDArray[np.uint8]:
        strip = np.ascontiguousarray(values[rows])
        return np.asarray(Image.fromarray(strip, "CMYK").convert("RGB"))

    return _by_strips(values.shape[:2], some)


def _over_white(
    colours: npt.NDArray[np.uint8], opacity: npt.NDArray[np.uint8], *, associated: bool
) -> npt.NDArray[np.uint8]:
    def some(rows: slice) -> npt.NDArray[Any]:
        share = opacity[rows, :, None].astype(np.float32) / 255
        shown = colours[rows].astype(np.float32) * (1 if associated else share)
        return np.clip(np.rint(shown + 255 * (1 - share)), 0, 255)

    return _by_strips(opacity.shape, some)


def _by_strips(
    shape: tuple[int, ...], some: Callable[[slice], npt.NDArray[Any]]
) -> npt.NDArray[np.uint8]:
    result = np.empty((*shape[:2], 3), np.uint8)
    for rows in strips(*shape[:2]):
        result[rows] = some(rows)
    return result
