"""Boolean masks: their type, and the tight box around what they show."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def extent(mask: Mask) -> tuple[int, int, int, int] | None:
    """The tight box around the foreground of a mask bool (H, W).

    Returns:
        (top, left, bottom, right) in pixels, where bottom and right are the first row and column
        behind the foreground; None for an empty mask.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    # Only the rows that hold something: columns are the expensive direction of a large mask.
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    return top, int(columns[0]), bottom, int(columns[-1]) + 1
