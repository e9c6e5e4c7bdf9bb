"""Wishes that become predictions: the rest of a stack, and a project's pre-annotation."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from backend.tables import Base, SuggestionState, new_id, now


class StackPropagation(Base):
    """One wish to have the rest of a stack drawn: before its prediction's row, and beside it.

    Attributes:
        active_key: unique while it is under way, so that the same wish is one row.
        project_id: known once the task was read.
        slices: numbers (`item_index`) of the corrected slices; None: those that somebody drew on.
        first, last: no slice before or after these; None: until the object ends.
        annotation_id: whose regions are meant; None: what was saved last on the task.
        suggestion_id: the prediction that it became.
        done, total: slices that were looked at, and pages of the task.
        cancelled: somebody does not want it any more.
        error: why it did not become a prediction.
    """

    __tablename__ = "propagations"
    __table_args__ = (Index("ix_propagations_waiting", "suggestion_id", "finished_at"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    active_key: Mapped[str | None] = mapped_column(String(64), unique=True)
    project_id: Mapped[int | None]
    task_id: Mapped[int] = mapped_column(index=True)
    slices: Mapped[list[Any] | None]
    first: Mapped[int | None]
    last: Mapped[int | None]
    annotation_id: Mapped[int | None]
    suggestion_id: Mapped[str | None] = mapped_column(String(32))
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    cancelled: Mapped[bool] = mapped_column(default=False)
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]


class Preannotation(Base):
    """One wish to have a project's tasks predicted: until all of them have their rows.

    Attributes:
        options: see `backend.predictions.preannotate.PreannotateOptions`.
        lease_until: until when somebody is at work on it, or until its next turn.
        error: why it waits, or why it came to nothing.
    """

    __tablename__ = "preannotations"
    __table_args__ = (Index("ix_preannotations_state", "state", "lease_until"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    project_id: Mapped[int]
    options: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16), default=SuggestionState.QUEUED)
    lease_until: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]
