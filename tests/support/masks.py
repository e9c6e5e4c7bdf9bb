"""Dice of two masks, counted apart from the product's own metrics."""

import numpy as np
from numpy.typing import NDArray


def dice(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Twice the shared pixels over the pixels of both, 0..1; two empty masks agree."""
    assert mask.shape == other.shape
    total = np.count_nonzero(mask) + np.count_nonzero(other)
    return 2 * np.count_nonzero(mask & other) / total if total else 1.0
