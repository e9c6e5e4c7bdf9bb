"""Shapes between slices: signed distances, and masks that follow the picture from slice to slice.

Both ways need no training. Distances between two corrected slices are interpolated as shapes are
(Raya and Udupa, IEEE TMI 9, 1990). A mask is bent to the next slice by the dense optical flow
between the two pictures (DIS, Kroeger et al., ECCV 2016, as OpenCV has it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float32]

# Flow looks at patches of 8 pixels: smaller pictures are enlarged to this shorter side.
_LEAST_SIDE = 96
# Distances where a mask has no edge at all.
_FAR = 1e4


def signed_distance(mask: NDArray[np.bool_]) -> Field:
    """Distance to a mask's edge in pixels, float32 (H, W): positive inside, negative outside."""
    if mask.all() or not mask.any():
        return np.full(mask.shape, _FAR if mask.any() else -_FAR, np.float32)
    inside = ndimage.distance_transform_edt(mask)
    outside = ndimage.distance_transform_edt(~mask)
    return np.asarray(inside - outside, np.float32)


def mask_radius(mask: NDArray[np.bool_]) -> float:
    """Radius of the disc as large as a mask, at least one pixel."""
    return max(1.0, float(np.sqrt(mask.sum() / np.pi)))


def flow_between(before: NDArray[np.uint8], here: NDArray[np.uint8]) -> Field:
    """For each pixel of a slice how far away it was on the one before: float32 (H, W, 2), x and y.

    Args:
        before: uint8 (H, W) or (H, W, 3).
        here: of the same size.
    """
    height, width = here.shape[:2]
    scale = max(1, -(-_LEAST_SIDE // min(height, width)))
    size = (width * scale, height * scale)
    pictures = [cv2.resize(_grey(picture), size) for picture in (here, before)]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    moved = np.asarray(flow.calc(pictures[0], pictures[1], None), np.float32) / scale  # type: ignore[call-overload]
    return np.asarray(cv2.resize(moved, (width, height)), np.float32)


def bent(mask: NDArray[np.bool_], flow: Field) -> NDArray[np.bool_]:
    """A mask of the slice before on this one, along `flow_between` the two."""
    height, width = mask.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    distance = cv2.remap(
        signed_distance(mask),
        columns + flow[..., 0],
        rows + flow[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(distance > 0)


def _grey(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if picture.ndim == 2:
        return np.ascontiguousarray(picture)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY), np.uint8)


def nearest_copy(known: Mapping[int, NDArray[np.bool_]], count: int) -> Sequence[NDArray[np.bool_]]:
    """Every slice of a stack as the nearest known one; of two as near the earlier one."""
    return [known[min(sorted(known), key=lambda at: abs(at - place))] for place in range(count)]


def interpolated(known: Mapping[int, NDArray[np.bool_]], count: int) -> Sequence[NDArray[np.bool_]]:
    """Every slice of a stack by the shape between known ones; outside of them as the nearest.

    Args:
        known: masks bool (H, W) by place, at least one.
        count: slices of the stack.
    """
    return [interpolated_at(known, place) for place in range(count)]


def interpolated_at(known: Mapping[int, NDArray[np.bool_]], place: int) -> NDArray[np.bool_]:
    """One slice by the signed distances of the known ones on both sides."""
    before = max((at for at in known if at <= place), default=min(known))
    after = min((at for at in known if at >= place), default=max(known))
    if before == after:  # a known slice, or beyond all of them
        return known[before]
    weight = (after - place) / (after - before)
    distance = weight * signed_distance(known[before]) + (1 - weight) * signed_distance(
        known[after]
    )
    return np.asarray(distance > 0)
