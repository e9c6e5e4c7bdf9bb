"""Inference on stacks: from masks on some pages of a task to regions on the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update

from backend.corrections.label_rules import pages_of
from backend.corrections.submissions import read_regions, regions_of_concepts
from backend.errors import PropagationError
from backend.labeling.concepts import Concept, concept_of_label
from backend.labeling.config import LabelConfig
from backend.labeling.regions import InstanceMask, new_region_id, regions_for
from backend.predictions.tables import StackPropagation
from backend.services import Services

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backend.models.encoding import EncodedImage
    from medsam3_model import ImageEmbedding, MedSAM3
    from medsam3_model.types import TextEmbedding
    from medsam3_model.video.stacks import SliceMask, StopRule

# Decoded pages that are kept: a slice and its neighbours on both sides.
_KEPT_PAGES = 4
# How often progress is written, and cancelling is looked for.
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, eq=False)
class TaskStack:
    """The pages of a task's `<Image valueList>` as slices.

    Attributes:
        image: name of the tag.
        pages: how many there are.
        read: fetches a page.
        texts: encodes a phrase.
    """

    model: MedSAM3
    image: str
    pages: int
    read: Callable[[int], EncodedImage]
    texts: Callable[[Sequence[str]], TextEmbedding]

    def propagate(
        self,
        known: Mapping[Concept, Mapping[int, NDArray[np.bool_]]],
        rule: StopRule | None = None,
    ) -> Iterator[tuple[Concept, SliceMask]]:
        """Each concept's slices, the corrected ones left out, the nearest first.

        Args:
            known: masks of the concepts by page.
            rule: where they end.
        """
        from medsam3_model.video.slices import CorrectedSlice
        from medsam3_model.video.stacks import propagate_stack

        concepts = list(known)
        page = lru_cache(maxsize=_KEPT_PAGES)(self.read)

        def encoded(place: int) -> ImageEmbedding:
            return page(place).whole(self.model)

        def picture(place: int) -> NDArray[np.uint8]:
            return page(place).rgb

        corrected = [
            CorrectedSlice(place, number, mask)
            for number, concept in enumerate(concepts)
            for place, mask in known[concept].items()
        ]
        texts = {
            number: self.texts([one.phrase])
            for number, one in enumerate(concepts)
            if one.phrase and not one.everything
        }
        for one in propagate_stack(
            self.model,
            encoded,
            self.pages,
            corrected,
            texts=texts,
            pictures=picture,
            rule=rule,
        ):
            if one.origin != "corrected":
                yield concepts[one.object_id], one

    def regions(
        self, concept: Concept, drawn: SliceMask, most_controls: int | None = None
    ) -> list[dict[str, Any]]:
        """One slice's mask as regions of its page, for each of the concept's controls."""
        height, width = drawn.mask.shape
        return regions_for(
            concept,
            [InstanceMask(drawn.mask, min(max(drawn.score, 0.0), 1.0))],
            width=width,
            height=height,
            item_index=drawn.place,
            controls=concept.controls_of(self.image)[:most_controls],
        )


@dataclass(frozen=True, eq=False)
class CorrectedStack:
    """What a propagation starts from.

    Attributes:
        masks: of each concept, by page.
        regions: of the corrected slices as they are, with ids of their own.
    """

    masks: Mapping[Concept, Mapping[int, NDArray[np.bool_]]]
    regions: list[dict[str, Any]]


def corrected_stack(
    context: Mapping[str, Any],
    config: LabelConfig,
    xml: str,
    data: Mapping[str, Any],
    max_pixels: float,
) -> CorrectedStack:
    """The corrected slices of a propagation's context.

    All regions of one label on a slice are one object.

    Raises:
        QuarantineError: a region is damaged.
        PropagationError: no region has a label that can be drawn on other slices.
    """
    pages = pages_of(xml, data)
    first = pages.first[context["image"]]
    submitted = read_regions(context["regions"], pages, max_pixels=max_pixels)
    masks: dict[Concept, dict[int, NDArray[np.bool_]]] = {}
    for (page, label), regions in regions_of_concepts(submitted).items():
        concept = concept_of_label(config, label)
        if concept is None or not concept.controls_of(context["image"]):
            continue
        mask = regions[0].mask.full()
        for region in regions[1:]:
            mask = mask | region.mask.full()
        masks.setdefault(concept, {})[page - first] = mask
    if not masks:
        raise PropagationError(
            "the corrected slices hold no region with a label that predictions can have"
        )
    # A label that is on one corrected slice and not on another has ended there.
    sizes = {place: mask.shape for own in masks.values() for place, mask in own.items()}
    for own in masks.values():
        for place, size in sizes.items():
            if place not in own:
                own[place] = _empty(size)
    ids: dict[Any, str] = {}
    kept = []
    for region in context["regions"]:
        new = ids.setdefault(region.get("id"), new_region_id())
        fields = {key: value for key, value in region.items() if key not in ("origin", "score")}
        kept.append({**fields, "id": new})
    return CorrectedStack(masks, kept)


def _empty(size: tuple[int, ...]) -> NDArray[np.bool_]:
    import numpy as np

    return np.zeros(size, np.bool_)


@dataclass
class Progress:
    """Says how far a propagation is, and ends one that was cancelled.

    Attributes:
        id: of the row.
    """

    services: Services
    id: str
    _places: set[int] = field(default_factory=set)
    _looked: float = 0.0

    def drew(self, place: int) -> None:
        """A slice was drawn.

        Raises:
            PropagationError: somebody cancelled it.
        """
        self._places.add(place)
        if time.monotonic() - self._looked >= _LOOK_EVERY_S:
            self.look()

    def look(self) -> None:
        """Write down how far it is, and whether it is still wanted."""
        self._looked = time.monotonic()
        with self.services.database.session() as session:
            session.execute(
                update(StackPropagation)
                .where(StackPropagation.id == self.id)
                .values(done=len(self._places))
            )
            cancelled = session.scalar(
                select(StackPropagation.cancelled).where(StackPropagation.id == self.id)
            )
        if cancelled or cancelled is None:
            raise PropagationError("the propagation was cancelled")


def propagated_regions(
    stack: TaskStack,
    corrected: CorrectedStack,
    context: Mapping[str, Any],
    progress: Progress,
) -> tuple[list[dict[str, Any]], float]:
    """Regions of the whole stack, the corrected ones as they are, and the mean score of the others.

    Raises:
        PropagationError: it was cancelled.
    """
    from medsam3_model.video.stacks import StopRule

    rule = StopRule(first=context.get("first") or 0, last=context.get("last"))
    progress.look()
    by_page: dict[int, list[tuple[int, list[dict[str, Any]]]]] = {}
    scores = []
    for concept, drawn in stack.propagate(corrected.masks, rule):
        scores.append(drawn.score)
        area = int(drawn.mask.sum())
        by_page.setdefault(drawn.place, []).append((area, stack.regions(concept, drawn)))
        progress.drew(drawn.place)
    progress.look()
    regions = list(corrected.regions)
    for page in sorted(by_page):
        # The editor paints the first region on top: small ones first, as everywhere.
        for _, drawn_there in sorted(by_page[page], key=lambda one: one[0]):
            regions += drawn_there
    return regions, fmean(scores) if scores else 1.0
