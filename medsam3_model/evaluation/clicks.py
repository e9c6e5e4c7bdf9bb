"""Simulated clicks: where an annotator would click next, given the mask and the truth.

The first click goes to the middle of the object, each further one to the middle of the largest
piece that is wrong: positive where the object is missing, negative where there is too much. That is
the protocol of the interactive segmentation literature (RITM, Sofiiuk et al. 2021; SAM, Kirillov et
al. 2023, appendix). The middle is the pixel that is farthest from the piece's edge.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True)
class Click:
    """One click: x and y in pixels of the mask, at a pixel's centre; `inside` the object or not."""

    x: float
    y: float
    inside: bool


def next_click(
    truth: NDArray[np.bool_],
    mask: NDArray[np.bool_] | None = None,
    rng: np.random.Generator | None = None,
) -> Click | None:
    """Where the next click goes, None where nothing is wrong.

    Args:
        truth: (H, W), the object.
        mask: (H, W), the answer so far; None before the first click.
        rng: draws the click anywhere in the piece, instead of its middle: for training.
    """
    missing = truth if mask is None else truth & ~mask
    surplus = np.zeros_like(truth) if mask is None else mask & ~truth
    pieces = [
        (_largest_piece(wrong), inside) for wrong, inside in ((missing, True), (surplus, False))
    ]
    piece, inside = max(pieces, key=lambda entry: int(entry[0].sum()))
    if not piece.any():
        return None
    if rng is None:
        row, column = _middle(piece)
    else:
        rows, columns = np.nonzero(piece)
        drawn = int(rng.integers(len(rows)))
        row, column = int(rows[drawn]), int(columns[drawn])
    return Click(column + 0.5, row + 0.5, inside)


def _largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, count = ndimage.label(mask, np.ones((3, 3)))
    if count <= 1:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.asarray(pieces == sizes.argmax())


def _middle(piece: NDArray[np.bool_]) -> tuple[int, int]:
    """Row and column of the pixel farthest from the piece's edge; the image's edge is one, too."""
    distance = ndimage.distance_transform_edt(np.pad(piece, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), piece.shape)
    return int(row), int(column)
