"""The table of stacks: where the pages of a task are in the volume or video they were made of."""

from datetime import datetime

from sqlalchemy import String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from backend.tables import Base, now


class Stack(Base):
    """A task whose pages were made of one volume or video.

    Attributes:
        source: the path or reference, as the admin gave it.
        source_sha256: of the source's content: one file's bytes, or the hashes of a series' files.
        geometry: JSON of `medsam3_model.images.geometry.StackGeometry`.
    """

    __tablename__ = "stacks"
    __table_args__ = (UniqueConstraint("project_id", "task_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int]
    task_id: Mapped[int]
    source: Mapped[str] = mapped_column(Text)
    source_sha256: Mapped[str] = mapped_column(String(64))
    geometry: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
