"""How unsure the model is about a task, and the order of diversity."""

import numpy as np
import pytest

from backend.predictions import acquisition
from backend.predictions.acquisition import k_center_order, uncertainty
from medsam3_model.types import Detections


def test_k_center_goes_to_the_farthest_each_time() -> None:
    points = np.array([[0.0], [0.1], [5.0], [11.0]], np.float32)
    assert k_center_order(points, np.array([[0.0]], np.float32))[:2] == [3, 2]
    order = k_center_order(points)
    assert sorted(order) == [0, 1, 2, 3]
    assert order[1] == 3


def test_k_center_orders_copies_too() -> None:
    assert sorted(k_center_order(np.ones((5, 3), np.float32))) == [0, 1, 2, 3, 4]


def test_beyond_the_centres_the_rest_follows_by_its_distance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acquisition, "_CENTRES", 2)
    points = np.array([[0.0], [1.0], [10.0], [3.0], [9.8], [1.0]], np.float32)
    # The nearest to the mean is 3, the farthest from it 10.
    assert k_center_order(points) == [3, 2, 0, 1, 5, 4]


def test_many_that_are_covered_count_as_one_by_one() -> None:
    random = np.random.default_rng(0)
    points, covered = (random.normal(0, 1, (n, 3)).astype(np.float32) for n in (20, 1100))
    distances = ((points[:, None] - covered) / points.std(axis=0)) ** 2
    farthest = int(distances.sum(axis=2).min(axis=1).argmax())
    assert k_center_order(points, covered)[0] == farthest


def detections(presence: float, scores: list[float], semantic: float) -> Detections:
    count = len(scores)
    return Detections(
        masks=np.ones((count, 4, 4), bool),
        boxes=np.zeros((count, 4), np.float32),
        scores=np.array(scores, np.float32),
        presence=presence,
        semantic=np.full((4, 4), semantic, np.float32),
    )


def test_uncertainty_is_high_where_the_model_hesitates() -> None:
    assert uncertainty(detections(0.5, [0.5], 0.5)) == pytest.approx(1, abs=1e-3)
    assert uncertainty(detections(1.0, [1.0], 1.0)) == pytest.approx(0, abs=1e-3)
    assert uncertainty(detections(0.0, [], 0.0)) == pytest.approx(0, abs=1e-3)
    assert uncertainty(detections(0.9, [0.6], 0.8)) > uncertainty(detections(0.9, [0.9], 0.8))
