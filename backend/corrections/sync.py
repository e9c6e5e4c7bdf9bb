"""The sync with Label Studio: its API is the truth, webhook events are hints.

The sync of a project has three steps, each of which costs what changed and not what there is:

1. The tasks with annotations that changed since the cursor are read again. The cursor is the
   newest change of any task before the last sync began, in Label Studio's own time, so clocks
   that differ do no harm. A sync that is cut short goes on where it was.
2. Deleted tasks leave no trace in the API. So the number of annotations in Label Studio is
   compared with the number in the store, for the whole project and, where they differ, for halves
   of it, down to a handful of tasks whose annotations are listed.
3. What is quarantined for a reason that may have passed is tried again.

`keep_up` does it for all projects, switches their webhooks on again, and removes what nobody needs
any more.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta

from rq.timeouts import BaseTimeoutException
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.exc import InterfaceError, OperationalError

from backend.corrections import events, store
from backend.corrections.ingest import Hint, Ingest, open_ingest
from backend.corrections.privacy import Removed, finish_removals, retain
from backend.corrections.source import AnnotatedTask, between, changed_since
from backend.corrections.sync_report import SyncReport
from backend.corrections.tables import Annotation, AnnotationState, Forgotten, ProjectRecord
from backend.database import remove_drafts
from backend.errors import (
    BackendError,
    LabelStudioAuthError,
    LabelStudioError,
    LabelStudioUnavailableError,
    StorageUnavailableError,
    Trouble,
)
from backend.label_studio.connect import switch_on_webhooks
from backend.models.encoding import embedding_places
from backend.people import audit
from backend.processes.health import note_round
from backend.services import Services, current_services
from backend.tables import Project, now

log = logging.getLogger(__name__)

# Transactions that were open when the newest change was asked for may carry an earlier time.
OVERLAP = timedelta(seconds=10)
# Up to this many tasks that hold annotations are listed; more are counted in halves.
LEAF_TASKS = 100
# Tasks after which a sync that is cut short is not begun anew.
SAVE_EVERY = 20
# Quarantined annotations that one sync tries again.
MOST_RETRIES = 200
_AWAY = (LabelStudioUnavailableError, LabelStudioAuthError, StorageUnavailableError)
# The other annotations would meet these too.
_STOPS = (*_AWAY, BaseTimeoutException, OperationalError, InterfaceError)
_RETRIED = (Trouble.IMAGE, Trouble.UNFORESEEN)
# Nobody looks at events that were dealt with after a month.
KEEP_EVENTS = timedelta(days=30)


def keep_up_job(_ids: Sequence[str]) -> None:
    """Handler on queue `ingest`: `keep_up`, or the next time if what it needs is not there."""
    try:
        services = current_services()
        keep_up(services)
        note_round(services.redis, "sync")
    except _AWAY as error:
        log.warning("the sync with Label Studio waits for its next turn: %s", error)


def keep_up(services: Services) -> None:
    """Sync all known projects and their webhooks, remove what is past its time, prune events.

    A project that cannot be synced does not keep the others from their turn, and a Label Studio
    that is away does not keep what is past its time.

    Raises:
        LabelStudioUnavailableError, LabelStudioAuthError, StorageUnavailableError: the next round
            tries again.
    """
    settings = services.settings
    away: BackendError | None = None
    with open_ingest(services) as ingest:
        for project_id in known_projects(ingest):
            try:
                sync_project(ingest, project_id)
                switched_on = switch_on_webhooks(
                    ingest.source.client, project_id, services.credentials
                )
                if switched_on:
                    log.warning("project %s: Label Studio had switched its webhook off", project_id)
            except _AWAY as error:
                away = error
                break
            except BaseTimeoutException:
                raise
            except LabelStudioError as error:
                log.warning("project %s was not synced: %s", project_id, error)
            except Exception:
                log.exception("project %s was not synced", project_id)
        places = embedding_places(settings)
        if settings.retention_days is not None:
            retain(services.database, ingest.masks, places, days=settings.retention_days)
        else:
            # What a removal left behind that could not reach a store.
            finish_removals(services.database, ingest.masks, places, Removed())
        ingest.masks.remove_drafts()
        remove_drafts(settings.data_dir)
    with services.database.session() as session:
        events.prune(session, now() - KEEP_EVENTS)
        audit.prune(session, now() - timedelta(days=settings.audit_days))
    if away:
        raise away


def known_projects(ingest: Ingest) -> list[int]:
    """The projects that this backend serves or holds corrections of."""
    with ingest.database.reading() as session:
        served = set(session.scalars(select(Project.id)))
        known = served | set(session.scalars(select(ProjectRecord.project_id)))
        forgotten = session.scalars(select(Forgotten.project_id).where(Forgotten.task_id == 0))
        return sorted(known - set(forgotten))


def sync_project(
    ingest: Ingest,
    project_id: int,
    *,
    from_start: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> SyncReport:
    """Bring the store in line with what Label Studio says about a project.

    Args:
        ingest: the store and Label Studio.
        project_id: the project; one that is gone has all its annotations marked as deleted.
        from_start: read all annotations again, not only those of changed tasks.
        progress: called with the number of annotations read, after each.

    Raises:
        LabelStudioError: the API refuses or does not answer; the next sync goes on from there.
    """
    began = now()
    report = SyncReport(project_id)
    with ingest.database.session() as session:
        number = store.observe(session)
    config, report.labels_changed = ingest.see_project(number, project_id)
    sync = _Sync(ingest, report, config, progress)
    newest = None
    if config is None:
        sync.take_in(sync.stored())
    else:
        with ingest.database.reading() as session:
            known = session.get_one(ProjectRecord, project_id)
        if from_start or known.reading_until is None:
            # Asked before the tasks are read: what changes meanwhile is newer, the next sync's.
            newest, after = ingest.source.newest_change(project_id), 0
        else:
            newest, after = known.reading_until, known.read_to_task or 0
        cursor = None if from_start else known.tasks_changed_until
        sync.read_changed(cursor, after, None if from_start else newest)
        sync.find_deleted()
        sync.try_again()
    report.seconds = round((now() - began).total_seconds(), 3)
    with ingest.database.session() as session:
        record = session.get(ProjectRecord, project_id)
        if record is not None:
            record.report, record.synchronized_at = asdict(report), now()
            record.reading_until = record.read_to_task = None
            if newest is not None and not report.failed:
                record.tasks_changed_until = newest.astimezone(UTC)
    if report.repaired:
        log.info("project %s: %s corrections repaired: %s", project_id, report.repaired, report)
    return report


@dataclass
class _Sync:
    """One sync of one project; it reads each annotation at most once."""

    ingest: Ingest
    report: SyncReport
    config: str | None
    progress: Callable[[int], None]
    read: set[int] = field(default_factory=set)

    @property
    def project_id(self) -> int:
        return self.report.project_id

    def take_in(self, hints: Iterable[Hint]) -> None:
        report = self.report
        for hint in hints:
            if hint.annotation_id in self.read:
                continue
            self.read.add(hint.annotation_id)
            report.read += 1
            try:
                changed = self.ingest.take_in(replace(hint, config=self.config))
            except _STOPS:
                raise
            except Exception:
                # The others have their turn; the cursor stays, so that this one has it again.
                log.exception("annotation %s was not synced", hint.annotation_id)
                report.failed += 1
                continue
            report.revisions += changed == "revision"
            report.deleted += changed == AnnotationState.DELETED
            report.restored += changed == "restored"
            report.quarantined += changed == AnnotationState.QUARANTINED
            self.progress(report.read)

    def read_changed(self, cursor: datetime | None, after: int, until: datetime | None) -> None:
        """Read the tasks that changed since the cursor, all of them where there is none.

        Args:
            cursor: where the last sync ended.
            after: a sync that was cut short has read the tasks up to this id.
            until: the newest change when the reading began, which a sync that goes on must know;
                None: this one cannot be gone on with.
        """
        filters = [changed_since(cursor - OVERLAP)] if cursor else []
        tasks = self.ingest.source.annotated_tasks(self.project_id, filters, after=after)
        for task in tasks:
            self.report.changed_tasks += 1
            self._read_task(task)
            # What failed has its turn again, so nothing behind it counts as read.
            if until and not self.report.failed and self.report.changed_tasks % SAVE_EVERY == 0:
                self.ingest.database.update(
                    ProjectRecord,
                    ProjectRecord.project_id == self.project_id,
                    reading_until=until.astimezone(UTC),
                    read_to_task=task.id,
                )

    def find_deleted(self) -> None:
        """Halve the range of task ids until the difference in numbers is found."""
        with self.ingest.database.reading() as session:
            highest = session.scalar(
                select(func.max(Annotation.task_id)).where(Annotation.project_id == self.project_id)
            )
        ranges = [(1, highest)] if highest else []
        while ranges:
            first, last = ranges.pop()
            annotations, skipped, tasks = self._counts(first, last)
            # What was added or changed is in the store since step 1, so only deletions still make
            # a difference, and equal numbers mean that nothing was deleted here.
            if (annotations, skipped) == self.ingest.source.counts(self.project_id, first, last):
                continue
            if tasks > LEAF_TASKS and first < last:
                # Halved where half of the stored tasks are, not half of the ids: ids have gaps.
                middle = self._middle_task(first, last)
                ranges += [(first, middle), (middle + 1, last)]
                continue
            # Few enough to look at each: those that the store has, then those that it lacks.
            self.take_in(self.stored(first, last))
            for task in self.ingest.source.annotated_tasks(self.project_id, [between(first, last)]):
                self._read_task(task)

    def try_again(self) -> None:
        """Read what is quarantined for a reason that may have passed."""
        waiting = (
            select(Annotation.id, Annotation.task_id)
            .where(
                Annotation.project_id == self.project_id,
                Annotation.state == AnnotationState.QUARANTINED,
                (Annotation.trouble.in_(_RETRIED))
                | ((Annotation.trouble == Trouble.CONFIG) & Annotation.revision_id.is_(None)),
            )
            .order_by(Annotation.observed)  # those first that were tried longest ago
            .limit(MOST_RETRIES)
        )
        with self.ingest.database.reading() as session:
            rows = session.execute(waiting).all()
        self.take_in(Hint(row.id, row.task_id, self.project_id) for row in rows)

    def stored(self, first: int = 0, last: int = 2**31 - 1) -> list[Hint]:
        """The annotations of tasks first..last that the store holds for living."""
        living = select(Annotation.id, Annotation.task_id).where(*self._living(first, last))
        with self.ingest.database.reading() as session:
            rows = session.execute(living.order_by(Annotation.id)).all()
        return [Hint(row.id, row.task_id, self.project_id) for row in rows]

    def _read_task(self, task: AnnotatedTask) -> None:
        """Read a task's annotations, and those of its stored ones that are not among them."""
        listed = [
            Hint(id_, task.id, self.project_id, data=task.data) for id_ in task.annotation_ids
        ]
        self.take_in([*listed, *self.stored(task.id, task.id)])

    def _counts(self, first: int, last: int) -> tuple[int, int, int]:
        """Annotations, tasks with skips, and tasks with either, that the store holds for living."""
        numbers = select(
            func.count().filter(Annotation.was_cancelled.is_(False)),
            func.count(Annotation.task_id.distinct()).filter(Annotation.was_cancelled),
            func.count(Annotation.task_id.distinct()),
        ).where(*self._living(first, last))
        with self.ingest.database.reading() as session:
            annotations, skipped, tasks = session.execute(numbers).one()
        return annotations, skipped, tasks

    def _middle_task(self, first: int, last: int) -> int:
        """A task that has half of the range's stored tasks before it; below `last`."""
        living = select(Annotation.task_id).where(*self._living(first, last))
        with self.ingest.database.reading() as session:
            tasks = session.scalars(living.distinct().order_by(Annotation.task_id)).all()
        # Below `last`, or one half would be the whole range again.
        return min(tasks[(len(tasks) - 1) // 2], last - 1)

    def _living(self, first: int, last: int) -> list[ColumnElement[bool]]:
        return [
            Annotation.project_id == self.project_id,
            Annotation.state != AnnotationState.DELETED,
            Annotation.task_id.between(first, last),
        ]
