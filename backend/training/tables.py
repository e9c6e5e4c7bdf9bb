"""The table of training runs.

A run names its dataset version without a foreign key: corrections may be removed on request, and
nothing is to stand in the way of that.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from backend.tables import Base, new_id, now


class RunState(StrEnum):
    """Where a training run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Stage(StrEnum):
    """What a run is doing; each stage leaves a trace in the database that the next one reads."""

    DATASET = "snapshot"
    TRAINING = "training"
    GATE = "gate"
    PROMOTION = "promotion"


class Trigger(StrEnum):
    """Who asked for a run."""

    CORRECTIONS = "corrections"  # enough new ones
    SCHEDULE = "schedule"
    BUTTON = "button"  # Label Studio's *Start training*
    COMMAND = "command"
    API = "api"
    CONSOLE = "console"
    SIMULATION = "simulation"


class TrainingRun(Base):
    """One fine-tuning of a project's detector: the durable row behind a job on queue `train`.

    Attributes:
        active_key: the project while the run is under way, unique: one run per project at a time.
        again: somebody asked for a run when this one had its dataset version already; another
            one follows.
        options: the values of `backend.training.options.RunOptions` it was started with.
        dataset_id: what it is trained on, see `backend.corrections.tables.DatasetVersion`.
        incumbent: the version in service that it starts from and is judged against.
        candidate: the version it made.
        attempts: trainers that took the run since it last made a step or was given back in order.
        lease_until: a worker that is alive keeps this in the future.
        step, steps, loss, validation_dice, eta_s: progress; validation Dice is a mean, 0 to 1.
        stopped: why training ended, a key of `medsam3_model.training.endings.ENDINGS`.
    """

    __tablename__ = "training_runs"
    __table_args__ = (
        Index("ix_training_runs_project", "project_id", "created_at"),
        Index("ix_training_runs_state", "state", "lease_until"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    project_id: Mapped[int]
    active_key: Mapped[str | None] = mapped_column(String(32), unique=True)
    trigger: Mapped[str] = mapped_column(String(16))
    again: Mapped[str | None] = mapped_column(String(16))
    options: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16), default=RunState.QUEUED)
    stage: Mapped[str | None] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    lease_until: Mapped[datetime | None]
    dataset_id: Mapped[int | None]
    incumbent: Mapped[str | None] = mapped_column(String(200))
    candidate: Mapped[str | None] = mapped_column(String(200))
    step: Mapped[int] = mapped_column(default=0)
    steps: Mapped[int] = mapped_column(default=0)
    loss: Mapped[float | None]
    validation_dice: Mapped[float | None]
    eta_s: Mapped[float | None]
    stopped: Mapped[str | None] = mapped_column(String(16))
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
