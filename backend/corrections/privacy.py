"""Removal of corrections for good: on request, and after the retention time.

Rows go first, in one transaction that also writes down which files are to go; the files follow,
each checked again not to be needed by anything else. If a process dies in between, the next call
does the rest.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import ColumnElement, CursorResult, delete, exists, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from backend.corrections import store
from backend.corrections.mask_store import MaskStore
from backend.corrections.tables import (
    AgreementReport,
    Annotation,
    AnnotationState,
    ConceptMask,
    DatasetItem,
    DatasetVersion,
    Forgotten,
    Image,
    MaskOverlap,
    ProjectRecord,
    RegionMask,
    RegionOutcome,
    Removal,
    Revision,
)
from backend.database import MOST_VALUES, Database, chunked, insert_or_ignore
from backend.errors import StorageUnavailableError
from backend.people import audit
from backend.tables import (
    AgentPicture,
    AgentRun,
    Base,
    Delivery,
    Event,
    Suggestion,
    SuggestionState,
    now,
)
from backend.volumes.tables import Stack

if TYPE_CHECKING:
    from medsam3_model.embeddings.embedding_cache import EmbeddingPlaces

_MASK, _EMBEDDING = "mask", "embedding"
# Seconds for which files are removed in one transaction, which every other writer waits for.
HOLD_S = 0.5
# Seconds between two of them: a writer that waits for SQLite's lock asks for it every 0.1 s.
PAUSE_S = 0.15


@dataclass
class Removed:
    """What was removed; what other corrections still need (a mask, an image) is kept."""

    annotations: int = 0
    revisions: int = 0
    masks: int = 0
    mask_bytes: int = 0
    suggestions: int = 0
    agent_runs: int = 0
    events: int = 0
    stacks: int = 0
    images: int = 0
    embeddings: int = 0
    embedding_bytes: int = 0
    dataset_entries: int = 0


def forget(
    database: Database,
    masks: MaskStore,
    embeddings: "EmbeddingPlaces",
    *,
    project_id: int,
    task_id: int | None = None,
) -> Removed:
    """Remove everything that this backend keeps about a task, or about a whole project.

    It does not come back: later events about it are ignored. What Label Studio itself holds is
    deleted there. Workers may keep an image's embedding in memory until they are restarted.
    """
    removed = Removed()

    def mine(table: Any) -> list[ColumnElement[bool]]:
        of_project = table.project_id == project_id
        return [of_project] if task_id is None else [of_project, table.task_id == task_id]

    with database.session() as session:
        # Whoever stores a version meanwhile waits, and then sees that its task is forgotten.
        store.lock_files(session, shared=False)
        forgotten = {"project_id": project_id, "task_id": task_id or 0, "forgotten_at": now()}
        insert_or_ignore(session, Forgotten, forgotten)
        subject = "the whole project" if task_id is None else f"task {task_id}"
        audit.record(session, audit.AuditedAction.FORGET, project_id=project_id, subject=subject)
        revisions = select(Revision.id).join(Annotation, Annotation.id == Revision.annotation_id)
        _remove_revisions(
            session, session.scalars(revisions.where(*mine(Annotation))).all(), removed
        )
        removed.annotations = _delete(session, Annotation, *mine(Annotation))
        hashes = {
            *session.scalars(select(Image.hash).where(*mine(Image))),
            *session.scalars(select(Suggestion.image_hash).where(*mine(Suggestion))),
        }
        write_down(session, [hash_ for hash_ in hashes if hash_], _EMBEDDING)
        removed.images = _delete(session, Image, *mine(Image))
        removed.agent_runs = _remove_runs(session, *mine(AgentRun))
        removed.suggestions = _delete(session, Suggestion, *mine(Suggestion))
        # It names tasks, and is computed again.
        _delete(session, AgreementReport, AgreementReport.project_id == project_id)
        # Where a volume's pages came from: a path may name a patient, the geometry has UIDs.
        removed.stacks = _delete(session, Stack, *mine(Stack))
        events = session.execute(
            select(Event.id, Event.task_ids).where(Event.project_id == project_id)
        ).all()
        # An event about several tasks stays for the others' sake.
        heard = [row.id for row in events if task_id is None or list(row.task_ids) == [task_id]]
        for chunk in chunked(heard):
            removed.events += _delete(session, Event, Event.id.in_(chunk))
        if task_id is None:
            _delete(session, ProjectRecord, ProjectRecord.project_id == project_id)
    finish_removals(database, masks, embeddings, removed)
    return removed


def retain(
    database: Database, masks: MaskStore, embeddings: "EmbeddingPlaces", *, days: int
) -> Removed:
    """Remove versions that were replaced, and deleted annotations, taken in before `days` days.

    Predictions of that age that nobody got, and what agents did, go, too. What a dataset version
    names is kept, or a training run could not be repeated.
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
        _remove_revisions(session, old, removed)
        removed.annotations = _delete(
            session,
            Annotation,
            Annotation.state == AnnotationState.DELETED,
            Annotation.id.not_in(select(Revision.annotation_id)),
        )
        removed.agent_runs = _remove_runs(
            session, AgentRun.finished_at < now() - timedelta(days=days)
        )
        removed.suggestions = _remove_undelivered(session, days)
    finish_removals(database, masks, embeddings, removed)
    return removed


def _remove_runs(session: Session, *which: ColumnElement[bool]) -> int:
    """Remove agents' runs with their transcripts, pictures, and what they still ask."""
    runs = select(AgentRun.id).where(*which)
    _delete(session, AgentPicture, AgentPicture.run_id.in_(runs))
    looks = (Suggestion.agent_run_id.in_(runs), Suggestion.delivery == Delivery.LOOK)
    _delete(session, Suggestion, *looks)
    return _delete(session, AgentRun, *which)


def _remove_undelivered(session: Session, days: int) -> int:
    """Remove finished predictions that will never be brought to anybody."""
    over = [
        Suggestion.delivery.in_((Delivery.NONE, Delivery.PREVIEW)),
        Suggestion.state.not_in((SuggestionState.QUEUED, SuggestionState.RUNNING)),
        Suggestion.finished_at < now() - timedelta(days=days),
        ~exists().where(Revision.suggestion_id == Suggestion.id),
    ]
    hashes = session.scalars(select(Suggestion.image_hash).where(*over).distinct()).all()
    removed = _delete(session, Suggestion, *over)
    known = {hash_ for hash_ in hashes if hash_}
    # An image that another prediction is about keeps its embedding.
    write_down(session, known - _named(session, known, Suggestion.image_hash), _EMBEDDING)
    return removed


def finish_removals(
    database: Database, masks: MaskStore, embeddings: "EmbeddingPlaces", removed: Removed
) -> None:
    """Remove the files that are written down to go and that nothing names any more.

    Files are removed for a moment at a time, so that whoever stores corrections gets in between.
    """
    while _remove_masks(database, masks, removed):
        time.sleep(PAUSE_S)
    _remove_embeddings(database, embeddings, removed)


def _remove_masks(database: Database, masks: MaskStore, removed: Removed) -> bool:
    """Remove mask files for `HOLD_S`; returns whether some are left."""
    waiting = select(Removal.name).where(Removal.kind == _MASK).order_by(Removal.name)
    with database.reading() as session:
        if session.scalar(waiting.limit(1)) is None:
            return False
    with database.session() as session:
        # From here to the commit nobody can name a file that is about to go.
        store.lock_files(session, shared=False)
        names = session.scalars(waiting.limit(MOST_VALUES)).all()
        named = _named(session, names, RegionMask.mask_hash, ConceptMask.mask_hash)
        until = time.monotonic() + HOLD_S
        done = []
        for name in names:
            if name not in named:
                size = masks.remove(name)
                removed.masks += size > 0
                removed.mask_bytes += size
            done.append(name)
            if time.monotonic() >= until:
                break
        _delete(session, Removal, Removal.kind == _MASK, Removal.name.in_(done))
        for name_of in (MaskOverlap.first_hash, MaskOverlap.second_hash):
            _delete(session, MaskOverlap, name_of.in_({*done} - named))
    return len(done) < len(names) or len(names) == MOST_VALUES


def _remove_embeddings(database: Database, embeddings: "EmbeddingPlaces", removed: Removed) -> None:
    """Remove cached embeddings: no lock is held, because one that is needed is made again."""
    from medsam3_model.errors import EmbeddingStoreError

    with database.reading() as session:
        hashes = session.scalars(select(Removal.name).where(Removal.kind == _EMBEDDING)).all()
        gone = set(hashes) - _named(session, hashes, Image.hash)
    if not hashes:
        return
    try:
        files, size = embeddings.remove(gone)
    except EmbeddingStoreError as error:
        raise StorageUnavailableError(
            f"{error}: check MEDSAM3_EMBEDDING_STORE_URL, and that it answers; what is left goes "
            "by itself once it does."
        ) from error
    removed.embeddings += files
    removed.embedding_bytes += size
    for chunk in chunked(hashes):
        with database.session() as session:
            _delete(session, Removal, Removal.kind == _EMBEDDING, Removal.name.in_(chunk))


def _remove_revisions(session: Session, ids: Sequence[int], removed: Removed) -> None:
    for chunk in chunked(ids):
        # The names are only known as long as the rows are there.
        for table in (RegionMask, ConceptMask):
            names = session.scalars(
                select(table.mask_hash).where(table.revision_id.in_(chunk)).distinct()
            )
            write_down(session, names)
        # A dataset version says how many of its revisions are missing; its digest stays.
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
            _delete(session, part, part.revision_id.in_(chunk))
        session.execute(
            update(Annotation).where(Annotation.revision_id.in_(chunk)).values(revision_id=None)
        )
        removed.revisions += _delete(session, Revision, Revision.id.in_(chunk))


def _named(
    session: Session, names: Iterable[str], *columns: InstrumentedAttribute[Any]
) -> set[str]:
    """Those names that are still in one of the columns."""
    return {
        name
        for chunk in chunked(names)
        for column in columns
        for name in session.scalars(select(column).where(column.in_(chunk)))
    }


def write_down(session: Session, names: Iterable[str], kind: str = _MASK) -> None:
    """Have `finish_removals` remove those of these files that no row names any more."""
    rows = [{"kind": kind, "name": name} for name in sorted(names)]
    if rows:
        insert_or_ignore(session, Removal, rows)


def _delete(session: Session, table: type[Base], *conditions: ColumnElement[bool]) -> int:
    """Delete rows; returns how many."""
    deleted = session.execute(
        delete(table).where(*conditions), execution_options={"synchronize_session": False}
    )
    return cast(CursorResult[Any], deleted).rowcount
