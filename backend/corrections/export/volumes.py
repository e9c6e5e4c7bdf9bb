"""Pages of a task as one volume: what every format of volumes checks and reads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from backend.corrections.export.pages import ExportPage
from backend.corrections.mask_store import MaskStore
from backend.errors import DatasetVersionError
from backend.labeling.masks import Mask
from backend.volumes.sources import StackSource

if TYPE_CHECKING:
    from medsam3_model.images.geometry import StackGeometry


def check_sizes(slices: Sequence[ExportPage]) -> None:
    """Raises `DatasetVersionError` where pages differ in size.

    A volume has one size, also where a page has no mask: nothing is invented or stretched.
    """
    if len({page.size for page in slices}) > 1:
        raise DatasetVersionError(
            f"the pages of task {slices[0].item.task.task_id} differ in size, which a volume "
            "cannot hold: export as masks or coco"
        )


def checked_geometry(stack: StackSource, slices: Sequence[ExportPage]) -> "StackGeometry":
    """The geometry of a stack's pages.

    Raises:
        DatasetVersionError: it is damaged, or the pages are not those that it tells of.
    """
    from medsam3_model.errors import ImageError

    task_id = slices[0].item.task.task_id
    try:
        geometry = stack.geometry()
    except ImageError as error:
        raise DatasetVersionError(f"task {task_id}: {error}") from error
    if geometry.affine is not None and (
        geometry.pages != len(slices) or geometry.page_size != slices[0].size
    ):
        raise DatasetVersionError(
            f"the pages of task {task_id} are not those that were made of its volume: import the "
            "volume again, or export as masks"
        )
    return geometry


def drawn_masks(slices: Sequence[ExportPage], label: str, masks: MaskStore) -> dict[int, Mask]:
    """A label's masks by page, from 0; pages without one are left out."""
    return {
        page.item_index: masks.get(concept.mask_hash)
        for page in slices
        for concept in page.concepts
        if concept.label == label
    }
