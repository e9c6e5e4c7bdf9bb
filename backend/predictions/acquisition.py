"""Acquisition: which task to label next, as the score by which Label Studio orders them.

It serves the lowest score first. The strategies:

* `uncertainty`: where the model is least sure, from presence, instance scores and mask entropy;
* `random`: any order, the same at every look.

Until a project has a version of its own the order is random whatever it chose: what is hardest for
a model that has seen nothing like it teaches less than what is common (docs/training.md).
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.settings import Settings, Strategy
from backend.tables import Project, TrainingPolicy

if TYPE_CHECKING:
    from medsam3_model import Detections

# A pixel below this probability says nothing about where an outline runs.
_LEAST_PROBABILITY = 0.05


def strategy_of(session: Session, settings: Settings, project_id: int) -> Strategy:
    """What orders a project's tasks now: by its own choice or the setting, once it has learned."""
    own_version = select(Project.model_version).where(Project.id == project_id)
    if session.scalar(own_version) is None:
        return "random"
    chosen = select(TrainingPolicy.strategy).where(TrainingPolicy.project_id == project_id)
    return cast(Strategy, session.scalar(chosen) or settings.strategy)


def score(
    strategy: Strategy,
    project_id: int,
    task_id: int | None,
    detections: "Sequence[Detections]",
) -> float:
    """A task's score under a strategy, 0 (next) to 1 (last).

    Args:
        strategy: the project's.
        project_id: the project.
        task_id: the task; None where Label Studio did not say.
        detections: what the model detected, one per concept and page.
    """
    if not detections:
        return 0.0
    if strategy == "random":
        return _lot(project_id, task_id)
    return 1 - sum(uncertainty(concept) for concept in detections) / len(detections)


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


def _lot(project_id: int, task_id: int | None) -> float:
    digest = hashlib.sha256(f"{project_id}:{task_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
