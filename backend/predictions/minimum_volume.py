"""Minimum volumes: objects that a text found on a stack and that are too small are left out.

A page alone does not tell: the whole stack is predicted first, then its objects are put together
(`backend.labeling.stack_objects`) and measured by the geometry that was stored at the import.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from backend.errors import VolumeError
from backend.labeling.concepts import Concept
from backend.labeling.config import ImageObject, LabelConfig
from backend.labeling.regions import InstanceMask
from backend.labeling.stack_objects import stack_objects
from backend.volumes.sources import stack_sources

log = logging.getLogger(__name__)

PageInstances = list[tuple[Concept, list[InstanceMask]]]
"""The instances of each concept on one page."""


@dataclass(frozen=True)
class MinimumVolume:
    """Which objects of one stack are large enough.

    Attributes:
        task_id: of the stack.
        pixel_ml: millilitres of one pixel of a page.
        page_size: height and width of the pages in pixels, as they were imported.
        by_label: minimum in millilitres by label value; 0 keeps all.
        default_ml: of the other labels.
    """

    task_id: int
    pixel_ml: float
    page_size: tuple[int, int]
    by_label: Mapping[str, float] = field(default_factory=dict)
    default_ml: float = 0.0

    def kept(self, pages: Sequence[PageInstances]) -> list[PageInstances]:
        """All pages of a stack, in their order, without the objects that are too small.

        Instances of one label are put together whatever phrase found them.

        Raises:
            VolumeError: an instance's page has another size than it had at the import.
        """
        places: defaultdict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for page, found in enumerate(pages):
            for row, (concept, instances) in enumerate(found):
                for index, instance in enumerate(instances):
                    if instance.mask.shape != self.page_size:
                        raise VolumeError(
                            f"the pages of task {self.task_id} have another size than at the "
                            "import, so that nothing has a volume: import the stack again"
                        )
                    places[concept.label].append((page, row, index))
        dropped: set[tuple[int, int, int]] = set()
        for label, own in places.items():
            least = self.by_label.get(label, self.default_ml)
            if not least:
                continue
            masks = ((page, pages[page][row][1][index].mask) for page, row, index in own)
            for stack_object in stack_objects(masks):
                if stack_object.pixels * self.pixel_ml < least:
                    dropped.update(own[index] for index in stack_object.instances)
        kept: list[PageInstances] = []
        for page, found in enumerate(pages):
            kept.append([])
            for row, (concept, instances) in enumerate(found):
                large = [
                    instance
                    for index, instance in enumerate(instances)
                    if (page, row, index) not in dropped
                ]
                kept[-1].append((concept, large))
        return kept


def minimum_volume(
    session: Session,
    project_id: int,
    task_id: int | None,
    image: ImageObject,
    task_data: Mapping[str, Any],
    config: LabelConfig,
    default_ml: float,
) -> MinimumVolume | None:
    """What is left out of a task's stack; None where nothing is.

    Args:
        session: reads.
        project_id, task_id: whose geometry was stored at the import.
        image: the tag whose pages are predicted.
        task_data: `data` of the task.
        config: has the minimum volumes of labels.
        default_ml: of labels without one, `MEDSAM3_MIN_VOLUME_ML`.

    Raises:
        VolumeError: a label has a minimum, and the size of the task's voxels is not known.
    """
    labels = config.labels_on(image.name)
    by_label = {label: ml for label, ml in config.min_volumes_ml.items() if label in labels}
    wanting = [label for label, ml in by_label.items() if ml]
    if not image.multi_page or not (wanting or (default_ml and set(labels) - by_label.keys())):
        return None
    known = _measured(session, project_id, task_id, len(image.references(task_data)))
    if isinstance(known, str):
        if wanting:
            # Predicted all the same, objects would be there that the config says are not.
            raise VolumeError(
                f'the label "{wanting[0]}" has a min_volume_ml, but {known}: import the volume '
                "with `medsam3 import`, or remove the min_volume_ml"
            )
        log.warning("MEDSAM3_MIN_VOLUME_ML leaves nothing of task %s out: %s", task_id, known)
        return None
    assert task_id is not None
    pixel_ml, page_size = known
    return MinimumVolume(task_id, pixel_ml, page_size, by_label, default_ml)


def _measured(
    session: Session, project_id: int, task_id: int | None, pages: int
) -> tuple[float, tuple[int, int]] | str:
    """Millilitres of a pixel and size of the pages; or why they are not known."""
    from medsam3_model.errors import ImageError

    stacks = {} if task_id is None else stack_sources(session, project_id, [task_id])
    if task_id is None or task_id not in stacks:
        return "the size of the task's voxels is not known: it was not imported as a volume"
    try:
        geometry = stacks[task_id].geometry()
    except ImageError as error:
        return str(error)
    if geometry.pixel_volume_ml is None:
        return (
            f"the size of the task's voxels is not known, as its source ({geometry.kind}) has none"
        )
    if geometry.pages != pages:
        return f"the task has {pages} pages, and {geometry.pages} were imported"
    return geometry.pixel_volume_ml, geometry.page_size
