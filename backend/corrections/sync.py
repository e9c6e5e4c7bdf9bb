"""Bringing in what webhooks missed: Label Studio's API is the truth, events are hints.

A project is reconciled in three steps, each of which costs what changed and not what there is:

1. The tasks with annotations that changed since the cursor are read again. The cursor is the
   newest change of any task before the last reconciliation began, in Label Studio's own time, so
   clocks that differ do no harm.
2. Deleted tasks leave no trace in the API. So the number of annotations in Label Studio is
   compared with the number in the store, for the whole project and, where they differ, for halves
   of it, down to a handful of tasks whose annotations are listed.
3. What is quarantined for a reason that may have passed is tried again.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select

from backend.corrections import store
from backend.corrections.ingest import Hint, Ingest
from backend.corrections.source import AnnotatedTask, between, changed_since
from backend.corrections.tables import Annotation, AnnotationState, Forgotten, ProjectRecord
from backend.errors import Trouble
from backend.tables import Project, now

log = logging.getLogger(__name__)

# Transactions that were open when the newest change was asked for may carry an earlier time.
OVERLAP = timedelta(seconds=10)
# Tasks that hold annotations, below which they are listed instead of counted.
LEAF_TASKS = 100
# Quarantined annotations that one reconciliation tries again.
MOST_RETRIES = 200
_RETRIED = (Trouble.IMAGE, Trouble.UNFORESEEN)


@dataclass
class Report:
    """What a reconciliation looked at and repaired, in annotations unless said otherwise."""

    project_id: int
    changed_tasks: int = 0  # tasks with annotations that changed since the last time
    read: int = 0
    revisions: int = 0  # versions that the store did not have
    deleted: int = 0
    restored: int = 0  # known versions that the store held for deleted or quarantined
    quarantined: int = 0
    labels_changed: int = 0  # judged anew because the labeling config changed
    seconds: float = 0.0

    @property
    def repaired(self) -> int:
        """How many annotations the store had missed or held wrongly."""
        return (
            self.revisions + self.deleted + self.restored + self.quarantined + self.labels_changed
        )


def known_projects(ingest: Ingest) -> list[int]:
    """The projects that this backend serves or holds corrections of."""
    with ingest.database.reading() as session:
        served = set(session.scalars(select(Project.id)))
        known = served | set(session.scalars(select(ProjectRecord.project_id)))
        forgotten = session.scalars(select(Forgotten.project_id).where(Forgotten.task_id == 0))
        return sorted(known - set(forgotten))


def reconcile_project(
    ingest: Ingest,
    project_id: int,
    *,
    from_start: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Bring the store in line with what Label Studio says about a project.

    Args:
        ingest: the store and Label Studio.
        project_id: the project; one that is gone has all its annotations marked as deleted.
        from_start: read all annotations again, not only those of changed tasks.
        progress: called with the number of annotations read, after each.

    Raises:
        LabelStudioError: the API refuses or does not answer; the cursor stays where it was.
    """
    began = now()
    report = Report(project_id)
    with ingest.database.session() as session:
        number = store.observe(session)
    project = ingest.source.project(project_id)
    config = None if project is None else str(project.get("label_config") or "")
    round_ = _Round(ingest, report, config, progress)
    if config is None:
        round_.take_in(_stored(ingest, project_id))
    else:
        with ingest.database.session() as session:
            report.labels_changed = store.see_config(session, number, project_id, config)
            record = session.get_one(ProjectRecord, project_id)
            cursor = None if from_start else record.tasks_changed_until
        newest = ingest.source.newest_change(project_id)
        _read_changed(round_, project_id, cursor)
        _find_deleted(round_, project_id)
        _try_again(round_, project_id)
        with ingest.database.session() as session:
            record = session.get_one(ProjectRecord, project_id)
            if newest is not None:
                record.tasks_changed_until = newest.astimezone(UTC)
    report.seconds = round((now() - began).total_seconds(), 3)
    with ingest.database.session() as session:
        done = session.get(ProjectRecord, project_id)
        if done is not None:
            done.report, done.synchronized_at = asdict(report), now()
    if report.repaired:
        log.info("project %s: %s corrections repaired: %s", project_id, report.repaired, report)
    return report


class _Round:
    """One reconciliation: reads each annotation at most once."""

    def __init__(
        self,
        ingest: Ingest,
        report: Report,
        config: str | None,
        progress: Callable[[int], None],
    ) -> None:
        self.ingest = ingest
        self._report = report
        self._config = config
        self._progress = progress
        self._read: set[int] = set()

    def take_in(self, hints: Iterable[Hint]) -> None:
        report = self._report
        for hint in hints:
            if hint.annotation_id in self._read:
                continue
            self._read.add(hint.annotation_id)
            changed = self.ingest.take_in(replace(hint, config=self._config))
            report.read += 1
            report.revisions += changed == "revision"
            report.deleted += changed == AnnotationState.DELETED
            report.restored += changed == "restored"
            report.quarantined += changed == AnnotationState.QUARANTINED
            self._progress(report.read)

    def task(self, project_id: int, task: AnnotatedTask) -> None:
        """Read a task's annotations, and those of its stored ones that are not among them."""
        listed = [Hint(id_, task.id, project_id, data=task.data) for id_ in task.annotation_ids]
        self.take_in([*listed, *_stored(self.ingest, project_id, task.id, task.id)])

    def saw_task(self) -> None:
        self._report.changed_tasks += 1


def _read_changed(round_: _Round, project_id: int, cursor: datetime | None) -> None:
    filters = [changed_since(cursor - OVERLAP)] if cursor else []
    for task in round_.ingest.source.annotated_tasks(project_id, filters):
        round_.saw_task()
        round_.task(project_id, task)


def _find_deleted(round_: _Round, project_id: int) -> None:
    """Halve the range of task ids until the difference in numbers is found."""
    with round_.ingest.database.reading() as session:
        highest = session.scalar(
            select(func.max(Annotation.task_id)).where(Annotation.project_id == project_id)
        )
    ranges = [(1, highest)] if highest else []
    while ranges:
        first, last = ranges.pop()
        here = _counts(round_.ingest, project_id, first, last)
        if here[:2] == round_.ingest.source.counts(project_id, first, last):
            continue
        if here[2] > LEAF_TASKS and first < last:
            middle = _middle_task(round_.ingest, project_id, first, last)
            ranges += [(first, middle), (middle + 1, last)]
            continue
        round_.take_in(_stored(round_.ingest, project_id, first, last))
        for task in round_.ingest.source.annotated_tasks(project_id, [between(first, last)]):
            round_.task(project_id, task)


def _try_again(round_: _Round, project_id: int) -> None:
    waiting = (
        select(Annotation.id, Annotation.task_id)
        .where(
            Annotation.project_id == project_id,
            Annotation.state == AnnotationState.QUARANTINED,
            (Annotation.trouble.in_(_RETRIED))
            | ((Annotation.trouble == Trouble.CONFIG) & Annotation.revision_id.is_(None)),
        )
        .order_by(Annotation.observed)  # those first that were tried longest ago
        .limit(MOST_RETRIES)
    )
    with round_.ingest.database.reading() as session:
        rows = session.execute(waiting).all()
    round_.take_in(Hint(row.id, row.task_id, project_id) for row in rows)


def _counts(ingest: Ingest, project_id: int, first: int, last: int) -> tuple[int, int, int]:
    """Annotations, tasks with skips, and tasks with either, that the store holds for living."""
    alive = (
        select(
            func.count().filter(Annotation.was_cancelled.is_(False)),
            func.count(Annotation.task_id.distinct()).filter(Annotation.was_cancelled),
            func.count(Annotation.task_id.distinct()),
        )
        .where(Annotation.project_id == project_id, Annotation.state != AnnotationState.DELETED)
        .where(Annotation.task_id.between(first, last))
    )
    with ingest.database.reading() as session:
        annotations, skipped, tasks = session.execute(alive).one()
    return annotations, skipped, tasks


def _middle_task(ingest: Ingest, project_id: int, first: int, last: int) -> int:
    """A task that has half of the range's stored annotations before it; below `last`."""
    wanted = (
        select(Annotation.task_id)
        .where(
            Annotation.project_id == project_id,
            Annotation.state != AnnotationState.DELETED,
            Annotation.task_id.between(first, last),
        )
        .distinct()
        .order_by(Annotation.task_id)
    )
    with ingest.database.reading() as session:
        tasks = session.scalars(wanted).all()
    return min(tasks[(len(tasks) - 1) // 2], last - 1)


def _stored(ingest: Ingest, project_id: int, first: int = 0, last: int = 2**31 - 1) -> list[Hint]:
    """The annotations of tasks first..last that the store holds for living."""
    with ingest.database.reading() as session:
        rows = session.execute(
            select(Annotation.id, Annotation.task_id)
            .where(
                Annotation.project_id == project_id,
                Annotation.state != AnnotationState.DELETED,
                Annotation.task_id.between(first, last),
            )
            .order_by(Annotation.id)
        ).all()
    return [Hint(row.id, row.task_id, project_id) for row in rows]
