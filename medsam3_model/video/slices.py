"""Slices of a stack: what is known of an object there, and what one side of the stack estimates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SliceOrigin = Literal["corrected", "tracker", "neighbour", "detector"]
"""Who drew a mask."""

# From this log-odds on a side is sure; more must not outweigh the other side.
SURE = 8.0


@dataclass(frozen=True, eq=False)
class CorrectedSlice:
    """What is known of one object on one slice, in pixels of that slice of H x W.

    Attributes:
        place: the slice's number in the stack, from 0.
        object_id: which object.
        mask: bool (H, W), all of the object there; without a pixel, it is not there.
        points: (P, 2) x, y; without a mask only.
        point_labels: (P,), 1 in the object, 0 outside; default all 1.
        box: (4,) x0, y0, x1, y1; without a mask only.
    """

    place: int
    object_id: int
    mask: NDArray[np.bool_] | None = None
    points: Any = None
    point_labels: Any = None
    box: Any = None


@dataclass(frozen=True, eq=False)
class Estimate:
    """An object on a slice of H x W as one side sees it: log-odds (h, w) over all of it.

    Attributes:
        size: H, W.
        logits: positive inside.
        presence: probability that there is an object.
        score: 0 to 1, how well the mask is drawn.
    """

    size: tuple[int, int]
    logits: NDArray[np.floating]
    presence: float
    score: float


Estimates = dict[int, Estimate]
"""By object id."""
