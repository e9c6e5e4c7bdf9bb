"""Certainty: how sure the model is of a task, the score by which Label Studio orders tasks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from medsam3_model import Detections

# A pixel below this probability says nothing about where an outline runs.
_LEAST_PROBABILITY = 0.05


def certainty(detections: "Sequence[Detections]") -> float:
    """How sure the model is of a task, 0 to 1; 0 where it was asked for nothing.

    Args:
        detections: what the model detected, one per concept and page.
    """
    if not detections:
        return 0.0
    return 1 - sum(map(uncertainty, detections)) / len(detections)


def uncertainty(detections: "Detections") -> float:
    """How unsure the model is about one concept, 0 to 1.

    The mean of three: of presence (1 at probability 0.5), of the instances' scores likewise, and
    the mean binary entropy (bits) of the semantic map where it says anything. Where no instance
    passed, the best score that was not good enough counts as the score.
    """
    scores = detections.scores if len(detections) else np.array([detections.max_score])
    parts = [1 - abs(2 * detections.presence - 1), float(np.mean(1 - np.abs(2 * scores - 1)))]
    inside = detections.semantic[detections.semantic > _LEAST_PROBABILITY]
    parts.append(float(_entropy(inside).mean()) if inside.size else 0.0)
    return float(np.mean(parts))


def _entropy(probability: NDArray[np.floating]) -> NDArray[np.floating]:
    p = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))
