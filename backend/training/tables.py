"""The tables of the learning loop.

Revisions are named by their ids without foreign keys: corrections may be removed on request, and
then a snapshot has fewer of them, but nothing stands in the way of the removal.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, LargeBinary, String, Text
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

    SNAPSHOT = "snapshot"
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
    SIMULATION = "simulation"


class PromotionKind(StrEnum):
    """How a version came into service."""

    GATE = "gate"
    MANUAL = "manual"
    FORCED = "forced"  # although the gate had said no, or had not been asked
    ROLLBACK = "rollback"


class TrainingRun(Base):
    """One fine-tuning of a project's detector: the durable row behind a job on queue `train`.

    Attributes:
        active_key: the project while the run is under way, unique: one run per project at a time.
        again: somebody asked for a run while this one was already past its snapshot; another one
            follows.
        options: the values of `backend.training.options.RunOptions` it was started with.
        dataset_id: the snapshot, see `backend.corrections.tables.DatasetVersion`.
        incumbent: the version in service that it starts from and is judged against.
        candidate: the version it made.
        lease_until: a worker that is alive keeps this in the future.
        step, steps, loss, validation_dice, eta_s: progress; validation Dice is a mean, 0 to 1.
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
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class GateVerdict(Base):
    """What the gate found for a run's candidate; written once, never changed.

    Attributes:
        passed: the candidate may go into service.
        reasons: one sentence for each thing that decided.
        figures: see `backend.training.gate.Verdict.figures`.
    """

    __tablename__ = "gate_verdicts"

    run_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    candidate: Mapped[str] = mapped_column(String(200))
    incumbent: Mapped[str] = mapped_column(String(200))
    passed: Mapped[bool]
    reasons: Mapped[list[Any]]
    figures: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Promotion(Base):
    """A version came into service for a project; the newest row of a project is the one in force.

    Attributes:
        previous: what was in service before, to which a rollback returns.
        rolled_out_at: when Label Studio had been told and the unlabelled tasks had been queued.
        attempts, error: of the roll-out.
    """

    __tablename__ = "promotions"
    __table_args__ = (Index("ix_promotions_project", "project_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int]
    version: Mapped[str] = mapped_column(String(200))
    previous: Mapped[str] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(16))
    run_id: Mapped[str | None] = mapped_column(String(32))
    attempts: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    tried_at: Mapped[datetime | None]
    rolled_out_at: Mapped[datetime | None]


class TrainingPolicy(Base):
    """A project's own choices; None stands for the setting of the same meaning.

    Attributes:
        after_corrections: new corrections that start a run; 0: never by itself.
        schedule: a cron line, or an empty text for no schedule.
        strategy: which tasks to label next, see `backend.predictions.acquisition`.
        consensus: what several annotators' masks of one image become.
        auto_promote: whether a candidate that passes the gate goes into service by itself.
        scheduled_at: the last moment of the schedule that was acted upon.
    """

    __tablename__ = "training_policies"

    project_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    after_corrections: Mapped[int | None]
    schedule: Mapped[str | None] = mapped_column(String(100))
    strategy: Mapped[str | None] = mapped_column(String(32))
    consensus: Mapped[str | None] = mapped_column(String(16))
    auto_promote: Mapped[bool | None]
    scheduled_at: Mapped[datetime | None]


class ImageVector(Base):
    """An image's embedding, averaged over its patches: float16, as many as the encoder has."""

    __tablename__ = "image_vectors"

    image_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    encoder_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    vector: Mapped[bytes] = mapped_column(LargeBinary)


class TaskRank(Base):
    """A task's place in the order of labelling, 0 (next) to 1, where a strategy looks at all."""

    __tablename__ = "task_ranks"

    project_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    rank: Mapped[float]
