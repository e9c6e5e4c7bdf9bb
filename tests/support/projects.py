"""Projects of a real Label Studio, as the end-to-end tests hand them around."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class LabelStudioProject:
    """A project of one test with its tasks, in the order of the uploaded images."""

    id: int
    task_ids: list[int]


ProjectFactory = Callable[..., LabelStudioProject]
