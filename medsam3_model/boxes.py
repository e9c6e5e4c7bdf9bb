"""Boxes: tight ones, as a person draws them, and the masks that a box alone is worth.

A box is (x0, y0, x1, y1) in absolute pixels of the image, float32, measured at pixel edges: the
pixel in column 3 reaches from x = 3 to x = 4, so a mask of that one column has x0 = 3, x1 = 4.
"""

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsam3_model.errors import PromptError

# Standard deviation of a person's error at each side of a box, as a share of its width or height.
BOX_ERROR = 0.08

# Nobody draws a box around a speck of fewer pixels; they come from resampled or thresholded masks.
MINIMUM_AREA = 10


def tight_box(mask: ArrayLike) -> NDArray[np.float32]:
    """The smallest box around all foreground of `mask` (H, W), bool or integers; float32 (4,).

    Raises `PromptError` where the mask is empty.
    """
    foreground = np.asarray(mask) != 0
    rows, columns = np.flatnonzero(foreground.any(1)), np.flatnonzero(foreground.any(0))
    if not rows.size:
        raise PromptError("The mask is empty, so there is no box around it.")
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def connected_instances(mask: ArrayLike) -> NDArray[np.int32]:
    """Numbers the 4-connected components of a mask (H, W) from 1; background is 0."""
    from scipy import ndimage

    labels, _ = ndimage.label(np.asarray(mask) != 0, output=np.int32)
    return labels


def instance_boxes(labels: ArrayLike, *, minimum_area: int = MINIMUM_AREA) -> NDArray[np.float32]:
    """One tight box per instance of a label map (H, W) of integers, in the order of the labels.

    Instances of fewer than `minimum_area` pixels are left out, unless nothing larger is there:
    a mask that is not empty always has a box. Returns float32 (N, 4), (0, 4) for an empty map.
    """
    from scipy import ndimage

    numbers = np.asarray(labels)
    if numbers.dtype == np.bool_:
        numbers = numbers.astype(np.uint8)
    areas = np.bincount(numbers.ravel())
    present = np.flatnonzero(areas[1:]) + 1
    if not present.size:
        return np.zeros((0, 4), np.float32)
    kept = present[areas[present] >= minimum_area]
    if not kept.size:
        kept = present[[int(areas[present].argmax())]]
    extents = ndimage.find_objects(numbers)
    return np.array(
        [
            (columns.start, rows.start, columns.stop, rows.stop)
            for rows, columns in (extents[number - 1] for number in kept)
        ],
        np.float32,
    )


def disturbed_box(
    box: ArrayLike, height: int, width: int, rng: np.random.Generator, *, error: float = BOX_ERROR
) -> NDArray[np.float32]:
    """A box as a person would draw it: each side moved by a normal error.

    The standard deviation is `error` × the box's width for x0 and x1, × its height for y0 and y1.
    The result is in the image, in order and at least one pixel wide and high.
    """
    x0, y0, x1, y1 = (float(side) for side in np.asarray(box, np.float64))
    moved = rng.normal(0.0, error, 4) * [x1 - x0, y1 - y0, x1 - x0, y1 - y0]
    left, right = _in_order(x0 + moved[0], x1 + moved[2], width)
    top, bottom = _in_order(y0 + moved[1], y1 + moved[3], height)
    return np.array([left, top, right, bottom], np.float32)


def disturbed_boxes(
    boxes: ArrayLike, height: int, width: int, *, key: str, seed: int = 0, error: float = BOX_ERROR
) -> NDArray[np.float32]:
    """`disturbed_box` for each of `boxes` (N, 4), seeded by `seed` and `key`; float32 (N, 4).

    With a key that names image and concept, an image gets the same boxes in whatever order or
    selection a data set is gone through, and every model is asked with the same ones.
    """
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    given = np.asarray(boxes, np.float32).reshape(-1, 4)
    moved = [disturbed_box(box, height, width, rng, error=error) for box in given]
    return np.array(moved, np.float32).reshape(-1, 4)


def filled_boxes_mask(boxes: ArrayLike, height: int, width: int) -> NDArray[np.bool_]:
    """Union of the filled boxes: pixels whose centre is in one of `boxes` (4,) or (N, 4)."""
    mask = np.zeros((height, width), bool)
    for box in np.asarray(boxes, np.float64).reshape(-1, 4):
        rows, columns = _covered(box, height, width)
        mask[rows, columns] = True
    return mask


def inscribed_ellipses_mask(boxes: ArrayLike, height: int, width: int) -> NDArray[np.bool_]:
    """Union of the ellipses that touch the sides of `boxes` (4,) or (N, 4), by pixel centres."""
    mask = np.zeros((height, width), bool)
    for box in np.asarray(boxes, np.float64).reshape(-1, 4):
        rows, columns = _covered(box, height, width)
        x0, y0, x1, y1 = box
        # Places of the pixels' centres, −1 and 1 at the sides of the box: a circle of radius 1.
        x = (np.arange(columns.start, columns.stop) + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)
        y = (np.arange(rows.start, rows.stop) + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2)
        mask[rows, columns] |= x[None, :] ** 2 + y[:, None] ** 2 <= 1
    return mask


def _in_order(low: float, high: float, size: int) -> tuple[float, float]:
    """The two sides inside the image, the lower first and at least a pixel apart."""
    low, high = sorted((min(max(low, 0.0), size), min(max(high, 0.0), size)))
    if high - low >= 1:
        return low, high
    start = min(max((low + high - 1) / 2, 0.0), size - 1.0)
    return start, start + 1.0


def _covered(box: NDArray[np.float64], height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns whose pixel centres are in the box."""
    x0, y0, x1, y1 = (int(edge) for edge in np.ceil(box - 0.5))
    return (
        slice(min(max(y0, 0), height), min(max(y1, 0), height)),
        slice(min(max(x0, 0), width), min(max(x1, 0), width)),
    )
