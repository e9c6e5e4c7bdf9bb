"""Scan conversion: how often a polygon winds around the centre of each pixel.

Coordinates are (x, y) with pixel *edges* at whole numbers: pixel (row r, column c) is the square
from (c, r) to (c + 1, r + 1). The non-zero rule of canvases asks whether the number is not 0, the
even-odd rule of COCO whether it is odd.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Of a large mask so many pixels are worked on at a time.
_PIXELS_AT_ONCE = 2**22
# Edges that cross a row, of all rows together, at a time.
_CROSSINGS_AT_ONCE = 2**20
# Pixels from the image beyond which sums of coordinates lose their fractions.
_FARTHEST = 1e9
# Rows that the edges of one polygon cross, all together: a minute of work.
_MOST_CROSSINGS = 10**9


def winding_numbers(
    points: NDArray[np.float64], height: int, width: int
) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """The winding numbers of an image's pixels, some rows at a time.

    Args:
        points: ``(N, 2)`` float64 (x, y) in pixels; the last point is joined to the first. Parts
            outside the image are cut off.
        height, width: of the image in pixels.

    Yields:
        The first row of a strip, and the numbers ``(rows, width)`` in it. Rows that no edge
        crosses may be left out: they are 0 there.

    Raises:
        ValueError: a coordinate is not a finite number or far away, or there are far too many
            edges; said after "the polygon".
    """
    if not np.isfinite(points).all() or np.abs(points).max(initial=0) > _FARTHEST:
        raise ValueError("has a coordinate that is not a finite number within reach")
    y0, y1 = points[:, 1], np.roll(points[:, 1], -1)
    # An edge crosses the rows whose centre line is in [upper end, lower end). Half-open, so that
    # where two edges meet, one of them crosses; horizontal edges cross nothing.
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
    stop = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
    crossings = stop - first
    if not crossings.any():
        return
    if crossings.sum() > _MOST_CROSSINGS:
        raise ValueError("winds to and fro too often: draw it with fewer points")
    # Winding numbers are larger than the mask.
    rows_at_once = max(1, _PIXELS_AT_ONCE // (width + 1))
    for top in range(int(first[crossings > 0].min()), int(stop.max()), rows_at_once):
        bottom = min(top + rows_at_once, height)
        begin, end = np.clip(first, top, bottom), np.clip(stop, top, bottom)
        yield top, _strip(points, begin, end, top, bottom, width)


def _strip(
    points: NDArray[np.float64],
    first: NDArray[np.int64],
    stop: NDArray[np.int64],
    top: int,
    bottom: int,
    width: int,
) -> NDArray[np.int32]:
    """The numbers in rows top..bottom; edge i crosses rows first..stop."""
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    winding = np.zeros((bottom - top, width + 1), dtype=np.int32)
    crossing = np.flatnonzero(stop > first)
    ends = np.cumsum((stop - first)[crossing])
    # Some edges at a time: many long ones have more crossings than the memory holds.
    bounds = np.searchsorted(ends, np.arange(0, ends[-1] if ends.size else 0, _CROSSINGS_AT_ONCE))
    for some in np.split(crossing, bounds[1:]):
        # One entry for each edge and each row that it crosses: where, and in which direction.
        counts = (stop - first)[some]
        edge = np.repeat(some, counts)
        row = np.arange(edge.size) - np.repeat(np.cumsum(counts) - counts, counts)
        row += first[edge]
        slope = (x1 - x0)[edge] / (y1 - y0)[edge]
        x = x0[edge] + (row + 0.5 - y0[edge]) * slope
        # The crossing turns all pixels whose centres are right of it, so their sum along a row is
        # the winding number of each pixel.
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        np.add.at(winding, (row - top, column), np.where(y1 > y0, 1, -1)[edge])
    return np.cumsum(winding, axis=1, dtype=np.int32)[:, :width]
