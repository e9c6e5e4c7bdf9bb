"""Images of the field come out as the editor shows them, and bad ones are refused in time."""

import gzip
import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from medsam3_model.errors import ImageError, ImageTooLargeError
from medsam3_model.image_io import ImageLimits, count_pages, read_image

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


# What `numpy` does for each EXIF orientation, read from the EXIF 2.32 table.
ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: np.rot90,
}


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
    assert count_pages(content) == 3
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


# -- DICOM ----------------------------------------------------------------------------------


def dicom(pixels: np.ndarray, interpretation: str = "MONOCHROME2", **tags: object) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    colour = interpretation == "RGB"
    frames = pixels.shape[0] if pixels.ndim == (4 if colour else 3) else None
    rows, columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = interpretation
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored = dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if frames is not None:
        dataset.NumberOfFrames = frames
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


RAMP = np.arange(-1000, 1000, dtype=np.int16).reshape(40, 50)


def test_dicom_window_in_rescaled_values() -> None:
    stored = (RAMP + 1024).astype(np.uint16)
    shown = read_image(
        dicom(stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    )[:, :, 0]
    assert (shown[RAMP <= -160] == 0).all()
    assert (shown[RAMP >= 240] == 255).all()
    assert abs(int(shown[RAMP == 40][0]) - 128) <= 1
    # y = ((x - (c - 0.5)) / (w - 1) + 0.5) * 255 (PS3.3, C.11.2.1.2.1)
    assert shown[RAMP == 100][0] == round(((100 - 39.5) / 399 + 0.5) * 255)


def test_dicom_first_of_several_windows() -> None:
    shown = read_image(dicom(RAMP, WindowCenter=[0, 500], WindowWidth=[200, 1000]))[:, :, 0]
    assert (shown[RAMP > 100] == 255).all()


def test_dicom_monochrome1_is_inverted() -> None:
    window = {"WindowCenter": 0, "WindowWidth": 400}
    plain = read_image(dicom(RAMP, **window))
    inverted = read_image(dicom(RAMP, "MONOCHROME1", **window))
    np.testing.assert_array_equal(inverted, 255 - plain)


def test_dicom_without_window_ignores_padding() -> None:
    stored = RAMP.copy()
    stored[0] = -32000
    shown = read_image(dicom(stored, PixelPaddingValue=-32000))[:, :, 0]
    assert abs(int(shown[20, 0]) - 128) < 6
    assert (shown[0] == 0).all()


def test_dicom_frames() -> None:
    frames = np.stack([np.full((4, 5), value, np.uint8) for value in (10, 250)])
    frames[:, 0, 0] = 0
    content = dicom(frames, WindowCenter=128, WindowWidth=256)
    assert count_pages(content) == 2
    assert read_image(content, page=1)[2, 2, 0] == 250
    with pytest.raises(ImageError, match="2 frames, there is no frame 2"):
        read_image(content, page=2)


def test_dicom_window_of_an_enhanced_frame() -> None:
    groups = []
    for centre in (100, 200):
        window = Dataset()
        window.WindowCenter, window.WindowWidth = centre, 2
        group = Dataset()
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    frames = np.full((2, 4, 5), 150, np.uint8)
    content = dicom(frames, PerFrameFunctionalGroupsSequence=groups)
    assert read_image(content, page=0)[0, 0, 0] == 255
    assert read_image(content, page=1)[0, 0, 0] == 0


def test_dicom_colour() -> None:
    np.testing.assert_array_equal(read_image(dicom(CORNERS, "RGB")), CORNERS)


def test_dicom_run_length_encoded() -> None:
    dataset = pydicom.dcmread(io.BytesIO(dicom(RAMP, WindowCenter=0, WindowWidth=400)))
    plain = read_image(dicom(RAMP, WindowCenter=0, WindowWidth=400))
    dataset.compress(RLELossless)
    file = io.BytesIO()
    dataset.save_as(file)
    np.testing.assert_array_equal(read_image(file.getvalue()), plain)


def test_bad_dicom_is_refused() -> None:
    content = dicom(RAMP)
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_image(content[:-500])
    with pytest.raises(ImageError, match=r"damaged or truncated|no image"):
        read_image(content[:200])
    with pytest.raises(ImageTooLargeError):
        read_image(content, limits=ImageLimits(max_pixels=1000))


def test_dicom_report_is_refused() -> None:
    dataset = pydicom.dcmread(io.BytesIO(dicom(RAMP)))
    del dataset.PixelData
    file = io.BytesIO()
    dataset.save_as(file)
    with pytest.raises(ImageError, match="holds no image"):
        read_image(file.getvalue())


# -- NIfTI ----------------------------------------------------------------------------------


def labelled_volume() -> np.ndarray:
    """RAS+ volume of 4 × 5 × 6 with a bright voxel at right, anterior, superior."""
    values = np.zeros((4, 5, 6), np.float32)
    values[-1, -1, -1] = 100
    return values


ORDERS = ["RAS", "LPS", "LAS", "PIR", "ASL"]


def nifti(order: str = "RAS", kind: type = nibabel.Nifti1Image, **header: float) -> bytes:
    """The same anatomy, stored with its axes in another order."""
    image = kind(labelled_volume(), np.diag([1.0, 1, 1, 1]))
    start = nibabel.io_orientation(image.affine)
    end = nibabel.orientations.axcodes2ornt(order)
    stored = image.as_reoriented(nibabel.orientations.ornt_transform(start, end))
    for name, value in header.items():
        stored.header[name] = value
    return stored.to_bytes()


@pytest.mark.parametrize("order", ORDERS)
def test_nifti_slices_are_in_radiological_convention(order: str) -> None:
    content = nifti(order)
    axial = read_image(content, page=5)
    assert axial.shape == (5, 4, 3)  # y down the columns, x along the rows
    assert axial[0, 0, 0] == 255  # right on the left, anterior at the top
    assert axial.astype(int).sum() == 3 * 255
    coronal = read_image(content, page=4, plane="coronal")
    assert coronal.shape == (6, 4, 3)
    assert coronal[0, 0, 0] == 255
    sagittal = read_image(content, page=3, plane="sagittal")
    assert sagittal.shape == (6, 5, 3)
    assert sagittal[0, 0, 0] == 255
    assert read_image(content, page=0).max() == 0
    assert [count_pages(content, plane=p) for p in ("axial", "coronal", "sagittal")] == [6, 5, 4]


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_compressed_nifti(kind: type) -> None:
    content = nifti(kind=kind)
    packed = gzip.compress(content)
    np.testing.assert_array_equal(read_image(packed, page=5), read_image(content, page=5))


def test_nifti_display_range_and_scaling() -> None:
    image = nibabel.Nifti1Image(np.full((3, 3, 2), 50, np.int16), np.eye(4))
    image.header.set_slope_inter(2, 10)
    image.header["cal_min"], image.header["cal_max"] = 0, 220
    assert read_image(image.to_bytes())[0, 0, 0] == pytest.approx(255 * 110 / 220, abs=1)


def test_nifti_volumes_follow_one_another() -> None:
    values = np.zeros((3, 3, 2, 2), np.float32)
    values[..., 1, 1] = 7
    content = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
    assert count_pages(content) == 4
    assert [int(read_image(content, page=page).max()) for page in range(4)] == [0, 0, 0, 255]


def test_two_dimensional_nifti() -> None:
    content = nibabel.Nifti1Image(np.eye(4, dtype=np.float32), np.eye(4)).to_bytes()
    assert read_image(content).shape == (4, 4, 3)


def test_bad_nifti_is_refused() -> None:
    content = nifti()
    with pytest.raises(ImageError, match="no slice 6"):
        read_image(content, page=6)
    with pytest.raises(ImageError, match="a plane is one of"):
        read_image(content, plane="oblique")
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_image(content[:-100])
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_image(gzip.compress(content)[:-30])
    with pytest.raises(ImageError, match="no NIfTI"):
        read_image(gzip.compress(b"text" * 200))


def test_compressed_bomb_is_stopped() -> None:
    packed = gzip.compress(bytes(30_000_000))
    with pytest.raises(ImageTooLargeError, match="unpacks to more"):
        read_image(packed, limits=ImageLimits(max_bytes=2_000_000))
