"""The tight box around a mask."""

import numpy as np

from backend.labeling.masks import extent


def test_extent_ends_behind_the_last_row_and_column() -> None:
    mask = np.zeros((6, 9), np.bool_)
    mask[2, 3] = mask[4, 7] = True
    assert extent(mask) == (2, 3, 5, 8)


def test_extent_of_an_empty_mask_is_none() -> None:
    assert extent(np.zeros((4, 5), np.bool_)) is None
