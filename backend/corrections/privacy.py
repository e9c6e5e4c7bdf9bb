"""Removing corrections for good: on request, and after the retention time.

Rows go first, in one transaction that also writes down which files are to go; the files follow,
each checked again not to be needed by anything else. Whoever dies in between is finished by the
next call.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from backend.corrections import store
from backend.corrections.mask_store import MaskStore
from backend.corrections.tables import (
    Annotation,
    AnnotationState,
    ConceptMask,
    DatasetItem,
    DatasetVersion,
    Forgotten,
    Image,
    ProjectRecord,
    RegionMask,
    RegionOutcome,
    Removal,
    Revision,
)
from backend.database import Database, insert_or_ignore
from backend.tables import Event, Suggestion, now

_CHUNK = 500
_MASK, _EMBEDDING = "mask", "embedding"


@dataclass
class Removed:
    """What was removed; what other corrections still need (a mask, an image) is kept."""

    annotations: int = 0
    revisions: int = 0
    masks: int = 0
    mask_bytes: int = 0
    suggestions: int = 0
    events: int = 0
    ranks: int = 0
    images: int = 0
    embeddings: int = 0
    embedding_bytes: int = 0
    dataset_entries: int = 0


def forget(
    database: Database,
    masks: MaskStore,
    embedding_folder: Path,
    *,
    project_id: int,
    task_id: int | None = None,
) -> Removed:
    """Remove everything that this backend keeps about a task, or about a whole project.

    It does not come back: later events about it are ignored. What Label Studio itself holds is
    deleted there. Workers may keep an image's embedding in memory until they are restarted.
    """
    removed = Removed()
    with database.session() as session:
        insert_or_ignore(
            session,
            Forgotten,
            {"project_id": project_id, "task_id": task_id or 0, "forgotten_at": now()},
        )
        of_task = [] if task_id is None else [task_id]
        annotations = _ids(session, Annotation, project_id, of_task)
        revisions = list(
            session.scalars(select(Revision.id).where(Revision.annotation_id.in_(annotations)))
        )
        _remove_revisions(session, revisions, removed)
        removed.annotations = _delete(session, Annotation.id, annotations)
        _remove_images(session, project_id, of_task, removed)
        suggestions = select(Suggestion.id).where(Suggestion.project_id == project_id)
        if task_id is not None:
            suggestions = suggestions.where(Suggestion.task_id == task_id)
        removed.suggestions = _delete(session, Suggestion.id, session.scalars(suggestions).all())
        _remove_traces(session, project_id, task_id, removed)
        if task_id is None:
            session.execute(delete(ProjectRecord).where(ProjectRecord.project_id == project_id))
    finish_removals(database, masks, embedding_folder, removed)
    return removed


def retain(database: Database, masks: MaskStore, embedding_folder: Path, *, days: int) -> Removed:
    """Remove versions that were replaced, and deleted annotations, taken in before `days` days.

    What a dataset version names is kept, or a training run could not be repeated.
    """
    removed = Removed()
    with database.session() as session:
        in_datasets = select(DatasetItem.revision_id)
        current = select(Annotation.revision_id).where(Annotation.revision_id.is_not(None))
        old = session.scalars(
            select(Revision.id).where(
                Revision.ingested_at < now() - timedelta(days=days),
                Revision.id.not_in(current),
                Revision.id.not_in(in_datasets),
            )
        ).all()
        _remove_revisions(session, list(old), removed)
        bare = session.scalars(
            select(Annotation.id).where(
                Annotation.state == AnnotationState.DELETED,
                Annotation.id.not_in(select(Revision.annotation_id)),
            )
        ).all()
        removed.annotations = _delete(session, Annotation.id, bare)
    finish_removals(database, masks, embedding_folder, removed)
    return removed


def finish_removals(
    database: Database, masks: MaskStore, embedding_folder: Path, removed: Removed
) -> None:
    """Remove the files that are written down to go and that nothing names any more."""
    from backend.tables import ImageVector
    from medsam3_model.embedding_cache import remove_embeddings

    with database.session() as session:
        store.lock_files(session, shared=False)
        rows = session.scalars(select(Removal)).all()
        waiting = {
            kind: {row.name for row in rows if row.kind == kind} for kind in (_MASK, _EMBEDDING)
        }
        for name in sorted(waiting[_MASK] - _named(session, waiting[_MASK])):
            size = masks.remove(name)
            removed.masks += size > 0
            removed.mask_bytes += size
        used = set(session.scalars(select(Image.hash).where(Image.hash.in_(waiting[_EMBEDDING]))))
        gone = waiting[_EMBEDDING] - used
        if gone:
            session.execute(delete(ImageVector).where(ImageVector.image_hash.in_(gone)))
            files, size = remove_embeddings(embedding_folder, gone)
            removed.embeddings += files
            removed.embedding_bytes += size
        session.execute(delete(Removal))


def write_down_masks(session: Session, names: Iterable[str]) -> None:
    """Have `finish_removals` remove mask files that no row names."""
    _write_down(session, _MASK, names)


def _remove_revisions(session: Session, ids: Sequence[int], removed: Removed) -> None:
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        for table in (RegionMask, ConceptMask):
            names = session.scalars(
                select(table.mask_hash).where(table.revision_id.in_(chunk)).distinct()
            )
            _write_down(session, _MASK, names.all())
        entries = session.execute(
            select(DatasetItem.dataset_id, func.count())
            .where(DatasetItem.revision_id.in_(chunk))
            .group_by(DatasetItem.dataset_id)
        ).all()
        for dataset_id, count in entries:
            session.execute(
                update(DatasetVersion)
                .where(DatasetVersion.id == dataset_id)
                .values(forgotten=DatasetVersion.forgotten + count)
            )
            removed.dataset_entries += count
        for part in (RegionMask, ConceptMask, RegionOutcome, DatasetItem):
            session.execute(delete(part).where(part.revision_id.in_(chunk)))
        session.execute(
            update(Annotation).where(Annotation.revision_id.in_(chunk)).values(revision_id=None)
        )
        session.execute(delete(Revision).where(Revision.id.in_(chunk)))
        removed.revisions += len(chunk)


def _remove_images(
    session: Session, project_id: int, task_ids: Sequence[int], removed: Removed
) -> None:
    mine = [Image.project_id == project_id]
    suggested = [Suggestion.project_id == project_id, Suggestion.image_hash.is_not(None)]
    if task_ids:
        mine.append(Image.task_id.in_(task_ids))
        suggested.append(Suggestion.task_id.in_(task_ids))
    hashes = set(session.scalars(select(Image.hash).where(*mine)))
    hashes |= {
        hash_ for hash_ in session.scalars(select(Suggestion.image_hash).where(*suggested)) if hash_
    }
    _write_down(session, _EMBEDDING, sorted(hashes))
    removed.images = len(
        session.execute(delete(Image).where(*mine).returning(Image.task_id, Image.item_index)).all()
    )


def _remove_traces(
    session: Session, project_id: int, task_id: int | None, removed: Removed
) -> None:
    """Remove webhooks' events, and places in the order of labelling."""
    from backend.tables import TaskRank

    ranks = delete(TaskRank).where(TaskRank.project_id == project_id)
    if task_id is not None:
        ranks = ranks.where(TaskRank.task_id == task_id)
    removed.ranks = len(session.execute(ranks.returning(TaskRank.task_id)).all())
    heard = session.execute(
        select(Event.id, Event.task_ids).where(Event.project_id == project_id)
    ).all()
    # An event about several tasks stays for the others' sake.
    events = [row.id for row in heard if task_id is None or list(row.task_ids) == [task_id]]
    removed.events = _delete(session, Event.id, events)


def _named(session: Session, names: Iterable[str]) -> set[str]:
    """Those masks that a revision still has."""
    listed, found = sorted(names), set[str]()
    for start in range(0, len(listed), _CHUNK):
        chunk = listed[start : start + _CHUNK]
        for table in (RegionMask, ConceptMask):
            found |= set(session.scalars(select(table.mask_hash).where(table.mask_hash.in_(chunk))))
    return found


def _write_down(session: Session, kind: str, names: Iterable[str]) -> None:
    for name in names:
        insert_or_ignore(session, Removal, {"kind": kind, "name": name})


def _ids(
    session: Session, table: type[Annotation], project_id: int, task_ids: Sequence[int]
) -> list[int]:
    wanted = select(table.id).where(table.project_id == project_id)
    if task_ids:
        wanted = wanted.where(or_(*(table.task_id == task_id for task_id in task_ids)))
    return list(session.scalars(wanted))


def _delete(session: Session, column: "object", ids: Sequence[object]) -> int:
    for start in range(0, len(ids), _CHUNK):
        chunk = list(ids[start : start + _CHUNK])
        session.execute(delete(column.class_).where(column.in_(chunk)))  # type: ignore[attr-defined]
    return len(ids)
