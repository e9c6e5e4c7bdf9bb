"""The tables that several rooms read. Times are UTC; Label Studio's objects keep their ids.

What only corrections or only training read is in the tables of those rooms.
"""

import hashlib
import secrets
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, cast

from pydantic import Field
from sqlalchemy import (
    JSON,
    DateTime,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# What a column for ids and counts holds: PostgreSQL's INTEGER.
LARGEST_INTEGER = 2**31 - 1
Id = Annotated[int, Field(strict=True, ge=0, le=LARGEST_INTEGER)]


def now() -> datetime:
    """The current time, UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """A random 32-character id."""
    return secrets.token_hex(16)


class UtcDateTime(TypeDecorator[datetime]):
    """A UTC time; SQLite drops the zone on the way in, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Return the stored time with its zone."""
        if value is not None and value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value


class Base(DeclarativeBase):
    """Declarative base; JSON columns hold what Label Studio sends or receives."""

    type_annotation_map = {  # noqa: RUF012
        datetime: UtcDateTime,
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
    }


def table_of(entity: type[Base]) -> Table:
    """The table of a mapped class, for statements that need no objects."""
    return cast(Table, entity.__table__)


class SuggestionState(StrEnum):
    """Where a suggestion stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    # Somebody ended the pre-annotation before its turn came, or gave up waiting for the prompt.
    CANCELLED = "cancelled"


class Delivery(StrEnum):
    """Who brings a suggestion to Label Studio, or brought it."""

    REPLY = "reply"  # a /predict that is still waiting will answer with it
    PUSH = "push"  # the waiting ended: to be pushed through the API
    PUSHING = "pushing"  # a worker is sending it right now
    ANSWERED = "answered"  # went out as an answer; whether it arrived is looked up
    DELIVERED = "delivered"
    LOOK = "look"  # not for Label Studio: an agent's run asked and reads it
    PREVIEW = "preview"  # not for Label Studio: a sheet of pictures is made of it
    NONE = "none"  # nothing to bring: failed, superseded, or the caller is gone for good


class PromotionKind(StrEnum):
    """How a version came into service."""

    GATE = "gate"
    MANUAL = "manual"
    FORCED = "forced"  # although the gate had said no, or had not been asked
    ROLLBACK = "rollback"


class Project(Base):
    """A Label Studio project that this backend has seen.

    `model_version` is the version in service for the project; empty: the default model.
    """

    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str | None] = mapped_column(Text)
    label_config: Mapped[str | None] = mapped_column(Text)
    model_version: Mapped[str | None] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now, onupdate=now)


class LabelConfigText(Base):
    """A labeling config by the hash of its text: what a suggestion was made for."""

    __tablename__ = "label_configs"

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    xml: Mapped[str] = mapped_column(Text)


def config_hash(xml: str) -> str:
    """The name under which a labeling config is stored: SHA-256 of its text."""
    return hashlib.sha256(xml.encode()).hexdigest()


class Suggestion(Base):
    """One prediction of one task: the durable row behind a job, and later its result.

    `active_key` is set while the suggestion is under way and unique among those, so that a task
    asked for twice at the same time is predicted once. The ids of the regions in `result` tell
    later which suggestion an annotation started from.

    `labels`: the label values that the prediction was asked for, None for all. What it found takes
    the place of these labels' regions in the prediction that the task has of the version.

    `waits_since` is when its image could not be fetched for the first time, while it waits for it.
    `delivered_at` is when it was known to be in Label Studio: who listed its task before asks for
    nothing again.

    `agent_run_id` names the agent's run whose answer this is, or which asked for it (see
    `backend.predictions.agent_looks`).
    """

    __tablename__ = "suggestions"
    __table_args__ = (
        Index("ix_suggestions_state", "state", "lease_until"),
        Index("ix_suggestions_delivery", "delivery", "state"),
        # State and time with them: rows carry masks, and are not read to learn these.
        Index("ix_suggestions_task", "project_id", "task_id", "state", "finished_at"),
        Index("ix_suggestions_project", "project_id", "created_at"),
        Index("ix_suggestions_created", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    active_key: Mapped[str | None] = mapped_column(String(64), unique=True)
    request_id: Mapped[str | None] = mapped_column(String(32), index=True)
    project_id: Mapped[int]
    task_id: Mapped[int | None]
    interactive: Mapped[bool] = mapped_column(default=False)
    config_hash: Mapped[str] = mapped_column(ForeignKey("label_configs.hash"))
    task_data: Mapped[dict[str, Any]]
    context: Mapped[dict[str, Any] | None]
    labels: Mapped[list[Any] | None]
    model_version: Mapped[str] = mapped_column(String(200))

    state: Mapped[str] = mapped_column(String(16), default=SuggestionState.QUEUED)
    delivery: Mapped[str] = mapped_column(String(16), default=Delivery.REPLY)
    reply_until: Mapped[datetime | None]
    lease_until: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    waits_since: Mapped[datetime | None]

    result: Mapped[list[Any] | None]
    score: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(Text)
    image_hash: Mapped[str | None] = mapped_column(String(64))
    model_s: Mapped[float | None]
    agent_run_id: Mapped[str | None] = mapped_column(String(32), index=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]
    delivered_at: Mapped[datetime | None]


class AgentRun(Base):
    """An agent at work on one task: what it was asked, what it did so far, what came of it.

    Attributes:
        suggestion_id: the prediction that it begins with; there is one run for each.
        instruction: what an annotator typed, or nothing.
        questions: one for each label and page, see `backend.predictions.agent_runs.AgentQuestion`.
        exchanges: with the language model, without pixels: `question`, `action`, and what is in
            `backend.agent.partner.Exchange`.
        outcomes: of the questions that are answered, in their order.
        requests, prompt_tokens, completion_tokens, seconds, cost: so far; no cost without prices.
        asked_at: of the last request, for the budget of a day.
        prediction_id: the prediction that the agent changed; None: it left the model's own.
        error: why it could not go on; the model's own prediction stands.
    """

    __tablename__ = "agent_runs"
    __table_args__ = (
        UniqueConstraint("suggestion_id"),
        Index("ix_agent_runs_state", "state", "lease_until"),
        Index("ix_agent_runs_task", "project_id", "task_id"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    suggestion_id: Mapped[str] = mapped_column(String(32))
    project_id: Mapped[int]
    task_id: Mapped[int]
    config_hash: Mapped[str] = mapped_column(ForeignKey("label_configs.hash"))
    model_version: Mapped[str] = mapped_column(String(200))
    instruction: Mapped[str] = mapped_column(Text, default="")
    questions: Mapped[list[Any]]

    state: Mapped[str] = mapped_column(String(16), default=SuggestionState.QUEUED)
    lease_until: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    exchanges: Mapped[list[Any]] = mapped_column(default=list)
    outcomes: Mapped[list[Any]] = mapped_column(default=list)
    image_hashes: Mapped[list[Any]] = mapped_column(default=list)
    requests: Mapped[int] = mapped_column(default=0)
    prompt_tokens: Mapped[int] = mapped_column(default=0)
    completion_tokens: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)
    cost: Mapped[float | None]
    asked_at: Mapped[datetime | None]
    prediction_id: Mapped[str | None] = mapped_column(String(32))
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]


class AgentPicture(Base):
    """A picture that a run sent, where the settings keep them; JPEG."""

    __tablename__ = "agent_pictures"

    run_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    jpeg: Mapped[bytes] = mapped_column(LargeBinary)


class Event(Base):
    """A webhook's event, stripped to ids; a hint that something changed in Label Studio."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_state", "state", "created_at"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    action: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[int | None]
    task_ids: Mapped[list[Any]]
    annotation_ids: Mapped[list[Any]]
    state: Mapped[str] = mapped_column(String(16), default="new")
    attempts: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]


class ModelVersion(Base):
    """A model that predictions may carry as `model_version`; never overwritten.

    Attributes:
        checkpoint, adapter: the model, or the base of a detector that was trained here.
        detector: name of the trained detector in the `DetectorStore`; None: the checkpoint's own.
        project_id: the project that it was trained for; None: any.
        parent: the version that it was trained from.
        run_id: the training run that made it.
        card: its model card, see `backend.models.card`.
    """

    __tablename__ = "model_versions"
    __table_args__ = (UniqueConstraint("version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(String(200))
    checkpoint: Mapped[str] = mapped_column(Text)
    adapter: Mapped[str | None] = mapped_column(Text)
    detector: Mapped[str | None] = mapped_column(String(200))
    project_id: Mapped[int | None]
    parent: Mapped[str | None] = mapped_column(String(200))
    run_id: Mapped[str | None] = mapped_column(String(32))
    card: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


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
        strategy: which tasks to label next, see `backend.models.serving_order`.
        consensus: what several annotators' masks of one image become.
        auto_promote: whether a candidate that passes the gate goes into service by itself.
        agent: whether an agent looks at uncertain tasks, for all labels or for none; None: for the
            labels that say `mode="agent"`.
        adapter: whether runs train an adapter of the encoder's last blocks, too; None: no.
        scheduled_at: the last moment of the schedule that was acted upon.
    """

    __tablename__ = "training_policies"

    project_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    after_corrections: Mapped[int | None]
    schedule: Mapped[str | None] = mapped_column(String(100))
    strategy: Mapped[str | None] = mapped_column(String(32))
    consensus: Mapped[str | None] = mapped_column(String(16))
    auto_promote: Mapped[bool | None]
    agent: Mapped[bool | None]
    adapter: Mapped[bool | None]
    scheduled_at: Mapped[datetime | None]
