"""Ingestion: an annotation is read again, decoded, compared and stored at once.

Every read of Label Studio's API is an *observation* with a number, drawn before the read. Of two
observations of one annotation the one with the higher number counts: it began later, so it saw at
least what the other saw, unless the annotation changed after both, and then another event or the
next sync brings a third. So late and doubled events change nothing.

All rows of an annotation's version are written in one transaction, after its mask files. A worker
that dies at any point leaves either nothing or everything, and the next worker finds the event
still waiting.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rq.timeouts import BaseTimeoutException
from sqlalchemy import select
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from backend.corrections import events, store
from backend.corrections.baselines import find_baseline, suggestions_of
from backend.corrections.comparison import compare
from backend.corrections.cropped_mask import union
from backend.corrections.draft import Draft
from backend.corrections.groups import group_of
from backend.corrections.label_rules import check_outlined, outlines, pages_of
from backend.corrections.mask_store import MaskStore
from backend.corrections.privacy import Removed, finish_removals, write_down
from backend.corrections.source import AnnotationSource, ImageFacts, image_facts
from backend.corrections.submissions import (
    AnnotationRecord,
    Pages,
    points_of,
    read_annotation,
    read_regions,
    regions_of_concepts,
)
from backend.corrections.tables import Annotation, AnnotationState
from backend.database import Database, chunked
from backend.errors import (
    LabelStudioAuthError,
    LabelStudioError,
    LabelStudioUnavailableError,
    QuarantineError,
    StorageUnavailableError,
    Trouble,
    unforeseen,
)
from backend.label_studio.client import LabelStudio
from backend.models.encoding import embedding_places
from backend.processes.memory import OUT_OF_MEMORY, ran_out_of_memory
from backend.services import Services
from backend.settings import Settings
from backend.tables import Event

log = logging.getLogger(__name__)

# Trying again helps once Label Studio, the token or the object store is back; the event is not to
# blame.
_LATER = (LabelStudioUnavailableError, LabelStudioAuthError, StorageUnavailableError)
# Not about the annotation that is being read: the others would meet it too.
_OF_OTHERS = (
    LabelStudioError,
    StorageUnavailableError,
    BaseTimeoutException,
    OperationalError,
    InterfaceError,
    PoolTimeoutError,
    OSError,
)


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


@dataclass(frozen=True)
class Ingest:
    """Takes annotations of one Label Studio (`source`) into one store of rows and mask files.

    Attributes:
        settings: limits and the rule for groups.
    """

    database: Database
    masks: MaskStore
    source: AnnotationSource
    settings: Settings

    def take_in(self, hint: Hint) -> str | None:
        """Bring the store in line with what Label Studio says about one annotation.

        Returns:
            What changed: "revision", "deleted", "quarantined", "restored" (the version is known,
            but the row said otherwise); None when nothing did.

        What is odd about one annotation, foreseen or not, puts that one into quarantine.

        Raises:
            LabelStudioError: the API refuses or does not answer; nothing was changed.
            Exception: database, disk or time ran out, which is not about this annotation.
        """
        with self.database.session() as session:
            if store.is_forgotten(session, hint.project_id, hint.task_id):
                return None
            # Before the read: a number drawn afterwards could be higher than that of a read which
            # began later and saw more.
            number = store.observe(session)
        record: AnnotationRecord | None = None
        try:
            payload = self.source.annotation(hint.annotation_id)
            if payload is None:
                return self._deleted(number, hint)
            record = read_annotation(payload)
            config = hint.config or self.see_project(number, record.project)[0]
            data = hint.data or self.source.task_data(record.project, record.task)
            if config is None or data is None:
                return self._deleted(number, hint)
            return self.save(number, self.draft(record, config, data))
        except QuarantineError as error:
            return self._quarantined(number, hint, record, error)
        except _OF_OTHERS:
            raise
        except Exception as error:
            reason = OUT_OF_MEMORY
            if not ran_out_of_memory(error):
                log.exception("annotation %s met an unforeseen error", hint.annotation_id)
                # The text of an unforeseen error may hold anything; its type has to do.
                reason = unforeseen(error)
            trouble = QuarantineError(Trouble.UNFORESEEN, reason)
            return self._quarantined(number, hint, record, trouble)

    def see_project(self, number: int, project_id: int) -> tuple[str | None, int]:
        """Read a project's labeling config and remember it.

        Args:
            number: of the observation, drawn before the call.
            project_id: the project.

        Returns:
            The config, None when the project is gone; how many annotations it quarantined or
            released.
        """
        project = self.source.project(project_id)
        if project is None:
            return None, 0
        config = str(project.get("label_config") or "")
        with self.database.session() as session:
            return config, store.see_config(session, number, project_id, config)

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
        with self.database.reading() as session:
            known = store.known_images(session, record.task)
            suggestions = suggestions_of(session, record.project, record.task)
        images = self._images(record, pages, known)
        sizes = {
            page: (facts.height, facts.width)
            for page, (_, facts) in enumerate(images)
            if facts.height is not None and facts.width is not None
        }
        regions = read_regions(record.result, pages, max_pixels=max_pixels, image_sizes=sizes)
        submitted = regions
        regions = outlines(submitted, config)
        if not record.was_cancelled:
            points = points_of(record.result, pages)
            check_outlined(regions, points, submitted, config)
        baseline = find_baseline(
            suggestions,
            record,
            regions,
            pages,
            max_pixels=max_pixels,
            image_sizes=sizes,
            prediction=self.source.prediction,
        )
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
            # Whoever skips a task says nothing about its regions.
            outcomes=() if record.was_cancelled else tuple(compare(baseline.regions, regions)),
        )

    def save(self, number: int, draft: Draft) -> str | None:
        """Write the mask files, then the rows; returns what changed."""
        masks = list(
            dict.fromkeys((*(region.mask for region in draft.regions), *draft.concepts.values()))
        )
        hashes = dict(zip(masks, self.masks.put_all(masks), strict=True))
        with self.database.session() as session:
            store.lock_files(session, shared=True)
            # `forget` may have removed a file after it was written and before the lock was ours;
            # from here on it cannot.
            lost = [mask for mask, name in hashes.items() if not self.masks.has(name)]
            self.masks.put_all(lost)
            changed = store.save_revision(session, number, draft, hashes)
            unwanted = changed is None and store.is_forgotten(
                session, draft.record.project, draft.record.task
            )
            if unwanted:
                write_down(session, hashes.values())
        if unwanted:
            # Forgotten while it was read: what was written here must go too.
            places = embedding_places(self.settings)
            finish_removals(self.database, self.masks, places, Removed())
        return changed

    def _images(
        self,
        record: AnnotationRecord,
        pages: Pages,
        known: Mapping[tuple[int, str], ImageFacts],
    ) -> list[tuple[str, ImageFacts]]:
        """Address and facts of every page; an image is fetched once and then known."""
        images = []
        for page, reference in enumerate(pages.references):
            facts = known.get((page, reference))
            if facts is None:
                facts = image_facts(
                    self.source.image(reference, project_id=record.project, task_id=record.task)
                )
            images.append((reference, facts))
        return images

    def _deleted(self, number: int, hint: Hint) -> str | None:
        with self.database.session() as session:
            return store.save_state(
                session, number, hint.annotation_id, state=AnnotationState.DELETED
            )

    def _quarantined(
        self, number: int, hint: Hint, record: AnnotationRecord | None, error: QuarantineError
    ) -> str | None:
        log.warning("annotation %s is quarantined: %s", hint.annotation_id, error)
        with self.database.session() as session:
            return store.save_state(
                session,
                number,
                hint.annotation_id,
                project_id=record.project if record else hint.project_id,
                task_id=record.task if record else hint.task_id,
                state=AnnotationState.QUARANTINED,
                trouble=error.trouble,
                reason=str(error),
                record=record,
            )


@contextmanager
def open_ingest(services: Services) -> Iterator[Ingest]:
    """An `Ingest` with the process's settings; closes its connections to Label Studio."""
    settings = services.settings
    with LabelStudio.from_settings(settings) as client:
        yield Ingest(
            services.database,
            MaskStore(settings.storage),
            AnnotationSource(client, settings),
            settings,
        )


def ingest_events(services: Services, ids: Sequence[str]) -> None:
    """Deal with webhook events; each stays new until all that it hints at is stored.

    Raises:
        Exception: the first unforeseen error, after all events were tried, so that RQ tries
            again those that are still new.
    """
    problems: list[Exception] = []
    if services.settings.label_studio_api_key is None:
        # Recovery brings them again; RQ need not try three times at once.
        log.warning("%s events wait: LABEL_STUDIO_API_KEY is not set", len(ids))
        return
    with open_ingest(services) as ingest:
        for event_id in ids:
            try:
                ingest_event(ingest, event_id)
            except _LATER as error:
                log.warning("event %s waits: %s", event_id, error)
            except Exception as error:
                log.exception("event %s failed", event_id)
                problems.append(error)
    if problems:
        raise problems[0]


def ingest_event(ingest: Ingest, event_id: str) -> None:
    """Deal with one event, or give it up after `max_attempts`; done twice, it changes nothing.

    Raises:
        LabelStudioUnavailableError, LabelStudioAuthError, StorageUnavailableError: to be tried
            again later.
        Exception: anything unforeseen, while attempts are left.
    """
    database, limit = ingest.database, ingest.settings.max_attempts
    with database.session() as session:
        event = session.get(Event, event_id, with_for_update=True)
        if event is None or event.state != events.NEW:
            return
        # Counted before the work: an event that kills its worker must not be tried for ever.
        event.attempts += 1
    if event.attempts > limit:
        _give_up(database, event, event.error or f"the worker died {limit} times on it")
        return
    try:
        for hint in _hints(ingest, event):
            ingest.take_in(hint)
        with database.session() as session:
            events.finish(session, event_id, events.DONE)
    except _LATER as error:
        with database.session() as session:
            events.update_new(session, event_id, attempts=Event.attempts - 1, error=str(error))
        raise
    except Exception as error:
        # The text of an unforeseen error may hold anything; its type has to do.
        reason = unforeseen(error)
        if event.attempts == limit:
            _give_up(database, event, reason)
        else:
            with database.session() as session:
                events.update_new(session, event_id, error=reason)
        raise


def _hints(ingest: Ingest, event: Event) -> Iterator[Hint]:
    """The annotations to read again: those named, and those stored of the tasks and project."""
    if event.project_id is not None and event.action.startswith("PROJECT_"):
        yield from _hints_of_project(ingest, event.project_id)
        return
    for annotation_id in event.annotation_ids:
        yield Hint(int(annotation_id), _task_of(event), event.project_id)
    if event.annotation_ids or not event.task_ids:
        return
    for chunk in chunked(int(id_) for id_ in event.task_ids):
        with ingest.database.reading() as session:
            stored = session.execute(
                select(Annotation.id, Annotation.task_id, Annotation.project_id).where(
                    Annotation.task_id.in_(chunk),
                    Annotation.state != AnnotationState.DELETED,
                )
            ).all()
        for row in stored:
            yield Hint(row.id, row.task_id, row.project_id)


def _hints_of_project(ingest: Ingest, project_id: int) -> Iterator[Hint]:
    """After a change of the project: all annotations if it is gone, else what a config may heal."""
    with ingest.database.session() as session:
        number = store.observe(session)
    config, _ = ingest.see_project(number, project_id)
    affected = select(Annotation.id, Annotation.task_id).where(
        Annotation.project_id == project_id, Annotation.state != AnnotationState.DELETED
    )
    if config is not None:
        affected = affected.where(
            Annotation.trouble == Trouble.CONFIG, Annotation.revision_id.is_(None)
        )
    with ingest.database.reading() as session:
        rows = session.execute(affected).all()
    for row in rows:
        yield Hint(row.id, row.task_id, project_id)


def _task_of(event: Event) -> int | None:
    """The task that an event is about; None when it is about several, or none."""
    return int(event.task_ids[0]) if len(event.task_ids) == 1 else None


def _give_up(database: Database, event: Event, reason: str) -> None:
    """Quarantine what the event named, so that it is seen; the next version may heal it."""
    try:
        with database.session() as session:
            number = store.observe(session)
            for annotation_id in event.annotation_ids:
                store.save_state(
                    session,
                    number,
                    int(annotation_id),
                    project_id=event.project_id,
                    task_id=_task_of(event),
                    state=AnnotationState.QUARANTINED,
                    trouble=Trouble.UNFORESEEN,
                    reason=reason,
                )
            events.finish(session, event.id, events.FAILED, reason)
    except Exception:
        # What cannot even be quarantined, such as an id that no column holds, is over all the same.
        log.exception("event %s: nothing of it could be quarantined", event.id)
        with database.session() as session:
            events.finish(session, event.id, events.FAILED, reason)
