"""The rows of the corrections: small steps, each to be called inside a transaction.

What is done for every annotation is done with statements that were made beforehand, on tables and
not on objects: SQLAlchemy's unit of work takes longer for it than decoding and comparing masks.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import CursorResult, RowMapping, bindparam, insert, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from backend.corrections.cropped_mask import CroppedMask
from backend.corrections.draft import Draft
from backend.corrections.label_rules import missing_label
from backend.corrections.source import ImageFacts
from backend.corrections.submissions import AnnotationRecord
from backend.corrections.tables import (
    Annotation,
    AnnotationState,
    ConceptMask,
    Counter,
    Forgotten,
    Image,
    ProjectRecord,
    RegionMask,
    RegionOutcome,
    Revision,
)
from backend.database import insert_or_ignore
from backend.errors import Trouble
from backend.tables import LabelConfigText, config_hash, table_of

# Any number that no one else uses for PostgreSQL's advisory locks.
_FILES_LOCK = 72616374
_OBSERVATIONS = "observations"

_counters, _annotations, _revisions = table_of(Counter), table_of(Annotation), table_of(Revision)
_records, _configs = table_of(ProjectRecord), table_of(LabelConfigText)
_forgotten, _images = table_of(Forgotten), table_of(Image)
_DRAW_NUMBER = (
    update(_counters)
    .where(_counters.c.name == _OBSERVATIONS)
    .values(value=_counters.c.value + 1)
    .returning(_counters.c.value)
)
_CONFIG = (
    select(_configs.c.xml)
    .join(_records, _records.c.label_config_hash == _configs.c.hash)
    .where(_records.c.project_id == bindparam("project"))
)
_LOCK_CONFIG = (
    select(_records.c.project_id)
    .where(_records.c.project_id == bindparam("project"))
    .with_for_update(read=True)
)
_IMAGES = select(_images).where(_images.c.task_id == bindparam("task"))
_FORGOTTEN = (
    select(_forgotten.c.project_id)
    .where(
        _forgotten.c.project_id == bindparam("project"),
        or_(_forgotten.c.task_id == 0, _forgotten.c.task_id == bindparam("task")),
    )
    .limit(1)
)
_LOCK_ANNOTATION = (
    select(_annotations).where(_annotations.c.id == bindparam("annotation")).with_for_update()
)
_WRITE_ANNOTATION = update(_annotations).where(_annotations.c.id == bindparam("annotation"))
_VERSION = select(_revisions.c.id).where(
    _revisions.c.annotation_id == bindparam("annotation"),
    _revisions.c.updated_at == bindparam("updated_at"),
    _revisions.c.content_hash == bindparam("content_hash"),
)
_REGROUP = update(_revisions).where(
    _revisions.c.annotation_id == bindparam("annotation"),
    _revisions.c.task_group != bindparam("group"),
)
_ADD_REVISION = insert(_revisions)
_ADD_REGIONS = insert(table_of(RegionMask))
_ADD_CONCEPTS = insert(table_of(ConceptMask))
_ADD_OUTCOMES = insert(table_of(RegionOutcome))


def observe(session: Session) -> int:
    """Draw the number of an observation that is about to be made."""
    number = session.scalar(_DRAW_NUMBER)
    if number is None:
        # The very first observation; another worker may make the row at the same time.
        insert_or_ignore(session, Counter, {"name": _OBSERVATIONS, "value": 0})
        number = session.scalar(_DRAW_NUMBER)
    assert number is not None
    return int(number)


def lock_files(session: Session, *, shared: bool) -> None:
    """Keep mask files from being removed until the transaction ends.

    Whoever names files takes the lock shared, whoever removes them takes it alone. SQLite lets
    only one transaction write at a time anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        kind = "_shared" if shared else ""
        session.execute(text(f"SELECT pg_advisory_xact_lock{kind}({_FILES_LOCK})"))


def see_config(session: Session, number: int, project_id: int, xml: str) -> int:
    """Remember a project's labeling config, unless a later observation saw it already.

    When it changed, the project's annotations are judged again: those whose labels are gone are
    quarantined, those whose labels came back are not any more.

    Returns:
        How many annotations changed their state.
    """
    # Made first, so that there is a row to lock: two workers may see a project's first config.
    insert_or_ignore(session, ProjectRecord, {"project_id": project_id, "observed": 0})
    record = session.get(ProjectRecord, project_id, with_for_update=True)
    assert record is not None
    if record.observed >= number:
        return 0
    hashed = config_hash(xml)
    changed = record.label_config_hash not in (None, hashed)
    insert_or_ignore(session, LabelConfigText, {"hash": hashed, "xml": xml})
    record.observed, record.label_config_hash = number, hashed
    session.flush()
    return _judge_labels(session, project_id, xml) if changed else 0


def current_config(session: Session, project_id: int) -> str | None:
    """The labeling config of a project as last seen."""
    return session.scalar(_CONFIG, {"project": project_id})


def known_images(session: Session, task_id: int) -> dict[tuple[int, str], ImageFacts]:
    """Facts of a task's images by page and address."""
    rows = session.execute(_IMAGES, {"task": task_id})
    return {
        (row.item_index, row.reference): ImageFacts(row.hash, row.size_bytes, row.width, row.height)
        for row in rows
    }


def is_forgotten(session: Session, project_id: int | None, task_id: int | None) -> bool:
    """Whether a task, or its whole project, was removed on request."""
    row = session.scalar(_FORGOTTEN, {"project": project_id, "task": task_id or 0})
    return row is not None


def save_revision(
    session: Session, number: int, draft: Draft, hashes: Mapping[CroppedMask, str]
) -> str | None:
    """Store a version of an annotation, and make it the current one unless a later one is.

    Args:
        hashes: the file of each of the draft's masks.

    Returns:
        What changed, see `Ingest.take_in`.
    """
    record = draft.record
    # The config must not change between judging the labels and writing the verdict.
    session.execute(_LOCK_CONFIG, {"project": record.project})
    if is_forgotten(session, record.project, record.task):
        return None
    row = _make_and_lock(session, record.id, record.project, record.task)
    version = {
        "annotation": record.id,
        "updated_at": record.updated_at,
        "content_hash": draft.content_hash,
    }
    # A row that nobody has written yet has no versions.
    revision_id = session.scalar(_VERSION, version) if row["observed"] else None
    is_new = revision_id is None
    if revision_id is None:
        revision_id = _add_revision(session, draft, hashes)
    # The revision is kept in any case: somebody submitted it. But a read that began later has
    # written the row already, so this version is not the current one.
    if row["observed"] >= number:
        return "revision" if is_new else None
    _remember_images(session, draft)
    if not is_new:
        # Whoever corrects a task's group means all that was submitted for it.
        group = {"annotation": record.id, "group": draft.group}
        session.execute(_REGROUP.values(task_group=draft.group), group)
    labels = {
        (region.control, label) for region in draft.regions for label in region.labels or ("",)
    }
    verdict = _verdict(labels, current_config(session, record.project) or "")
    changed = _set(
        session, row, number, record, draft.content_hash, **verdict, revision_id=revision_id
    )
    if is_new:
        return "revision"
    return ("quarantined" if verdict["reason"] else "restored") if changed else None


def save_state(
    session: Session,
    number: int,
    annotation_id: int,
    *,
    state: AnnotationState,
    project_id: int | None = None,
    task_id: int | None = None,
    trouble: Trouble | None = None,
    reason: str | None = None,
    record: AnnotationRecord | None = None,
) -> str | None:
    """Say that an annotation has no usable version, unless a later observation says otherwise.

    A row that does not exist yet is made when project and task are known; a deleted annotation
    that was never seen leaves no trace. Returns what changed.
    """
    row = _lock(session, annotation_id)
    if row is None:
        if project_id is None or task_id is None or state is AnnotationState.DELETED:
            return None
        if is_forgotten(session, project_id, task_id):
            return None
        row = _make_and_lock(session, annotation_id, project_id, task_id)
    if row["observed"] >= number:
        return None
    changed = _set(
        session,
        row,
        number,
        record,
        record.content_hash() if record else None,
        state=state,
        trouble=trouble,
        reason=reason,
        revision_id=None,
    )
    return str(state) if changed else None


def _add_revision(session: Session, draft: Draft, hashes: Mapping[CroppedMask, str]) -> int:
    """Insert a version of an annotation with its masks and outcomes; returns its row id."""
    record = draft.record
    added = session.execute(
        _ADD_REVISION,
        {
            "annotation_id": record.id,
            "updated_at": record.updated_at,
            "content_hash": draft.content_hash,
            "project_id": record.project,
            "task_id": record.task,
            "annotator": record.annotator,
            "created_at": record.created_at,
            "lead_time": record.lead_time,
            "was_cancelled": record.was_cancelled,
            "ground_truth": record.ground_truth,
            "from_prediction": record.from_prediction,
            "suggestion_id": draft.baseline.suggestion_id,
            "model_version": draft.baseline.model_version,
            "task_group": draft.group,
            "images": [
                [reference, facts.hash, facts.width, facts.height]
                for reference, facts in draft.images
            ],
        },
    )
    (revision_id,) = cast(CursorResult[Any], added).inserted_primary_key or (None,)
    assert revision_id is not None
    regions = [
        {
            "region_id": region.id,
            "label": label,
            "control": region.control,
            "item_index": region.item_index,
            "shape": region.shape,
            "area": region.mask.area,
            "mask_hash": hashes[region.mask],
        }
        for region in draft.regions
        for label in region.labels or ("",)
    ]
    concepts = [
        {
            "item_index": page,
            "label": label,
            "height": mask.height,
            "width": mask.width,
            "area": mask.area,
            "mask_hash": hashes[mask],
        }
        for (page, label), mask in draft.concepts.items()
    ]
    outcomes = [
        {"ordinal": ordinal, **vars(outcome), "final_ids": list(outcome.final_ids)}
        for ordinal, outcome in enumerate(draft.outcomes)
    ]
    for statement, rows in (
        (_ADD_REGIONS, regions),
        (_ADD_CONCEPTS, concepts),
        (_ADD_OUTCOMES, outcomes),
    ):
        if rows:
            session.execute(statement, [{"revision_id": revision_id, **row} for row in rows])
    return int(revision_id)


def _remember_images(session: Session, draft: Draft) -> None:
    """Insert or update what is known of the images of a draft's task."""
    rows = [
        {
            "task_id": draft.record.task,
            "item_index": page,
            "project_id": draft.record.project,
            "reference": reference,
            "hash": facts.hash,
            "size_bytes": facts.size_bytes,
            "width": facts.width,
            "height": facts.height,
            "task_group": draft.group,
        }
        for page, (reference, facts) in enumerate(draft.images)
    ]
    session.execute(_write_images(session.get_bind().dialect.name), rows)


@lru_cache(maxsize=2)
def _write_images(dialect: str) -> Any:
    """Insert images' rows, or overwrite those that are there."""
    new = (postgresql if dialect == "postgresql" else sqlite).insert(_images)
    key = [column.name for column in _images.primary_key]
    values = {
        column.name: new.excluded[column.name] for column in _images.c if column.name not in key
    }
    return new.on_conflict_do_update(index_elements=key, set_=values)


def _lock(session: Session, annotation_id: int) -> RowMapping | None:
    """The annotation's row, nobody else's until the transaction ends."""
    return session.execute(_LOCK_ANNOTATION, {"annotation": annotation_id}).mappings().first()


def _make_and_lock(
    session: Session, annotation_id: int, project_id: int, task_id: int
) -> RowMapping:
    """The annotation's row, made if needed; `observed` is 0 in one that was made now."""
    new = {
        "id": annotation_id,
        "project_id": project_id,
        "task_id": task_id,
        "state": AnnotationState.QUARANTINED,
        "was_cancelled": False,
        "observed": 0,
    }
    insert_or_ignore(session, _annotations, new)
    row = _lock(session, annotation_id)
    assert row is not None
    return row


def _set(
    session: Session,
    row: RowMapping,
    number: int,
    record: AnnotationRecord | None,
    content_hash: str | None,
    **values: Any,
) -> bool:
    """Write what an observation saw; returns whether it differs from what the row said."""
    if record is not None:
        values |= {
            "project_id": record.project,
            "task_id": record.task,
            "was_cancelled": record.was_cancelled,
            "updated_at": record.updated_at,
        }
    if values["state"] is not AnnotationState.DELETED:
        values["content_hash"] = content_hash
    session.execute(_WRITE_ANNOTATION, {"annotation": row["id"], "observed": number, **values})
    return any(row[name] != value for name, value in values.items())


def _verdict(labels: Iterable[tuple[str, str]], xml: str) -> dict[str, str | None]:
    """Whether a decoded version is valid by the labeling config, as columns of its annotation."""
    reason = missing_label(labels, xml)
    if reason is None:
        return {"state": AnnotationState.VALID, "trouble": None, "reason": None}
    return {"state": AnnotationState.QUARANTINED, "trouble": Trouble.CONFIG, "reason": reason}


def _judge_labels(session: Session, project_id: int, xml: str) -> int:
    """Quarantine what lost its labels with a new config, release what got them back."""
    of_project = (
        select(RegionMask.control, RegionMask.label, Annotation.id)
        .join(Annotation, Annotation.revision_id == RegionMask.revision_id)
        .where(Annotation.project_id == project_id)
    )
    labels: dict[int, set[tuple[str, str]]] = {}
    for control, label, annotation_id in session.execute(of_project.distinct()):
        labels.setdefault(annotation_id, set()).add((control, label))
    changed = 0
    judged = session.scalars(
        select(Annotation).where(
            Annotation.project_id == project_id,
            Annotation.revision_id.is_not(None),
            Annotation.state != AnnotationState.DELETED,
        )
    )
    for row in judged:
        verdict = _verdict(labels.get(row.id, ()), xml)
        if (row.state, row.reason) != (verdict["state"], verdict["reason"]):
            for column, value in verdict.items():
                setattr(row, column, value)
            changed += 1
    return changed
