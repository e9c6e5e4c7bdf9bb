"""Serving order: which task Label Studio gives an annotator next, by the project's strategy.

* `uncertainty`: first where the model is least sure (`backend.predictions.certainty`). While no
  version of the project's own serves it any task comes first: what is hardest for a model that has
  seen nothing like it teaches less than what is common (docs/training.md);
* `random`: any.
"""

from typing import cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.database import Database
from backend.label_studio.connect import UNCERTAINTY_SAMPLING, UNIFORM_SAMPLING
from backend.models.versions import version_name
from backend.settings import Settings, Strategy
from backend.tables import Project, TrainingPolicy


def strategy_of(session: Session, settings: Settings, project_id: int) -> Strategy:
    """What orders a project's tasks now: by its own choice or the setting, once it has learned."""
    serving = session.scalar(select(Project.model_version).where(Project.id == project_id))
    # After a rollback to it the checkpoint's own version stands there.
    if serving in (None, version_name(settings.model, settings.adapter)):
        return "random"
    chosen = select(TrainingPolicy.strategy).where(TrainingPolicy.project_id == project_id)
    return cast(Strategy, session.scalar(chosen) or settings.strategy)


def sampling_of(database: Database, settings: Settings, project_id: int) -> str:
    """The same as the project's `sampling` in Label Studio."""
    with database.reading() as session:
        strategy = strategy_of(session, settings, project_id)
    return UNIFORM_SAMPLING if strategy == "random" else UNCERTAINTY_SAMPLING
