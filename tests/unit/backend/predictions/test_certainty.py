"""How sure the model is of a task."""

import numpy as np
import pytest

from backend.predictions.certainty import certainty, uncertainty
from medsam3_model.types import Detections


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


def test_the_least_sure_task_has_the_lowest_score() -> None:
    sure, unsure = detections(1.0, [1.0], 1.0), detections(0.5, [0.5], 0.5)
    scores = [
        certainty(answers) for answers in ([unsure, unsure], [sure, unsure], [sure, sure], [])
    ]
    assert scores == pytest.approx([0, 0.5, 1, 0], abs=1e-3)
