"""Consensus: one mask from several annotators' masks of one image."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backend.labeling.masks import Mask

_MOST_ITERATIONS = 50
_CONVERGED = 1e-6
# Nobody is taken to be infallible: a rater who never erred would overrule all others for ever.
_SUREST = 0.999999


def majority(masks: Sequence[Mask]) -> Mask:
    """Pixels that more than half of the masks bool (H, W) have; of two masks, the overlap."""
    votes = np.sum(np.stack(masks), axis=0)
    return np.asarray(2 * votes > len(masks))


def staple(masks: Sequence[Mask]) -> Mask:
    """The most probable truth behind several raters' masks bool (H, W).

    STAPLE (Warfield et al. 2004, doi:10.1109/TMI.2004.828354) for two classes estimates each
    rater's sensitivity and specificity and the truth in turns. Only pixels about which the raters
    disagree take part in the estimate, with a fixed prior, so the image's size does not matter. One
    mask is its own consensus.
    """
    stacked = np.stack(masks)
    undecided = stacked.any(axis=0) & ~stacked.all(axis=0)
    if len(masks) == 1 or not undecided.any():
        return np.asarray(stacked.all(axis=0))
    said = stacked[:, undecided]  # (raters, pixels)
    prior = float(said.mean())
    truth = said.mean(axis=0)
    for _ in range(_MOST_ITERATIONS):
        # Maximisation: how often a rater agrees with the truth as it is believed now,
        # on foreground (sensitivity) and on background (specificity).
        sensitivity = _rate((said * truth).sum(axis=1), truth.sum())
        specificity = _rate((~said * (1 - truth)).sum(axis=1), (1 - truth).sum())
        # Expectation: Bayes' rule for each pixel, from what every rater said of it.
        foreground = prior * np.prod(
            np.where(said, sensitivity[:, None], 1 - sensitivity[:, None]), axis=0
        )
        background = (1 - prior) * np.prod(
            np.where(said, 1 - specificity[:, None], specificity[:, None]), axis=0
        )
        # Products of many raters may both round to 0: such a pixel is background.
        updated = foreground / np.maximum(foreground + background, np.finfo(np.float64).tiny)
        done = float(np.abs(updated - truth).max()) < _CONVERGED
        truth = updated
        if done:
            break
    consensus: Mask = np.array(stacked.all(axis=0))
    consensus[undecided] = truth > 0.5
    return consensus


def _rate(right: NDArray[np.floating], total: np.floating) -> NDArray[np.floating]:
    return np.clip(right / max(float(total), 1e-12), 1 - _SUREST, _SUREST)
