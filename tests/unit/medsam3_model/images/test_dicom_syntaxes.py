"""DICOM as hospitals have it: every transfer syntax, and files without preamble or header."""

import io
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from medsam3_model.errors import ImageError, ImageTooLargeError
from medsam3_model.images.limits import ImageLimits
from medsam3_model.images.reading import open_picture, read_image
from tests.unit.medsam3_model.images.test_dicom import RAMP, dicom

FILES = Path(pydicom.data.__file__).parent / "test_files"
# A file, one that shows the same in another way, and how far a lossy one may be off on average.
SAME = [
    ("MR_small_RLE.dcm", "MR_small.dcm", 0),
    ("MR_small_bigendian.dcm", "MR_small.dcm", 0),
    ("MR_small_expb.dcm", "MR_small.dcm", 0),
    ("MR_small_implicit.dcm", "MR_small.dcm", 0),
    ("MR_small_padded.dcm", "MR_small.dcm", 0),
    ("MR_small_jp2klossless.dcm", "MR_small.dcm", 0),
    ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", 0),
    ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm", 0),
    ("SC_rgb_gdcm_KY.dcm", "SC_rgb_rle.dcm", 1),
    ("SC_rgb_jls_lossy_line.dcm", "SC_rgb_rle.dcm", 3),
    ("SC_rgb_jls_lossy_sample.dcm", "SC_rgb_rle.dcm", 3),
    ("SC_rgb_jpeg_lossy_gdcm.dcm", "SC_rgb_rle.dcm", 3),
    ("SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_rle.dcm", 3),
    ("SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_rgb_rle.dcm", 3),
    ("SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_rgb_rle.dcm", 3),
    ("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle.dcm", 3),
    ("SC_ybr_full_422_uncompressed.dcm", "SC_rgb_rle.dcm", 3),
    ("SC_rgb_rle_16bit.dcm", "SC_rgb_rle.dcm", 0),
    ("SC_rgb_rle_32bit.dcm", "SC_rgb_rle.dcm", 0),
    ("SC_rgb_jpeg.dcm", "SC_rgb_jpeg_dcmd.dcm", 1),
    ("JPGExtended.dcm", "JPEG2000.dcm", None),
    ("JPEG-lossy.dcm", "JPGExtended.dcm", 0),
    ("liver_expb_1frame.dcm", "liver_1frame.dcm", 0),
    ("rtdose_rle_1frame.dcm", "rtdose_1frame.dcm", 0),
    ("rtdose_expb.dcm", "rtdose.dcm", 0),
]


@pytest.mark.parametrize(("name", "like", "off"), SAME)
def test_files_of_one_picture_show_the_same(name: str, like: str, off: float | None) -> None:
    shown = read_image(FILES / name).astype(float)
    expected = read_image(FILES / like).astype(float)
    if off is None:  # another window on the same picture
        assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.8
    else:
        assert np.abs(shown - expected).mean() <= off


# These are damaged on purpose.
_DAMAGED = {"MR_truncated.dcm", "badVR.dcm", "JPEG2000-embedded-sequence-delimiter.dcm"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [path.name for path in sorted(FILES.glob("*.dcm"))])
def test_every_file_of_pydicom_is_read_or_refused_by_name(name: str) -> None:
    dataset = pydicom.dcmread(FILES / name, force=True)
    if name in _DAMAGED or "PixelData" not in dataset or not dataset.get("Rows"):
        with pytest.raises(ImageError):
            read_image(FILES / name)
        return
    shown = read_image(FILES / name)
    assert shown.shape == (dataset.Rows, dataset.Columns, 3)
    assert len(np.unique(shown)) > 1
    with open_picture(FILES / name) as picture:
        assert (picture.height, picture.width) == shown.shape[:2]


_ENCODERS = {
    JPEGLosslessSV1: lambda values: imagecodecs.jpeg_encode(
        values, lossless=True, bitspersample=16, predictor=1
    ),
    JPEGLossless: lambda values: imagecodecs.jpeg_encode(
        values, lossless=True, bitspersample=16, predictor=4
    ),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEG2000Lossless: lambda values: imagecodecs.jpeg2k_encode(
        values, codecformat="j2k", reversible=True, level=0
    ),
    HTJ2KLossless: imagecodecs.htj2k_encode,
}


@pytest.mark.parametrize("syntax", _ENCODERS, ids=lambda syntax: syntax.keyword)
def test_compressed_without_loss_shows_what_the_plain_file_shows(syntax: UID) -> None:
    stored = (RAMP.astype(np.int32) + 1024).astype(np.uint16)
    plain = dicom(stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    dataset = pydicom.dcmread(io.BytesIO(plain))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([_ENCODERS[syntax](stored)])
    dataset["PixelData"].VR = "OB"
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    np.testing.assert_array_equal(read_image(file.getvalue()), read_image(plain))


def bare(content: bytes) -> bytes:
    """Without preamble and meta header: the data set alone."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    return content[132 + 12 + dataset.file_meta.FileMetaInformationGroupLength :]


@pytest.mark.parametrize("name", ["MR_small_implicit", "MR_small", "MR_small_bigendian"])
def test_without_preamble_or_meta_header(name: str) -> None:
    whole = (FILES / f"{name}.dcm").read_bytes()
    expected = read_image(FILES / "MR_small.dcm")
    np.testing.assert_array_equal(read_image(whole[132:]), expected)
    np.testing.assert_array_equal(read_image(bare(whole)), expected)


def test_compressed_without_meta_header_is_refused_by_name() -> None:
    with pytest.raises(ImageError, match="does not say how"):
        read_image(bare((FILES / "JPEG2000.dcm").read_bytes()))


def test_deflated_is_read_within_the_limit() -> None:
    dataset = pydicom.dcmread(io.BytesIO(dicom(np.zeros((3000, 3000), np.uint16))))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    content = file.getvalue()
    assert len(content) < 100_000
    assert read_image(content).shape == (3000, 3000, 3)
    with pytest.raises(ImageTooLargeError, match="unpacks to more"):
        read_image(content, limits=ImageLimits(max_bytes=10_000_000))
    with pytest.raises(ImageError, match="damaged"):
        read_image(content[:-40])


def test_the_middle_of_several_frames() -> None:
    frames = np.stack([RAMP, -RAMP, RAMP // 2])
    content = dicom(frames, WindowCenter=0, WindowWidth=2000)
    np.testing.assert_array_equal(read_image(content), read_image(content, page=1))
    with open_picture(content) as picture:
        assert (picture.page, picture.pages) == (1, 3)


def test_messages_and_logs_hold_nothing_of_the_patient(caplog: pytest.LogCaptureFixture) -> None:
    content = dicom(RAMP, PatientName="Planted^Secret", WindowCenter=0, WindowWidth=400)
    damaged = content.replace(b"MONOCHROME2 ", b"Planted^Sec.").replace(b"\x10DS", b"\x10US")
    with pytest.raises(ImageError) as refused:
        read_image(damaged)
    assert "Planted" not in str(refused.value)
    assert "Planted" not in caplog.text
