"""What exports need of a stack: the geometry of its pages, and where its source is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.database import chunked
from backend.volumes.tables import Stack

if TYPE_CHECKING:
    from medsam3_model.images.geometry import StackGeometry


@dataclass(frozen=True)
class StackSource:
    """The volume or video of a task's pages; see `backend.volumes.tables.Stack`."""

    source: str
    source_sha256: str
    geometry_json: str

    def geometry(self) -> StackGeometry:
        """Raises `medsam3_model.errors.ImageError` where what is stored is damaged."""
        from medsam3_model.images.geometry import geometry_from_json

        return geometry_from_json(self.geometry_json)


def stack_sources(
    session: Session, project_id: int, task_ids: Sequence[int]
) -> dict[int, StackSource]:
    """The stacks among a project's tasks, by the task's id."""
    return {
        stack.task_id: StackSource(stack.source, stack.source_sha256, stack.geometry)
        for ids in chunked(task_ids)
        for stack in session.scalars(
            select(Stack).where(Stack.project_id == project_id, Stack.task_id.in_(ids))
        )
    }
