"""DICOM series become stacks in the order of their positions, or are refused by name."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest

from medsam3_model.errors import ImageError
from medsam3_model.images.limits import DEFAULT_LIMITS
from medsam3_model.images.reading import read_image
from medsam3_model.images.rendering import RefusedStack, SourceStack, StackOptions, parse_window
from medsam3_model.images.stacks import find_stacks
from tests.support.stack_files import AXIAL, SAGITTAL, write_series

FILES = Path(pydicom.data.__file__).parent / "test_files"
# Slice n is n in its upper left corner, and 100 elsewhere, over 1024 of air.
VOLUME = np.full((6, 8, 10), 1124, np.uint16)
VOLUME[:, 0, 0] = 1024 + np.arange(6)


def stacks(
    folder: Path, options: StackOptions | None = None
) -> tuple[list[SourceStack], list[RefusedStack]]:
    found = list(find_stacks(folder, options or StackOptions(), DEFAULT_LIMITS))
    return (
        [one for one in found if isinstance(one, SourceStack)],
        [one for one in found if isinstance(one, RefusedStack)],
    )


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, (0.8, 0.6, 0, -0.6, 0.8, 0)])
def test_slices_are_sorted_by_position(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    write_series(tmp_path, VOLUME, orientation=orientation)
    (stack,), refused = stacks(tmp_path, StackOptions(usual_window=(0, 255)))
    assert not refused
    pages = list(stack.pages())
    assert [int(page[0, 0]) for page in pages] == list(range(6))
    assert all(page[4, 4] == 100 for page in pages)
    geometry = stack.geometry
    assert geometry.source_shape == (6, 8, 10)
    assert geometry.spacing == pytest.approx((3, 0.5, 0.5))
    assert geometry.affine is not None
    matrix = np.reshape(geometry.affine, (4, 4))
    # The file's own words, in DICOM's directions: left and back instead of right and front.
    files = [pydicom.dcmread(path) for path in tmp_path.iterdir()]
    by_uid = {file.SOPInstanceUID: file for file in files}
    for index, instance in enumerate(geometry.sop_instances):
        file = by_uid[instance.instance_uid]
        there = np.array(file.ImagePositionPatient, float) * [-1, -1, 1]
        np.testing.assert_allclose((matrix @ [index, 0, 0, 1])[:3], there, atol=1e-9)
    across = np.array(orientation[:3]) * [-1, -1, 1] * 0.5
    np.testing.assert_allclose(matrix[:3, 2], across, atol=1e-12)
    assert geometry.series_instance_uid == files[0].SeriesInstanceUID
    assert "Planted" not in repr(stack) + geometry.as_json()


def test_other_planes_have_square_pixels(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME)
    (stack,), _ = stacks(tmp_path, StackOptions(plane="coronal", window=(0, 255)))
    pages = list(stack.pages())
    # Six slices of 3 mm beside columns of half a millimetre.
    assert stack.geometry.page_size == (36, 10)
    assert len(pages) == 8
    # Superior is at the top: the last slice, which is 5 in the corner; posterior pages come first.
    assert (pages[-1][0, 0], pages[-1][-1, 0]) == (5, 0)
    assert (pages[0] == 100).all()


def test_what_is_bad_or_different_does_no_harm_to_the_rest(tmp_path: Path) -> None:
    write_series(tmp_path / "good", VOLUME, WindowCenter=50, WindowWidth=100)
    write_series(tmp_path / "gap", VOLUME, positions=(0, 3, 6, 12, 15, 18))
    write_series(tmp_path / "uneven", VOLUME, positions=(0, 3, 6, 9, 12, 15.9))
    write_series(tmp_path / "twice", VOLUME, positions=(0, 3, 6, 6, 9, 12))
    write_series(tmp_path / "localizer", VOLUME[:1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (tmp_path / "broken.dcm").write_bytes(bytes(128) + b"DICM\x02\x00\x00\x00UL\xff")
    found, refused = stacks(tmp_path)
    assert len(found) == 1
    assert found[0].geometry.window == pytest.approx((0, 99), abs=1e-3)
    assert len(list(found[0].pages())) == 6
    reasons = " ".join(sorted(one.reason for one in refused))
    for sentence in ("a slice is missing", "volume needs one distance", "at the same place"):
        assert sentence in reasons
    assert [one.left_out for one in refused].count(True) == 1
    assert len(refused) == 5


def test_one_series_of_two_orientations_and_two_times_is_split(tmp_path: Path) -> None:
    same = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2"}
    write_series(tmp_path, VOLUME, **same, TemporalPositionIdentifier=1)
    write_series(tmp_path, VOLUME, **same, TemporalPositionIdentifier=2)
    write_series(tmp_path, VOLUME[:3], **same, orientation=SAGITTAL)
    found, refused = stacks(tmp_path)
    assert not refused
    assert sorted(stack.geometry.pages for stack in found) == [3, 6, 6]
    assert len({stack.name for stack in found}) == len({stack.sha256 for stack in found}) == 3
    assert "orientation" in found[0].notes[0]


# These are damaged on purpose.
_DAMAGED = {"MR_truncated.dcm", "badVR.dcm", "JPEG2000-embedded-sequence-delimiter.dcm"}


def test_every_file_of_pydicom_is_read_as_alone_or_refused_by_name() -> None:
    read, wrong = 0, []
    for path in sorted(FILES.glob("*.dcm")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True)
        has_pixels = "PixelData" in dataset and bool(dataset.get("Rows"))
        found, refused = stacks(path)
        try:
            pages = [page for stack in found for page in stack.pages()]
        except ImageError as error:
            found, refused = [], [RefusedStack(path.name, str(error))]
        if not found:
            as_expected = not has_pixels or refused[0].left_out or path.name in _DAMAGED
            wrong += [] if as_expected else [(path.name, refused[0].reason)]
            continue
        read += 1
        if len(pages) != int(dataset.get("NumberOfFrames") or 1):
            wrong.append((path.name, f"{len(pages)} pages"))
        geometry = found[0].geometry
        if len(pages) == 1 and geometry.page_size == geometry.slice_size:
            page = pages[0] if pages[0].ndim == 3 else np.repeat(pages[0][:, :, None], 3, axis=2)
            if not np.array_equal(page, read_image(path)):
                wrong.append((path.name, "shown differently"))
    assert not wrong
    assert read > 50


def test_windows_have_names_or_numbers() -> None:
    assert parse_window("40,400") == (-160, 240)
    assert parse_window("lung") == (-1350, 150)
    for text in ("lungs", "40", "40,0", "nan,4", "1,2,3"):
        with pytest.raises(ImageError, match="no window"):
            parse_window(text)
