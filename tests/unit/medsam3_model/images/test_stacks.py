"""NIfTI volumes, TIFF stacks and videos become stacks, or are refused by name."""

from pathlib import Path

import av
import nibabel
import numpy as np
import pytest
import tifffile

from medsam3_model.errors import ImageError
from medsam3_model.images.geometry import geometry_from_json, page_of
from medsam3_model.images.limits import DEFAULT_LIMITS
from medsam3_model.images.reading import read_image
from medsam3_model.images.rendering import (
    RefusedStack,
    SourceStack,
    StackOptions,
    at_page_size,
    windowed,
)
from medsam3_model.images.stacks import find_stacks
from tests.unit.medsam3_model.images.test_nifti import ORDERS, nifti


def only(path: Path, **options: object) -> SourceStack:
    (stack,) = find_stacks(path, StackOptions(**options), DEFAULT_LIMITS)  # type: ignore[arg-type]
    assert isinstance(stack, SourceStack), stack
    return stack


def refusal(path: Path, **options: object) -> str:
    (stack,) = find_stacks(path, StackOptions(**options), DEFAULT_LIMITS)  # type: ignore[arg-type]
    assert isinstance(stack, RefusedStack)
    return stack.reason


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_nifti_pages_lie_as_single_images_do(tmp_path: Path, order: str, plane: str) -> None:
    path = tmp_path / "volume.nii"
    path.write_bytes(nifti(order))
    stack = only(path, plane=plane)
    for number, page in enumerate(stack.pages()):
        np.testing.assert_array_equal(page, read_image(path, page=number, plane=plane)[:, :, 0])
    assert np.reshape(stack.geometry.affine, (4, 4)).tobytes() == (
        nibabel.load(path).affine.astype(np.float64).tobytes()
    )


def test_pages_follow_from_the_source_and_the_kept_geometry(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(6, 7, 8, 3)).astype(np.float32)
    affine = np.array([[0, -2, 0.1, 3], [-0.7, 0, 0, 1], [0, 0.1, 3, 2], [0, 0, 0, 1.0]])
    path = tmp_path / "time.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    assert "--time N, from 0 to 2" in refusal(path)
    assert "no --time 3" in refusal(path, time=3)
    stack = only(path, time=1, plane="coronal", window=(-1, 1))
    geometry = geometry_from_json(stack.geometry.as_json())
    pages = list(stack.pages())
    assert len(pages) == geometry.pages
    for number, page in enumerate(pages):
        again = windowed(page_of(values, geometry, number), (-1, 1))
        np.testing.assert_array_equal(page, at_page_size(again, geometry))


def test_flat_nifti_is_one_page(tmp_path: Path) -> None:
    path = tmp_path / "flat.nii"
    nibabel.save(nibabel.Nifti1Image(np.eye(5, 6), np.eye(4)), path)
    stack = only(path)
    assert stack.geometry.source_shape == (5, 6)
    assert [page.shape for page in stack.pages()] == [(6, 5)]


def test_a_header_of_ten_gigabytes_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((2500, 2000, 1000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = tmp_path / "huge.nii"
    path.write_bytes(header.binaryblock + bytes(100))
    assert "more than the limit" in refusal(path)


def test_tiff_stacks_have_one_range(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    deep = np.linspace(0, 4000, 4 * 6 * 5).reshape(4, 6, 5).astype(np.uint16)
    tifffile.imwrite(path, deep, photometric="minisblack")
    stack = only(path)
    pages = list(stack.pages())
    assert stack.geometry.source_shape == (4, 6, 5)
    # Brighter from page to page, where each alone would run from black to white.
    means = [page.mean() for page in pages]
    assert means == sorted(means)
    assert means[-1] > means[0] + 100
    tifffile.imwrite(path, np.zeros((2, 3, 6, 5), np.uint8), imagej=True, metadata={"axes": "TZYX"})
    assert "hyperstack" in refusal(path)
    with tifffile.TiffWriter(path) as several:
        several.write(np.zeros((6, 5), np.uint8))
        several.write(np.zeros((3, 5), np.uint8))
    assert "several sizes" in refusal(path)
    assert "--plane source" in refusal(path, plane="axial")


def write_video(path: Path, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            frame = np.full((48, 64, 3), 20 * index, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_videos_frame_by_frame(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, 10)
    stack = only(path, frame_step=4)
    assert stack.geometry.source_shape == (10, 48, 64)
    pages = list(stack.pages())
    assert (
        [page.shape for page in pages] == [(48, 64, 3)] * 3 == [(48, 64, 3)] * stack.geometry.pages
    )
    assert [round(float(page.mean()) / 20) for page in pages] == [0, 4, 8]
    assert "neither planes nor windows" in refusal(path, plane="axial")
    path.write_bytes(path.read_bytes()[:300])
    assert "damaged" in refusal(path)


def test_a_usual_window_is_for_deep_grey_values_alone(tmp_path: Path) -> None:
    usual, path = {"usual_window": (1000.0, 3000.0)}, tmp_path / "stack.tif"
    values = np.linspace(0, 4000, 4 * 6 * 5).reshape(4, 6, 5)
    tifffile.imwrite(path, values.astype(np.uint16), photometric="minisblack")
    np.testing.assert_array_equal(
        np.stack(list(only(path, **usual).pages())),
        windowed(values.astype(np.uint16), (1000, 3000)),
    )
    assert only(path, **usual, window=(0.0, 1.0)).geometry.window == (0, 1)
    tifffile.imwrite(path, (values / 16).astype(np.uint8), photometric="minisblack")
    np.testing.assert_array_equal(
        np.stack(list(only(path, **usual).pages())), (values / 16).astype(np.uint8)
    )
    video = tmp_path / "video.mp4"
    write_video(video, 2)
    assert only(video, **usual).geometry.window is None


def test_other_files_are_passed_over_in_a_folder_and_refused_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert list(find_stacks(tmp_path, StackOptions(), DEFAULT_LIMITS)) == []
    assert "no volume, stack or video" in refusal(tmp_path / "notes.txt")
    with pytest.raises(ImageError, match="no file or folder"):
        list(find_stacks(tmp_path / "absent", StackOptions(), DEFAULT_LIMITS))
