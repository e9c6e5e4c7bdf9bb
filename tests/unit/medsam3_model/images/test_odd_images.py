"""Odd and hostile pictures: each comes out right, pixel by pixel, or is refused by name."""

import gzip
import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from PIL import Image

from medsam3_model.errors import ImageError
from medsam3_model.images.limits import ImageLimits
from medsam3_model.images.reading import open_picture, read_image
from tests.support.images import ORIENTATIONS

HEIGHT, WIDTH = 48, 80
_ROWS, _COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
# Every corner differs, and so do red, green and blue: a turn, a swap or a shift shows.
RGB = np.stack([_ROWS * 5, _COLUMNS * 3, 255 - _ROWS * 2 - _COLUMNS], -1).astype(np.uint8)
GREY = np.ascontiguousarray(RGB[:, :, 1])
DEEP = (RGB.astype(np.uint16) << 8) + RGB
BLACK_WHITE = (_ROWS + _COLUMNS) % 7 < 3


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, 2)


def stretched(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values.astype(float), (0.5, 99.5))
    return as_rgb(np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255))


def over_white(alpha: np.ndarray) -> np.ndarray:
    return np.rint(RGB * (alpha[:, :, None] / 255) + 255 - alpha[:, :, None])


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def planes(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(pixels, 2, 0))


ALPHA = (_COLUMNS * 3).astype(np.uint8)
RGBA = np.dstack([RGB, ALPHA])
CMYK = np.dstack([255 - RGB, np.zeros_like(GREY)])
NAN = np.where(_ROWS + _COLUMNS == 0, np.nan, GREY.astype(np.float32))
PALETTE = Image.fromarray(RGB // 64 * 64).quantize(256)
_RANDOM = np.random.default_rng(0).integers(0, 255, RGB.shape, dtype=np.uint8)
_COLORMAP = np.stack([np.arange(256) * 257, np.arange(256)[::-1] * 257, np.full(256, 4 * 257)])
SEPARATE = {"photometric": "rgb", "planarconfig": "separate"}

# name: the file, its pixels, and how far a lossy format may be off on average.
RIGHT: dict[str, tuple[Callable[[], bytes], np.ndarray, float]] = {
    # TIFF: depths and layouts
    "tiff rgb 8": (lambda: tiff(RGB, photometric="rgb"), RGB, 0),
    "tiff rgb 8 planar": (lambda: tiff(planes(RGB), **SEPARATE), RGB, 0),
    "tiff rgb 16": (lambda: tiff(DEEP, photometric="rgb"), RGB, 0),
    "tiff rgb 16 planar": (lambda: tiff(planes(DEEP), **SEPARATE), RGB, 0),
    "tiff rgb 16 planar big-endian": (
        lambda: tiff(planes(DEEP), byteorder=">", **SEPARATE),
        RGB,
        0,
    ),
    "tiff rgb 16 planar deflated strips": (
        lambda: tiff(planes(DEEP), compression="zlib", predictor=True, rowsperstrip=7, **SEPARATE),
        RGB,
        0,
    ),
    "tiff rgb 16 planar tiles": (lambda: tiff(planes(DEEP), tile=(16, 32), **SEPARATE), RGB, 0),
    "tiff rgb 16 tiles lzw": (
        lambda: tiff(DEEP, photometric="rgb", tile=(32, 16), compression="lzw"),
        RGB,
        0,
    ),
    "tiff rgb float 0 to 1": (
        lambda: tiff((RGB / 255).astype(np.float32), photometric="rgb"),
        RGB,
        0,
    ),
    "tiff rgb float planar": (
        lambda: tiff(planes((RGB / 255).astype(np.float32)), **SEPARATE),
        RGB,
        0,
    ),
    "tiff rgba": (
        lambda: tiff(RGBA, photometric="rgb", extrasamples=["unassalpha"]),
        over_white(ALPHA),
        0.01,
    ),
    "tiff rgba planar": (
        lambda: tiff(planes(RGBA), extrasamples=["unassalpha"], **SEPARATE),
        over_white(ALPHA),
        0.01,
    ),
    "tiff rgba premultiplied": (
        lambda: tiff(
            np.dstack([np.rint(RGB * (ALPHA[:, :, None] / 255)).astype(np.uint8), ALPHA]),
            photometric="rgb",
            extrasamples=["assocalpha"],
        ),
        over_white(ALPHA),
        0.5,
    ),
    "tiff rgb and an unnamed channel": (
        lambda: tiff(RGBA, photometric="rgb", extrasamples=["unspecified"]),
        RGB,
        0,
    ),
    "tiff grey 8": (lambda: tiff(GREY), as_rgb(GREY), 0),
    "tiff grey 8 white is zero": (
        lambda: tiff(255 - GREY, photometric="miniswhite"),
        as_rgb(GREY),
        0,
    ),
    "tiff grey 16": (lambda: tiff(GREY.astype(np.uint16) * 9), stretched(GREY), 0.01),
    "tiff grey 16 white is zero": (
        lambda: tiff(9000 - GREY.astype(np.uint16) * 9, photometric="miniswhite"),
        stretched(GREY),
        0.01,
    ),
    "tiff grey signed 16": (
        lambda: tiff(GREY.astype(np.int16) * 50 - 3000),
        stretched(GREY),
        0.01,
    ),
    "tiff grey signed 8": (
        lambda: tiff((GREY.astype(int) - 128).astype(np.int8)),
        as_rgb(GREY),
        0,
    ),
    "tiff grey 32": (
        lambda: tiff(GREY.astype(np.uint32) * 16_000_000),
        stretched(GREY),
        0.01,
    ),
    "tiff grey 64": (lambda: tiff(GREY.astype(np.uint64) << 52), stretched(GREY), 0.01),
    "tiff float 16": (lambda: tiff(GREY.astype(np.float16)), stretched(GREY), 0.01),
    "tiff float 32": (lambda: tiff(GREY.astype(np.float32) / 7), stretched(GREY), 0.01),
    "tiff float 32 tiles predictor": (
        lambda: tiff(GREY.astype(np.float32), tile=(16, 16), compression="zlib", predictor=True),
        stretched(GREY),
        0.01,
    ),
    "tiff float 64 big-endian": (
        lambda: tiff(GREY.astype(np.float64) * 1e9, byteorder=">"),
        stretched(GREY),
        0.01,
    ),
    "tiff float with not-a-number": (lambda: tiff(NAN), stretched(GREY), 0.5),
    "tiff 1 bit": (
        lambda: saved(Image.fromarray(BLACK_WHITE), "TIFF"),
        as_rgb(BLACK_WHITE * 255),
        0,
    ),
    "tiff 1 bit group 4": (
        lambda: saved(Image.fromarray(BLACK_WHITE), "TIFF", compression="group4"),
        as_rgb(BLACK_WHITE * 255),
        0,
    ),
    "tiff 4 bits": (
        lambda: tiff(GREY // 16, bitspersample=4),
        as_rgb(GREY // 16 * 17),
        0,
    ),
    "tiff 12 bits": (
        lambda: tiff(GREY.astype(np.uint16) * 16, bitspersample=12),
        stretched(GREY),
        0.01,
    ),
    "tiff palette": (
        lambda: tiff(GREY, photometric="palette", colormap=_COLORMAP.astype(np.uint16)),
        np.dstack([GREY, 255 - GREY, np.full_like(GREY, 4)]),
        0,
    ),
    "tiff cmyk": (lambda: tiff(CMYK, photometric="separated"), RGB, 0),
    "tiff cmyk planar": (
        lambda: tiff(planes(CMYK), photometric="separated", planarconfig="separate"),
        RGB,
        0,
    ),
    "tiff jpeg inside": (
        lambda: saved(Image.fromarray(RGB), "TIFF", compression="jpeg", quality=95),
        RGB,
        2,
    ),
    "tiff jpeg rgb inside": (
        lambda: tiff(RGB, photometric="rgb", compression="jpeg"),
        RGB,
        3,
    ),
    "tiff packbits": (
        lambda: saved(Image.fromarray(RGB), "TIFF", compression="packbits"),
        RGB,
        0,
    ),
    "tiff zstd": (lambda: tiff(RGB, photometric="rgb", compression="zstd"), RGB, 0),
    "bigtiff": (lambda: tiff(RGB, photometric="rgb", bigtiff=True), RGB, 0),
    "tiff stack: its middle": (
        lambda: tiff(np.stack([GREY * 0, GREY, GREY // 2]), photometric="minisblack"),
        as_rgb(GREY),
        0,
    ),
    "tiff whose page is its own next": (lambda: looped(tiff(GREY)), as_rgb(GREY), 0),
    # PNG, JPEG and others
    "png 1 bit": (
        lambda: saved(Image.fromarray(BLACK_WHITE), "PNG"),
        as_rgb(BLACK_WHITE * 255),
        0,
    ),
    "png palette": (lambda: saved(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB")), 0),
    "png grey and alpha": (
        lambda: saved(Image.fromarray(np.dstack([GREY, GREY * 0 + 255]), "LA"), "PNG"),
        as_rgb(GREY),
        0,
    ),
    "png rgba": (
        lambda: saved(Image.fromarray(RGBA, "RGBA"), "PNG"),
        over_white(ALPHA),
        0.7,
    ),
    "png black": (
        lambda: saved(Image.fromarray(RGB * 0), "PNG"),
        RGB * 0,
        0,
    ),
    "png grey 16": (
        lambda: saved(Image.fromarray(GREY.astype(np.uint16) * 9), "PNG"),
        stretched(GREY),
        0.01,
    ),
    "png rgb 16": (lambda: png(16, 2, DEEP.astype(">u2")), RGB, 0),
    "png with EXIF behind its pixels": (
        lambda: png(8, 2, RGB, after=((b"eXIf", exif(6).tobytes()[6:]),)),
        RGB,
        0,
    ),
    "jpeg": (lambda: saved(Image.fromarray(RGB), "JPEG", quality=95), RGB, 2),
    "jpeg grey": (lambda: saved(Image.fromarray(GREY), "JPEG", quality=95), as_rgb(GREY), 1),
    "jpeg cmyk": (
        lambda: saved(Image.fromarray(CMYK, "CMYK"), "JPEG", quality=95),
        RGB,
        3,
    ),
    "jpeg progressive": (
        lambda: saved(Image.fromarray(RGB), "JPEG", quality=95, progressive=True),
        RGB,
        2,
    ),
    "jpeg turned by XMP, which browsers do not read": (
        lambda: saved(
            Image.fromarray(RGB), "JPEG", quality=95, xmp=b'<x tiff:Orientation="6"></x>'
        ),
        RGB,
        2,
    ),
    "jpeg with a damaged EXIF block": (
        lambda: saved(Image.fromarray(RGB), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff"),
        RGB,
        2,
    ),
    "webp": (lambda: saved(Image.fromarray(RGB), "WEBP", lossless=True), RGB, 0),
    "gif": (lambda: saved(Image.fromarray(GREY), "GIF"), as_rgb(GREY), 0),
    "gif animation: its first": (
        lambda: saved(
            Image.fromarray(GREY),
            "GIF",
            save_all=True,
            append_images=[Image.fromarray(255 - GREY), Image.fromarray(GREY // 2)],
        ),
        as_rgb(GREY),
        0,
    ),
    "bmp": (lambda: saved(Image.fromarray(RGB), "BMP"), RGB, 0),
    "bmp 1 bit": (
        lambda: saved(Image.fromarray(BLACK_WHITE), "BMP"),
        as_rgb(BLACK_WHITE * 255),
        0,
    ),
    "bmp palette": (lambda: saved(PALETTE, "BMP"), np.asarray(PALETTE.convert("RGB")), 0),
    "ppm": (lambda: saved(Image.fromarray(RGB), "PPM"), RGB, 0),
    "pgm 16": (
        lambda: (
            b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + (GREY.astype(int) * 9).astype(">u2").tobytes()
        ),
        stretched(GREY),
        0.01,
    ),
    "avif": (lambda: saved(Image.fromarray(RGB), "AVIF", quality=95), RGB, 3),
    "jpeg 2000": (lambda: saved(Image.fromarray(RGB), "JPEG2000"), RGB, 0),
    "jpeg 2000 grey 16": (
        lambda: saved(Image.fromarray(GREY.astype(np.uint16) * 9), "JPEG2000"),
        stretched(GREY),
        0.01,
    ),
}


def png(
    bits: int,
    colour: int,
    rows: np.ndarray,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    after: tuple[tuple[bytes, bytes], ...] = (),
) -> bytes:
    """A PNG written by hand, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(lines))
        + b"".join(chunk(kind, data) for kind, data in after)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("name", RIGHT)
def test_every_mode_and_layout_comes_out_right(name: str) -> None:
    make, expected, off = RIGHT[name]
    content = make()
    shown = read_image(content)
    assert shown.shape == (HEIGHT, WIDTH, 3)
    difference = np.abs(shown.astype(float) - expected)
    assert difference.mean() <= off, difference.max()
    with open_picture(content) as picture:
        assert (picture.height, picture.width) == shown.shape[:2]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "TIFF16", "AVIF", "WEBP", "JPEG2000"])
def test_orientation_turns_size_and_pixels_alike(form: str, orientation: int) -> None:
    if form == "TIFF16":
        content = tiff(planes(DEEP), extratags=[(274, 3, 1, orientation, True)], **SEPARATE)
    else:
        options = {"JPEG": {"quality": 95}, "AVIF": {"quality": 95}, "WEBP": {"lossless": True}}
        content = saved(Image.fromarray(RGB), form, exif=exif(orientation), **options.get(form, {}))
    # Browsers turn neither WebP nor JPEG 2000, which has no such note.
    expected = RGB if form in ("WEBP", "JPEG2000") else ORIENTATIONS[orientation](RGB)
    shown = read_image(content)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(float) - expected).mean() <= (3 if form in ("JPEG", "AVIF") else 0)
    with open_picture(content) as picture:
        assert (picture.height, picture.width) == shown.shape[:2]


def changed_tag(content: bytes, code: int, value: int) -> bytes:
    """A TIFF of little-endian shorts or longs in which a tag says something else."""
    changed = bytearray(content)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tag = file.pages[0].tags[code]
        struct.pack_into("<H" if tag.dtype == 3 else "<I", changed, tag.valueoffset, value)
    return bytes(changed)


def looped(content: bytes) -> bytes:
    """A TIFF whose page names itself as the next."""
    changed = bytearray(content)
    start = struct.unpack_from("<I", changed, 4)[0]
    struct.pack_into(
        "<I", changed, start + 2 + 12 * struct.unpack_from("<H", changed, start)[0], start
    )
    return bytes(changed)


def deflate_bomb() -> bytes:
    """A TIFF of 64 × 64 pixels whose only strip unpacks to 200 MB."""
    packed = zlib.compress(bytes(200_000_000))
    content = tiff(RGB[:48, :64], photometric="rgb", compression="zlib", rowsperstrip=48)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tags = file.pages[0].tags
        offset, count = tags[273].valueoffset, tags[279].valueoffset
    changed = bytearray(content)
    struct.pack_into("<I", changed, offset, len(changed))
    struct.pack_into("<I", changed, count, len(packed))
    return bytes(changed) + packed


def webp_canvas(width: int, height: int) -> bytes:
    """An animated WebP that announces a canvas, with one small frame."""
    content = bytearray(
        saved(
            Image.fromarray(RGB),
            "WEBP",
            save_all=True,
            append_images=[Image.fromarray(255 - RGB)],
        )
    )
    content[24:27] = (width - 1).to_bytes(3, "little")
    content[27:30] = (height - 1).to_bytes(3, "little")
    return bytes(content)


def without(content: bytes, keep: float) -> bytes:
    return content[: int(len(content) * keep)]


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "no image that can be read"),
    "text": (lambda: b"hello", "no image that can be read"),
    "a web page": (lambda: b"<!doctype html><title>x</title>", "no image that can be read"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image that can be read"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "no image that can be read"),
    "png of four billion pixels": (lambda: png(8, 2, RGB, size=(65000, 65000)), "pixels"),
    "png cut": (lambda: without(saved(Image.fromarray(_RANDOM), "PNG"), 0.5), "damaged"),
    "png of no height": (lambda: png(8, 2, RGB, size=(WIDTH, 0)), "empty|damaged|no image"),
    "png of more rows than it has": (lambda: png(8, 2, RGB, size=(WIDTH, 480)), "fewer rows"),
    "jpeg cut": (lambda: without(saved(Image.fromarray(_RANDOM), "JPEG"), 0.5), "damaged"),
    "jpeg head": (lambda: b"\xff\xd8\xff\xe0", "no image|damaged"),
    "webp cut": (lambda: without(saved(Image.fromarray(_RANDOM), "WEBP"), 0.5), "damaged|no image"),
    "webp of a huge canvas": (lambda: webp_canvas(60_000, 60_000), "pixels"),
    "gif cut": (lambda: without(saved(Image.fromarray(GREY), "GIF"), 0.5), "damaged"),
    "bmp cut": (lambda: without(saved(Image.fromarray(RGB), "BMP"), 0.5), "damaged"),
    "ppm that announces a billion pixels": (lambda: b"P6 40000 40000 255\n\0", "pixels"),
    "avif cut": (lambda: without(saved(Image.fromarray(_RANDOM), "AVIF"), 0.5), "damaged|no image"),
    "jpeg 2000 cut": (
        lambda: without(saved(Image.fromarray(_RANDOM), "JPEG2000"), 0.5),
        "damaged",
    ),
    "tiff head": (lambda: b"II*\0\x08\0\0\0", "damaged"),
    "tiff without pages": (lambda: b"II*\0\0\0\0\0", "damaged"),
    "tiff cut": (lambda: without(tiff(DEEP, photometric="rgb"), 0.9), "damaged"),
    "tiff deflated cut": (
        lambda: without(tiff(_RANDOM, photometric="rgb", compression="zlib"), 0.9),
        "damaged",
    ),
    "tiff of four billion pixels": (
        lambda: changed_tag(changed_tag(tiff(RGB), 256, 65000), 257, 65000),
        "pixels",
    ),
    "tiff of more rows than it has": (lambda: changed_tag(tiff(GREY), 257, 4800), "damaged"),
    "tiff of huge tiles": (
        lambda: changed_tag(changed_tag(tiff(GREY, tile=(16, 16)), 322, 65008), 323, 65008),
        "pixels",
    ),
    "tiff strip that is a bomb": (deflate_bomb, "damaged"),
    "tiff of complex numbers": (lambda: tiff(GREY.astype(np.complex64)), "complex"),
    "tiff of five channels": (
        lambda: tiff(np.dstack([RGB, GREY, GREY]), photometric="minisblack", planarconfig="contig"),
        "5 channels",
    ),
    "tiff volume in one page": (
        lambda: tiff(np.zeros((16, 16, 16), np.uint8), volumetric=True, tile=(16, 16, 16)),
        "volume",
    ),
    "tiff lab": (lambda: tiff(RGB, photometric="cielab"), "CIELAB"),
    "tiff palette without its colors": (
        lambda: changed_tag(tiff(GREY), 262, 3),
        "palette",
    ),
    "tiff of an unknown compression": (lambda: changed_tag(tiff(GREY), 259, 4711), "damaged"),
    "gzip of text": (lambda: gzip.compress(b"hello" * 100), "no NIfTI"),
    "gzip bomb": (lambda: gzip.compress(bytes(20_000_000)), "unpacks"),
    "gzip cut": (lambda: without(gzip.compress(_RANDOM.tobytes()), 0.5), "damaged"),
    "dicom head": (lambda: bytes(128) + b"DICM", "no image|damaged"),
    "dicom of noise": (lambda: bytes(128) + b"DICM" + _RANDOM.tobytes(), "no image|damaged"),
}
_LIMITS = ImageLimits(max_bytes=10_000_000, max_pixels=1_000_000)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_name_and_costs_nothing(name: str) -> None:
    make, said = REFUSED[name]
    content = make()
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=said):
            read_image(content, limits=_LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


def test_a_page_that_differs_in_size_is_no_stack() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(RGB, photometric="rgb")
        writer.write(RGB[::2, ::2], photometric="rgb")
        writer.write(RGB[::4, ::4], photometric="rgb")
    np.testing.assert_array_equal(read_image(file.getvalue()), RGB)
    np.testing.assert_array_equal(read_image(file.getvalue(), page=2), RGB[::4, ::4])
