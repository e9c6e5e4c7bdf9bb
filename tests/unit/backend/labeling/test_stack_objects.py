"""Instances on neighbouring slices become objects, as scipy labels the same voxels."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from backend.labeling.stack_objects import StackObject, stack_objects

EVERY_NEIGHBOUR = np.ones((3, 3), np.bool_)


def spot(*pixels: tuple[int, int], size: tuple[int, int] = (6, 8)) -> np.ndarray:
    mask = np.zeros(size, np.bool_)
    for row, column in pixels:
        mask[row, column] = True
    return mask


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.08, 0.2, 0.35]))
def test_objects_are_the_components_with_26_neighbours(seed: int, share: float) -> None:
    volume = np.random.default_rng(seed).random((5, 7, 9)) < share
    instances = []
    for place, page in enumerate(volume):
        numbered, count = ndimage.label(page, EVERY_NEIGHBOUR)
        instances += [(place, numbered == number) for number in range(1, count + 1)]
    components, count = ndimage.label(volume, np.ones((3, 3, 3)))
    found = {}
    for one in stack_objects(instances):
        painted = np.zeros_like(volume)
        for index in one.instances:
            place, mask = instances[index]
            painted[place] |= mask
        found[components[painted][0]] = one.pixels
        assert np.array_equal(painted, components == components[painted][0])
    assert found == {number: int((components == number).sum()) for number in range(1, count + 1)}


def test_what_touches_within_a_slice_stays_apart_until_a_neighbour_touches_both() -> None:
    left, right = spot((2, 2)), spot((2, 3))
    apart = stack_objects([(0, left), (0, right)])
    assert apart == [StackObject((0,), 1), StackObject((1,), 1)]
    both = stack_objects([(0, left), (0, right), (1, spot((3, 3)))])
    assert both == [StackObject((0, 1, 2), 3)]


def test_a_corner_is_enough_and_a_slice_between_is_too_much() -> None:
    assert len(stack_objects([(3, spot((1, 1))), (4, spot((2, 2)))])) == 1
    assert len(stack_objects([(3, spot((1, 1))), (4, spot((1, 3)))])) == 2
    assert len(stack_objects([(3, spot((1, 1))), (5, spot((1, 1)))])) == 2


def test_common_pixels_count_once_and_an_empty_mask_is_an_object() -> None:
    wide, narrow = spot((0, 0), (0, 1), (0, 2)), spot((0, 2), (0, 3))
    objects = stack_objects([(1, wide), (1, narrow), (2, spot((0, 2))), (2, spot())])
    assert objects == [StackObject((0, 1, 2), 4 + 1), StackObject((3,), 0)]
