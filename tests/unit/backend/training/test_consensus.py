"""One mask from those of several annotators."""

import numpy as np

from backend.training.consensus import majority, staple
from tests.support.masks import dice


def disc(side: int = 64, radius: float = 18) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return (rows - 32) ** 2 + (columns - 30) ** 2 < radius**2


def rater(truth: np.ndarray, sensitivity: float, specificity: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed).random(truth.shape)
    return np.where(truth, random < sensitivity, random > specificity)


def test_majority_needs_more_than_half() -> None:
    masks = [np.array([[1, 1, 0, 1]], bool), np.array([[1, 0, 0, 1]], bool)]
    assert majority(masks).tolist() == [[True, False, False, True]]
    masks.append(np.array([[0, 1, 0, 1]], bool))
    assert majority(masks).tolist() == [[True, True, False, True]]


def test_staple_believes_the_reliable_raters() -> None:
    truth = disc()
    good = [rater(truth, 0.95, 0.97, seed) for seed in range(2)]
    bad = [rater(truth, 0.55, 0.6, seed) for seed in range(10, 13)]
    found = staple([*good, *bad])
    assert dice(found, truth) > 0.9
    assert dice(found, truth) > dice(majority([*good, *bad]), truth) + 0.05


def test_staple_of_agreeing_raters_is_what_they_say() -> None:
    assert np.array_equal(staple([disc()]), disc())
    assert np.array_equal(staple([disc(), disc()]), disc())
    nothing = np.zeros((4, 4), bool)
    assert not staple([nothing, nothing]).any()
