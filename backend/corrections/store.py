"""The rows of the corrections: small steps, each to be called inside a transaction."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from backend.corrections.cropped_mask import CroppedMask
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
    Trouble,
)
from backend.database import insert_or_ignore
from backend.tables import LabelConfigText

if TYPE_CHECKING:
    from backend.corrections.ingest import Draft

# Any number that no one else uses for PostgreSQL's advisory locks.
_FILES_LOCK = 72616374
_OBSERVATIONS = "observations"


def observe(session: Session) -> int:
    """Draw the number of an observation that is about to be made."""
    draw = (
        update(Counter)
        .where(Counter.name == _OBSERVATIONS)
        .values(value=Counter.value + 1)
        .returning(Counter.value)
    )
    number = session.scalar(draw)
    if number is None:
        insert_or_ignore(session, Counter, {"name": _OBSERVATIONS, "value": 0})
        number = session.scalar(draw)
    assert number is not None
    return number


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

    When it changed, the project's annotations are judged anew: those whose labels are gone are
    quarantined, those whose labels came back are not any more.

    Returns:
        How many annotations changed their state.
    """
    insert_or_ignore(session, ProjectRecord, {"project_id": project_id, "observed": 0})
    record = session.get(ProjectRecord, project_id, with_for_update=True)
    assert record is not None
    if record.observed >= number:
        return 0
    hashed = _config_hash(xml)
    changed = record.label_config_hash not in (None, hashed)
    insert_or_ignore(session, LabelConfigText, {"hash": hashed, "xml": xml})
    record.observed, record.label_config_hash = number, hashed
    session.flush()
    return _judge_labels(session, project_id, xml) if changed else 0


def current_config(session: Session, project_id: int) -> str | None:
    """The labeling config of a project as last seen."""
    return session.scalar(
        select(LabelConfigText.xml)
        .join(ProjectRecord, ProjectRecord.label_config_hash == LabelConfigText.hash)
        .where(ProjectRecord.project_id == project_id)
    )


def known_images(session: Session, task_id: int) -> dict[tuple[int, str], ImageFacts]:
    """Facts of a task's images by page and address."""
    rows = session.scalars(select(Image).where(Image.task_id == task_id))
    return {
        (row.item_index, row.reference): ImageFacts(row.hash, row.size_bytes, row.width, row.height)
        for row in rows
    }


def is_forgotten(session: Session, project_id: int | None, task_id: int | None) -> bool:
    """Whether a task, or its whole project, was removed on request."""
    found = session.scalar(
        select(Forgotten.project_id)
        .where(Forgotten.project_id == project_id, Forgotten.task_id.in_((0, task_id or 0)))
        .limit(1)
    )
    return found is not None


def save_revision(
    session: Session, number: int, draft: "Draft", hashes: Mapping[CroppedMask, str]
) -> str | None:
    """Store a version of an annotation, and make it the current one unless a later one is.

    Args:
        hashes: the file of each of the draft's masks.

    Returns:
        What changed, see `Ingest.take_in`.
    """
    record = draft.record
    # The config must not change between judging the labels and writing the verdict.
    session.get(ProjectRecord, record.project, with_for_update={"read": True})
    if is_forgotten(session, record.project, record.task):
        return None
    row = _locked(session, record.id, record.project, record.task)
    revision = session.scalar(
        select(Revision).where(
            Revision.annotation_id == record.id,
            Revision.updated_at == record.updated_at,
            Revision.content_hash == draft.content_hash,
        )
    )
    is_new = revision is None
    if revision is None:
        revision = _add_revision(session, draft, hashes)
    if row.observed >= number:
        return "revision" if is_new else None
    _remember_images(session, draft)
    config = current_config(session, record.project) or ""
    reason = missing_label(_labels_of(draft), config)
    changed = _set(
        row,
        number,
        record,
        draft.content_hash,
        state=AnnotationState.QUARANTINED if reason else AnnotationState.VALID,
        trouble=Trouble.CONFIG if reason else None,
        reason=reason,
        revision_id=revision.id,
    )
    if is_new:
        return "revision"
    return ("quarantined" if reason else "restored") if changed else None


def save_tombstone(session: Session, number: int, annotation_id: int) -> str | None:
    """An annotation is not in Label Studio any more; one that was never seen leaves no trace."""
    return save_state(
        session,
        number,
        annotation_id,
        project_id=None,
        task_id=None,
        state=AnnotationState.DELETED,
    )


def save_state(
    session: Session,
    number: int,
    annotation_id: int,
    *,
    project_id: int | None,
    task_id: int | None,
    state: AnnotationState,
    trouble: Trouble | None = None,
    reason: str | None = None,
    record: AnnotationRecord | None = None,
) -> str | None:
    """Say that an annotation has no usable version, unless a later observation says otherwise.

    A row that does not exist yet is made when project and task are known. Returns what changed.
    """
    row = session.get(Annotation, annotation_id, with_for_update=True)
    if row is None:
        if project_id is None or task_id is None or state is AnnotationState.DELETED:
            return None
        if is_forgotten(session, project_id, task_id):
            return None
        row = _locked(session, annotation_id, project_id, task_id)
    if row.observed >= number:
        return None
    changed = _set(
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


def _locked(session: Session, annotation_id: int, project_id: int, task_id: int) -> Annotation:
    """The annotation's row, made if needed, and nobody else's until the transaction ends."""
    known = session.get(Annotation, annotation_id, with_for_update=True, populate_existing=True)
    if known is not None:
        return known
    insert_or_ignore(
        session,
        Annotation,
        {
            "id": annotation_id,
            "project_id": project_id,
            "task_id": task_id,
            "state": AnnotationState.QUARANTINED,
            "was_cancelled": False,
            "observed": 0,
        },
    )
    row = session.get(Annotation, annotation_id, with_for_update=True, populate_existing=True)
    assert row is not None
    return row


def _set(
    row: Annotation,
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
    changed = any(getattr(row, name) != value for name, value in values.items())
    for name, value in values.items():
        setattr(row, name, value)
    row.observed = number
    return changed


def _add_revision(session: Session, draft: "Draft", hashes: Mapping[CroppedMask, str]) -> Revision:
    record = draft.record
    revision = Revision(
        annotation_id=record.id,
        updated_at=record.updated_at,
        content_hash=draft.content_hash,
        project_id=record.project,
        task_id=record.task,
        annotator=record.annotator,
        created_at=record.created_at,
        lead_time=record.lead_time,
        was_cancelled=record.was_cancelled,
        ground_truth=record.ground_truth,
        from_prediction=record.from_prediction,
        suggestion_id=draft.baseline.suggestion_id,
        model_version=draft.baseline.model_version,
        task_group=draft.group,
        images=[
            [reference, facts.hash, facts.width, facts.height] for reference, facts in draft.images
        ],
    )
    session.add(revision)
    session.flush()
    rows: list[Any] = [
        RegionMask(
            revision_id=revision.id,
            region_id=region.id,
            label=label,
            control=region.control,
            item_index=region.item_index,
            shape=region.shape,
            area=region.mask.area,
            mask_hash=hashes[region.mask],
        )
        for region in draft.regions
        for label in region.labels or ("",)
    ]
    rows += [
        ConceptMask(
            revision_id=revision.id,
            item_index=page,
            label=label,
            height=mask.height,
            width=mask.width,
            area=mask.area,
            mask_hash=hashes[mask],
        )
        for (page, label), mask in draft.concepts.items()
    ]
    rows += [
        RegionOutcome(
            revision_id=revision.id,
            ordinal=ordinal,
            **{**vars(outcome), "final_ids": list(outcome.final_ids)},
        )
        for ordinal, outcome in enumerate(draft.outcomes)
    ]
    session.add_all(rows)
    session.flush()
    return revision


def _remember_images(session: Session, draft: "Draft") -> None:
    for page, (reference, facts) in enumerate(draft.images):
        values = {
            "project_id": draft.record.project,
            "reference": reference,
            "hash": facts.hash,
            "size_bytes": facts.size_bytes,
            "width": facts.width,
            "height": facts.height,
            "task_group": draft.group,
        }
        key = {"task_id": draft.record.task, "item_index": page}
        row = session.get(Image, tuple(key.values()))
        if row is None:
            insert_or_ignore(session, Image, {**key, **values})
            continue
        for name, value in values.items():
            setattr(row, name, value)


def _labels_of(draft: "Draft") -> set[tuple[str, str]]:
    return {(region.control, label) for region in draft.regions for label in region.labels or ("",)}


def _judge_labels(session: Session, project_id: int, xml: str) -> int:
    """Quarantine what lost its labels with a new config, release what got them back."""
    of_project = (
        select(RegionMask.control, RegionMask.label, Annotation.id)
        .join(Annotation, Annotation.revision_id == RegionMask.revision_id)
        .where(Annotation.project_id == project_id)
    )
    pairs = session.execute(of_project.distinct()).all()
    labels: dict[int, set[tuple[str, str]]] = {}
    for control, label, annotation_id in pairs:
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
        reason = missing_label(labels.get(row.id, ()), xml)
        state = AnnotationState.QUARANTINED if reason else AnnotationState.VALID
        if (row.state, row.reason) != (state, reason):
            row.state, row.reason = state, reason
            row.trouble = Trouble.CONFIG if reason else None
            changed += 1
    return changed


def _config_hash(xml: str) -> str:
    import hashlib

    return hashlib.sha256(xml.encode()).hexdigest()
