"""Images of the field come out as the editor shows them, and bad ones are refused in time."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsam3_model.errors import ImageError, ImageTooLargeError
from medsam3_model.images.limits import ImageLimits
from medsam3_model.images.reading import read_image
from tests.support.images import ORIENTATIONS

# Top left red, top right green, bottom left blue, bottom right white.
CORNERS = np.zeros((20, 40, 3), np.uint8)
CORNERS[:10, :20] = (255, 0, 0)
CORNERS[:10, 20:] = (0, 255, 0)
CORNERS[10:, :20] = (0, 0, 255)
CORNERS[10:, 20:] = (255, 255, 255)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


# -- ordinary pictures ----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "PPM"])
def test_rgb_is_read_as_it_is(form: str, tmp_path: Path) -> None:
    content = encoded(Image.fromarray(CORNERS), form)
    np.testing.assert_array_equal(read_image(content), CORNERS)
    (tmp_path / "image").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "image"), CORNERS)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_exif_orientation_is_applied_where_browsers_do(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    content = encoded(Image.fromarray(CORNERS), form, exif=exif, **options)
    expected = ORIENTATIONS[orientation](CORNERS)
    shown = read_image(content)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected)[3:-3, 3:-3].mean() < 8


def test_exif_orientation_of_webp_is_ignored_as_browsers_do() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(CORNERS), "WEBP", exif=exif, lossless=True)
    np.testing.assert_array_equal(read_image(content), CORNERS)


def test_transparent_becomes_white() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, 2:] = (200, 100, 0, 128)
    shown = read_image(encoded(Image.fromarray(pixels, "RGBA"), "PNG"))
    assert (shown[:, :2] == 255).all()
    np.testing.assert_allclose(shown[0, 3], (227, 177, 127), atol=1)


def test_palette_with_transparency() -> None:
    image = Image.fromarray(CORNERS).quantize(4)
    np.testing.assert_array_equal(read_image(encoded(image, "PNG")), CORNERS)
    transparent = image.getpixel((0, 0))
    shown = read_image(encoded(image, "PNG", transparency=transparent))
    assert (shown[:10, :20] == 255).all()
    np.testing.assert_array_equal(shown[10:], CORNERS[10:])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(CORNERS).convert(mode)
    form = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    shown = read_image(encoded(image, form))
    assert shown.shape == (20, 40, 3)
    assert shown.dtype == np.uint8
    assert shown[15, 30].min() > 200


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_stretched(form: str) -> None:
    # Twelve bits in sixteen, as detectors deliver: a plain cut to a byte would be black.
    values = np.linspace(100, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    shown = read_image(encoded(Image.fromarray(values), form))
    assert shown.min() == 0
    assert shown.max() == 255
    assert abs(int(shown[32, 0, 0]) - 128) < 4
    assert (np.diff(shown[:, :, 0].reshape(-1).astype(int)) >= 0).all()


def test_float_tiff_with_not_a_number() -> None:
    values = np.linspace(-1, 1, 400).reshape(20, 20).astype(np.float32)
    values[0, 0] = np.nan
    shown = read_image(encoded(Image.fromarray(values), "TIFF"))
    assert shown[0, 0, 0] == 0
    assert shown[-1, -1, 0] == 255


def test_constant_deep_image_is_black() -> None:
    values = np.full((8, 8), 300, np.uint16)
    assert (read_image(encoded(Image.fromarray(values), "PNG")) == 0).all()


def test_pages_of_a_stack() -> None:
    pages = [Image.fromarray(np.full((5, 6), value, np.uint8)) for value in (10, 20, 30)]
    content = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert read_image(content, page=2)[0, 0, 0] == 30
    with pytest.raises(ImageError, match="3 pages, there is no page 3"):
        read_image(content, page=3)


# -- what is refused ------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size, with next to no pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_decoding(size: tuple[int, int]) -> None:
    tracemalloc.start()
    with pytest.raises(ImageTooLargeError):
        read_image(png_header(*size))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_too_many_bytes_are_refused(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(CORNERS), "BMP")
    limits = ImageLimits(max_bytes=1000)
    with pytest.raises(ImageTooLargeError, match="MB"):
        read_image(content, limits=limits)
    (tmp_path / "image.bmp").write_bytes(content)
    with pytest.raises(ImageTooLargeError, match="MB"):
        read_image(tmp_path / "image.bmp", limits=limits)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_pictures_are_refused(form: str, keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), form)
    with pytest.raises(ImageError):
        read_image(content[: int(len(content) * keep)])


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n"],
)
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match="no image that can be read"):
        read_image(content)


def test_missing_file_is_named_without_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"^scan\.png cannot be read: No such file"):
        read_image(tmp_path / "scan.png")
