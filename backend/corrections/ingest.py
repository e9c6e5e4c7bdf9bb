"""Taking an annotation in: read it again, decode it, compare it, store it at once.

Every read of Label Studio's API is an *observation* with a number, drawn before the read. Of two
observations of one annotation the one with the higher number counts: it began later, so it saw at
least what the other saw, unless the annotation changed after both, and then another event or the
next reconciliation brings a third. So late and doubled events change nothing.

All rows of an annotation's version are written in one transaction, after its mask files. A worker
that dies at any point leaves either nothing or everything, and whoever comes next finds the event
still waiting.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backend.corrections import store
from backend.corrections.baselines import Baseline, find_baseline, suggestions_of
from backend.corrections.comparison import ComparedRegion, FinalRegion, compare
from backend.corrections.cropped_mask import CroppedMask, union
from backend.corrections.groups import group_of
from backend.corrections.label_rules import outlines, pages_of
from backend.corrections.mask_store import MaskStore
from backend.corrections.privacy import Removed, finish_removals, write_down_masks
from backend.corrections.source import AnnotationSource, ImageFacts, image_facts
from backend.corrections.submissions import (
    AnnotationRecord,
    Pages,
    SubmittedRegion,
    read_annotation,
    read_regions,
    regions_of_concepts,
)
from backend.corrections.tables import AnnotationState
from backend.database import Database
from backend.errors import QuarantineError, Trouble
from backend.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hint:
    """Where to look; what is not known is asked for.

    Attributes:
        config, data: the project's labeling config and the task's data, from whoever read them
            shortly before; the config has been handed to `store.see_config` then.
    """

    annotation_id: int
    task_id: int | None = None
    project_id: int | None = None
    config: str | None = None
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Draft:
    """A revision before it is stored: what was submitted, and what that did to the suggestion."""

    record: AnnotationRecord
    content_hash: str
    group: str
    images: tuple[tuple[str, ImageFacts], ...]  # address and facts, one per page
    regions: tuple[SubmittedRegion, ...]
    concepts: Mapping[tuple[int, str], CroppedMask]
    baseline: Baseline
    outcomes: tuple[ComparedRegion, ...]


class Ingest:
    """Takes annotations of one Label Studio into one store.

    Args:
        database: rows.
        masks: files.
        source: Label Studio.
        settings: limits and the rule for groups.
    """

    def __init__(
        self, database: Database, masks: MaskStore, source: AnnotationSource, settings: Settings
    ) -> None:
        self.database = database
        self.masks = masks
        self.source = source
        self.settings = settings

    def take_in(self, hint: Hint) -> str | None:
        """Bring the store in line with what Label Studio says about one annotation.

        Returns:
            What changed: "revision", "deleted", "quarantined", "restored" (the version is known,
            but the row said otherwise); None when nothing did.

        Raises:
            LabelStudioError: the API refuses or does not answer; nothing was changed.
        """
        with self.database.session() as session:
            if store.is_forgotten(session, hint.project_id, hint.task_id):
                return None
            number = store.observe(session)
        record: AnnotationRecord | None = None
        try:
            payload = self.source.annotation(hint.annotation_id)
            if payload is None:
                return self._deleted(number, hint)
            record = read_annotation(payload)
            config = hint.config or self._config(number, record.project)
            data = hint.data or self.source.task_data(record.project, record.task)
            if config is None or data is None:
                return self._deleted(number, hint)
            draft = self.draft(record, config, data)
        except QuarantineError as error:
            return self._quarantined(number, hint, record, error)
        return self.save(number, draft)

    def draft(self, record: AnnotationRecord, config: str, data: Mapping[str, Any]) -> Draft:
        """Decode and compare one annotation.

        Args:
            record: the annotation.
            config: labeling config of its project.
            data: of its task.

        Raises:
            QuarantineError: a region, an image or the config cannot be used.
        """
        max_pixels = self.settings.max_image_megapixels * 1e6
        pages = pages_of(config, data)
        regions = read_regions(record.result, pages, max_pixels=max_pixels)
        with self.database.reading() as session:
            known = store.known_images(session, record.task)
            suggestions = suggestions_of(session, record.project, record.task)
        images = self._images(record, pages, known)
        _check_sizes(regions, images)
        regions = outlines(regions, config)
        baseline = find_baseline(
            suggestions,
            record,
            regions,
            pages,
            max_pixels=max_pixels,
            prediction=self.source.prediction,
        )
        # Whoever skips a task says nothing about its regions.
        outcomes = [] if record.was_cancelled else compare(baseline.regions, _final(regions))
        return Draft(
            record=record,
            content_hash=record.content_hash(),
            group=group_of(
                data,
                pages.references[0],
                images[0][1].hash,
                field=self.settings.group_field,
                pattern=self.settings.group_pattern,
            ),
            images=tuple(images),
            regions=tuple(regions),
            concepts={
                key: union([region.mask for region in members])
                for key, members in regions_of_concepts(regions).items()
            },
            baseline=baseline,
            outcomes=tuple(outcomes),
        )

    def save(self, number: int, draft: Draft) -> str | None:
        """Write the mask files, then the rows; returns what changed."""
        masks = list(
            dict.fromkeys((*(region.mask for region in draft.regions), *draft.concepts.values()))
        )
        hashes = dict(zip(masks, self.masks.put_all(masks), strict=True))
        with self.database.session() as session:
            store.lock_files(session, shared=True)
            # Between writing a file and naming it, `forget` may have removed it.
            lost = [mask for mask, name in hashes.items() if not self.masks.has(name)]
            self.masks.put_all(lost)
            changed = store.save_revision(session, number, draft, hashes)
            unwanted = changed is None and store.is_forgotten(
                session, draft.record.project, draft.record.task
            )
            if unwanted:
                write_down_masks(session, hashes.values())
        if unwanted:
            # Forgotten while it was read: what was written here must go too.
            finish_removals(self.database, self.masks, self.settings.embedding_dir, Removed())
        return changed

    def _config(self, number: int, project_id: int) -> str | None:
        """The project's labeling config, remembered; None when the project is gone."""
        project = self.source.project(project_id)
        if project is None:
            return None
        config = str(project.get("label_config") or "")
        with self.database.session() as session:
            store.see_config(session, number, project_id, config)
        return config

    def _images(
        self,
        record: AnnotationRecord,
        pages: Pages,
        known: Mapping[tuple[int, str], ImageFacts],
    ) -> list[tuple[str, ImageFacts]]:
        """Address and facts of every page; an image is fetched once and then known."""
        found = []
        for page, reference in enumerate(pages.references):
            facts = known.get((page, reference))
            if facts is None:
                facts = image_facts(
                    self.source.image(reference, project_id=record.project, task_id=record.task)
                )
            found.append((reference, facts))
        return found

    def _deleted(self, number: int, hint: Hint) -> str | None:
        with self.database.session() as session:
            return store.save_tombstone(session, number, hint.annotation_id)

    def _quarantined(
        self, number: int, hint: Hint, record: AnnotationRecord | None, error: QuarantineError
    ) -> str | None:
        project_id = record.project if record else hint.project_id
        task_id = record.task if record else hint.task_id
        log.warning("annotation %s is quarantined: %s", hint.annotation_id, error)
        with self.database.session() as session:
            return store.save_state(
                session,
                number,
                hint.annotation_id,
                project_id=project_id,
                task_id=task_id,
                state=AnnotationState.QUARANTINED,
                trouble=error.trouble,
                reason=str(error),
                record=record,
            )


def _final(regions: list[SubmittedRegion]) -> list[FinalRegion]:
    return [
        FinalRegion(region.id, region.labels, region.item_index, region.mask, region.shape)
        for region in regions
    ]


def _check_sizes(regions: list[SubmittedRegion], images: list[tuple[str, ImageFacts]]) -> None:
    for region in regions:
        facts = images[region.item_index][1]
        drawn = (region.mask.width, region.mask.height)
        if facts.width is not None and (facts.width, facts.height) != drawn:
            raise QuarantineError(
                Trouble.CONTENT,
                f"region {region.id[:40]!r} was drawn on {drawn[0]}×{drawn[1]} pixels, but the "
                f"image has {facts.width}×{facts.height}: draw it again on this image",
            )
