"""Pages of a stack and the way back: every orientation and size, without any loss."""

import itertools
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsam3_model.errors import ImageError
from medsam3_model.images.geometry import (
    SopInstance,
    StackGeometry,
    geometry_from_json,
    masks_to_source,
    page_of,
)

ORIENTATIONS = [
    (axes, flips)
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
]
OBLIQUE = nibabel.eulerangles.euler2mat(0.3, -0.7, 1.9)
AFFINE = tuple(float(value) for value in np.eye(4).ravel())


def geometry(
    shape: tuple[int, ...],
    axes: tuple[int, ...] = (0, 1, 2),
    flips: tuple[bool, ...] = (False, False, False),
    larger: tuple[float, float] = (1, 1),
    step: int = 1,
) -> StackGeometry:
    three = (*shape[:3], 1)[:3]
    size = tuple(round(three[axis] * by) for axis, by in zip(axes[1:], larger, strict=True))
    return StackGeometry(
        "nifti", shape, AFFINE, *axes, *flips, page_size=(size[0], size[1]), page_step=step
    )


def made_larger(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """By nearest neighbours, written down another way than in the code under test."""
    rows, columns = (
        [min(int((index + 0.5) * old / new), old - 1) for index in range(new)]
        for old, new in zip(values.shape, size, strict=True)
    )
    return values[rows][:, columns]


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS)
def test_masks_of_all_pages_are_the_mask_of_the_source(
    axes: tuple[int, ...], flips: tuple[bool, ...]
) -> None:
    source = np.random.default_rng(0).random((5, 6, 7)) < 0.5
    stack = geometry(source.shape, axes, flips, larger=(1.6, 2.7))
    masks = {
        page: made_larger(page_of(source, stack, page), stack.page_size)
        for page in range(stack.pages)
    }
    np.testing.assert_array_equal(masks_to_source(stack, masks), source)
    # Of one page alone, every other slice stays empty.
    index = stack.slice_of(2)
    one = np.zeros_like(source)
    where = tuple(index if axis == axes[0] else slice(None) for axis in range(3))
    one[where] = source[where]
    np.testing.assert_array_equal(masks_to_source(stack, {2: masks[2]}), one)


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3).map(tuple),
    orientation=st.sampled_from(ORIENTATIONS),
    larger=st.tuples(st.floats(1, 12), st.floats(1, 12)),
    seed=st.integers(0, 9),
)
def test_the_way_back_is_exact_at_any_size(
    shape: tuple[int, ...],
    orientation: tuple[tuple[int, ...], tuple[bool, ...]],
    larger: tuple[float, float],
    seed: int,
) -> None:
    source = np.random.default_rng(seed).random(shape) < 0.5
    stack = geometry(shape, *orientation, larger=larger)
    masks = {
        page: made_larger(page_of(source, stack, page), stack.page_size)
        for page in range(stack.pages)
    }
    np.testing.assert_array_equal(masks_to_source(stack, masks), source)


def test_the_corner_of_a_page_is_the_voxel_that_axes_and_directions_say() -> None:
    source = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    stack = geometry(source.shape, (2, 0, 1), (True, False, True))
    page = page_of(source, stack, 1)
    assert page.shape == stack.slice_size == (2, 3)
    assert page[0, 0] == source[0, 2, 2]
    assert page[1, 0] == source[1, 2, 2]
    assert page[0, 1] == source[0, 1, 2]


def test_colours_times_and_steps() -> None:
    video = np.random.default_rng(0).integers(0, 255, (10, 4, 5, 3), np.uint8)
    stack = geometry((10, 4, 5), step=3)
    assert stack.pages == 4
    np.testing.assert_array_equal(page_of(video, stack, 3), video[9])
    masks = {3: np.ones((4, 5), np.bool_)}
    assert masks_to_source(stack, masks).nonzero()[0].tolist() == [9] * 20
    series = replace(geometry((4, 5, 6, 2), (2, 0, 1)), time_index=1)
    values = np.random.default_rng(1).random(series.source_shape)
    np.testing.assert_array_equal(page_of(values, series, 5), values[:, :, 5, 1])
    assert masks_to_source(series, {}).shape == (4, 5, 6)


def test_what_is_not_there_is_refused() -> None:
    stack = geometry((4, 5, 6))
    for page in (-1, 4):
        with pytest.raises(IndexError, match="4 pages"):
            page_of(np.zeros((4, 5, 6)), stack, page)
    with pytest.raises(ValueError, match="as large as"):
        masks_to_source(stack, {0: np.zeros((4, 6), np.bool_)})
    with pytest.raises(ValueError, match="some order"):
        replace(stack, row_axis=0)
    with pytest.raises(ValueError, match="16"):
        replace(stack, affine=(1.0,))


@settings(deadline=None)
@given(
    affine=st.lists(st.floats(-1e4, 1e4), min_size=16, max_size=16).map(tuple),
    window=st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)),
)
def test_json_keeps_every_bit(affine: tuple[float, ...], window: tuple[float, float]) -> None:
    stack = replace(
        geometry((4, 5, 6)),
        affine=affine,
        window=window,
        series_instance_uid="1.2.3",
        sop_instances=(SopInstance("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4", 2),),
    )
    again = geometry_from_json(stack.as_json())
    assert again == stack
    # Minus zero equals zero, and is another bit.
    assert np.array(again.affine).tobytes() == np.array(affine).tobytes()


def test_spacing_is_the_length_of_the_columns() -> None:
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, -1]]) @ np.diag([0.5, 0.7, 3])
    affine = np.eye(4)
    affine[:3, :3] = turn
    stack = replace(geometry((4, 5, 6)), affine=tuple(affine.ravel().tolist()))
    assert stack.spacing == pytest.approx((0.5, 0.7, 3))
    assert replace(stack, affine=None).spacing is None


def test_a_page_of_all_pixels_has_the_volume_of_its_slice() -> None:
    shape, spacing = (4, 10, 20), (3.0, 1.0, 0.5)
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ np.diag(spacing)
    stack = replace(
        geometry(shape, larger=(2, 1), step=2), affine=tuple(float(one) for one in affine.ravel())
    )
    assert stack.pixel_volume_ml is not None
    # Two pages of 20 x 20 pixels show 4 slices of 3 mm, each 10 mm by 10 mm.
    assert stack.pixel_volume_ml * 2 * 20 * 20 == pytest.approx(4 * 3 * 10 * 10 / 1000)
    assert replace(stack, affine=None).pixel_volume_ml is None
    assert replace(stack, affine=(0.0,) * 16).pixel_volume_ml is None


def test_damaged_geometry_is_refused_by_name() -> None:
    for text in ("", "{}", geometry((4, 5, 6)).as_json().replace('"row_axis": 1', '"row_axis": 0')):
        with pytest.raises(ImageError, match="import it again"):
            geometry_from_json(text)
