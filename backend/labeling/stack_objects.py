"""Objects of a stack: instances on neighbouring slices that touch are one in three dimensions."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from backend.labeling.masks import Mask, extent


@dataclass(frozen=True)
class StackObject:
    """One object of a stack.

    Attributes:
        instances: indices of its instances, ascending.
        pixels: how many it has on all slices; what several instances cover on one counts once.
    """

    instances: tuple[int, ...]
    pixels: int


@dataclass(frozen=True, eq=False)
class _Cropped:
    """An instance's foreground: bool (h, w), with its corner at (top, left) of its slice."""

    index: int
    top: int
    left: int
    pixels: Mask


def stack_objects(instances: Iterable[tuple[int, Mask]]) -> list[StackObject]:
    """Group the instances of one label in a stack to objects in three dimensions.

    Two instances are of one object where their slices follow each other and a pixel of one has a
    pixel of the other among the nine that are next to it there: the 26 neighbours in (slice, row,
    column). Instances that touch within a slice stay apart, as the model or the annotator has them,
    unless an instance on a neighbouring slice touches both. An instance is never taken apart.

    Args:
        instances: slice's number, mask bool (H, W); all slices have one size.

    Returns:
        The objects, in the order of their first instances. Every instance is in one of them; one
        without a pixel is an object by itself.
    """
    by_slice: defaultdict[int, list[_Cropped]] = defaultdict(list)
    parents: list[int] = []  # a forest: instances with one root are one object
    for index, (place, mask) in enumerate(instances):
        parents.append(index)
        top, left, bottom, right = extent(mask) or (0, 0, 0, 0)
        by_slice[place].append(_Cropped(index, top, left, mask[top:bottom, left:right].copy()))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for place, here in by_slice.items():
        for instance in here:
            for other in by_slice.get(place + 1, ()):
                first, second = sorted((root(instance.index), root(other.index)))
                if first != second and _touch(instance, other):
                    parents[second] = first  # the smaller index: an object's first instance
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index in range(len(parents)):
        members[root(index)].append(index)
    pixels: defaultdict[int, int] = defaultdict(int)
    for here in by_slice.values():
        together: defaultdict[int, list[_Cropped]] = defaultdict(list)
        for instance in here:
            together[root(instance.index)].append(instance)
        for key, parts in together.items():
            pixels[key] += _covered(parts)
    return [StackObject(tuple(members[key]), pixels[key]) for key in sorted(members)]


def _touch(one: _Cropped, other: _Cropped) -> bool:
    """Whether a pixel of one has a pixel of the other among the nine around its place."""
    # A window of both that holds every place where they can meet, one pixel around `one` included.
    top, left = max(one.top - 1, other.top), max(one.left - 1, other.left)
    bottom = min(one.top + one.pixels.shape[0] + 1, other.top + other.pixels.shape[0])
    right = min(one.left + one.pixels.shape[1] + 1, other.left + other.pixels.shape[1])
    if top >= bottom or left >= right:
        return False
    theirs = other.pixels[
        top - other.top : bottom - other.top, left - other.left : right - other.left
    ]
    # Two pixels of nothing on each side: the window begins at most one pixel before `one`, and a
    # shift by one more must not leave the array.
    padded = np.pad(one.pixels, 2)
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            row, column = top - one.top + 2 + down, left - one.left + 2 + across
            ours = padded[row : row + bottom - top, column : column + right - left]
            if (ours & theirs).any():
                return True
    return False


def _covered(parts: list[_Cropped]) -> int:
    """How many pixels of a slice the instances cover."""
    if len(parts) == 1:
        return int(np.count_nonzero(parts[0].pixels))
    top, left = min(one.top for one in parts), min(one.left for one in parts)
    bottom = max(one.top + one.pixels.shape[0] for one in parts)
    right = max(one.left + one.pixels.shape[1] for one in parts)
    together = np.zeros((bottom - top, right - left), np.bool_)
    for one in parts:
        height, width = one.pixels.shape
        together[one.top - top :, one.left - left :][:height, :width] |= one.pixels
    return int(np.count_nonzero(together))
