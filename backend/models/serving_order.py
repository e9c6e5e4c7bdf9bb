"""Serving order: which task Label Studio gives an annotator next, by the project's strategy.

* `uncertainty`: first where the model is least sure (`backend.predictions.acquisition`). Until the
  project has a version of its own any task comes first: what is hardest for a model that has seen
  nothing like it teaches less than what is common (docs/training.md);
* `random`: any.
"""

from typing import cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.label_studio.connect import UNCERTAINTY_SAMPLING, UNIFORM_SAMPLING
from backend.settings import Settings, Strategy
from backend.tables import Project, TrainingPolicy


def strategy_of(session: Session, settings: Settings, project_id: int) -> Strategy:
    """What orders a project's tasks now: by its own choice or the setting, once it has learned."""
    own_version = select(Project.model_version).where(Project.id == project_id)
    if session.scalar(own_version) is None:
        return "random"
    chosen = select(TrainingPolicy.strategy).where(TrainingPolicy.project_id == project_id)
    return cast(Strategy, session.scalar(chosen) or settings.strategy)


def sampling_of(session: Session, settings: Settings, project_id: int) -> str:
    """The same as the project's `sampling` in Label Studio."""
    if strategy_of(session, settings, project_id) == "random":
        return UNIFORM_SAMPLING
    return UNCERTAINTY_SAMPLING
