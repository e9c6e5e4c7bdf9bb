"""DICOM files come out as a viewer shows them, and bad ones are refused."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from medsam3_model.errors import ImageError, ImageTooLargeError
from medsam3_model.images.limits import ImageLimits
from medsam3_model.images.reading import read_image


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
    colours = (np.arange(20 * 40 * 3) % 251).reshape(20, 40, 3).astype(np.uint8)
    np.testing.assert_array_equal(read_image(dicom(colours, "RGB")), colours)


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
