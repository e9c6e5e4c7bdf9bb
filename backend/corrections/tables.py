"""The tables of the corrections; ids of Label Studio's objects are Label Studio's own.

An annotation has revisions, one for each version of it that was seen, and points at the current
one. A revision never changes. What depends on the time of ingestion (`observed`, `ingested_at`) is
kept apart from what was submitted, so that two stores that saw the same annotations in another
order hold the same corrections.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    ForeignKey,
    Index,
    String,
    Text,
    UniqueConstraint,
    and_,
)
from sqlalchemy.orm import Mapped, mapped_column

from backend.tables import Base, now


class AnnotationState(StrEnum):
    """What the store makes of an annotation's current version."""

    VALID = "valid"
    QUARANTINED = "quarantined"  # cannot be used; `reason` says why
    DELETED = "deleted"


class OutcomeKind(StrEnum):
    """What happened to a suggested region, or that there was none."""

    ACCEPTED = "accepted"
    EDITED = "edited"
    REJECTED = "rejected"
    ADDED = "added"


class Relation(StrEnum):
    """How suggested and final regions correspond."""

    ONE = "one"
    SPLIT = "split"  # one suggestion became several regions
    MERGED = "merged"  # several suggestions became one region
    NONE = "none"  # rejected or added


class Annotation(Base):
    """An annotation in Label Studio, as last seen.

    Attributes:
        state: see `AnnotationState`.
        trouble: see `Trouble`; only while quarantined.
        revision_id: the current version, also while its labels are missing from the labeling
            config; None when it is deleted or cannot be decoded.
        content_hash: of the version last seen, decodable or not.
        observed: number of the observation that this row tells of (see `ingest`); a later one
            replaces it, an earlier one that comes late does not.
    """

    __tablename__ = "annotations"
    __table_args__ = (
        Index("ix_annotations_task", "project_id", "task_id"),
        Index("ix_annotations_state", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[int]
    task_id: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    trouble: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    was_cancelled: Mapped[bool] = mapped_column(default=False)
    revision_id: Mapped[int | None]
    content_hash: Mapped[str | None] = mapped_column(String(32))
    updated_at: Mapped[datetime | None]
    observed: Mapped[int]


class Revision(Base):
    """One submitted version of an annotation; immutable.

    Attributes:
        annotator: id of the Label Studio user who completed the annotation.
        from_prediction: made by the bulk action "create annotations from predictions": nobody
            looked at it.
        lead_time: seconds that the annotator spent, as Label Studio counted them.
        suggestion_id: the batch suggestion that it was compared with.
        model_version: the version that made it; None when there was no suggestion.
        task_group: what must stay together in a split, such as a patient.
        images: one `[reference, sha256, width, height]` per page.
    """

    __tablename__ = "revisions"
    __table_args__ = (
        UniqueConstraint("annotation_id", "updated_at", "content_hash"),
        Index("ix_revisions_task", "project_id", "task_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    annotation_id: Mapped[int] = mapped_column(ForeignKey("annotations.id"))
    updated_at: Mapped[datetime]
    content_hash: Mapped[str] = mapped_column(String(32))
    project_id: Mapped[int]
    task_id: Mapped[int]
    annotator: Mapped[int | None]
    created_at: Mapped[datetime]
    lead_time: Mapped[float | None]
    was_cancelled: Mapped[bool]
    ground_truth: Mapped[bool]
    from_prediction: Mapped[bool]
    suggestion_id: Mapped[str | None] = mapped_column(String(32))
    model_version: Mapped[str | None] = mapped_column(String(200))
    task_group: Mapped[str] = mapped_column(Text)
    images: Mapped[list[Any]]
    ingested_at: Mapped[datetime] = mapped_column(default=now)


class RegionMask(Base):
    """One region of a revision, which is one instance of its label; `mask_hash` names a file."""

    __tablename__ = "region_masks"

    revision_id: Mapped[int] = mapped_column(ForeignKey("revisions.id"), primary_key=True)
    region_id: Mapped[str] = mapped_column(Text, primary_key=True)
    label: Mapped[str] = mapped_column(Text, primary_key=True)
    control: Mapped[str] = mapped_column(Text)
    item_index: Mapped[int]
    shape: Mapped[str] = mapped_column(String(32))
    area: Mapped[int]
    mask_hash: Mapped[str] = mapped_column(String(32), index=True)


class ConceptMask(Base):
    """Everything of one label on one page of a revision: the union of its regions."""

    __tablename__ = "concept_masks"

    revision_id: Mapped[int] = mapped_column(ForeignKey("revisions.id"), primary_key=True)
    item_index: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(Text, primary_key=True)
    height: Mapped[int]
    width: Mapped[int]
    area: Mapped[int]
    mask_hash: Mapped[str] = mapped_column(String(32), index=True)


class RegionOutcome(Base):
    """What a revision did to one suggested region, or one region that it added.

    Dice, surface Dice and HD95 (pixels) compare the suggested with the final mask; lengths are in
    pixels. They are None for what was rejected or added, where there is nothing to compare; an
    added region's `added_path_length` is its whole contour.

    Attributes:
        label: of the final region; for a rejected one, the suggestion's.
        region_id: the suggested region; None for an added one.
        final_ids: regions of the revision, several after a split.
        interactive: suggested by a smart tool.
    """

    __tablename__ = "region_outcomes"

    revision_id: Mapped[int] = mapped_column(ForeignKey("revisions.id"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    outcome: Mapped[str] = mapped_column(String(16))
    relation: Mapped[str] = mapped_column(String(16))
    item_index: Mapped[int]
    label: Mapped[str] = mapped_column(Text)
    label_changed: Mapped[bool]
    interactive: Mapped[bool]
    suggestion_id: Mapped[str | None] = mapped_column(String(32))
    model_version: Mapped[str | None] = mapped_column(String(200))
    region_id: Mapped[str | None] = mapped_column(Text)
    final_ids: Mapped[list[Any]]
    dice: Mapped[float | None]
    surface_dice: Mapped[float | None]
    hd95: Mapped[float | None]
    added_path_length: Mapped[float | None]


class Image(Base):
    """One page of a task's image; fetched and hashed once per address.

    Attributes:
        reference: the address in the task's data, as Label Studio stores it.
        hash: SHA-256 of the file.
        width, height: of the decoded image, upright; None for files that only the model reads.
    """

    __tablename__ = "images"

    task_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    item_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    project_id: Mapped[int] = mapped_column(index=True)
    reference: Mapped[str] = mapped_column(Text)
    hash: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int]
    width: Mapped[int | None]
    height: Mapped[int | None]
    task_group: Mapped[str] = mapped_column(Text)


class Counter(Base):
    """A number that only grows; `observations` counts reads of Label Studio's API."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[int]


class ProjectRecord(Base):
    """What the corrections know of a project, apart from its annotations.

    Attributes:
        label_config_hash: the labeling config last seen; see `backend.tables.LabelConfigText`.
        observed: number of the observation that saw it.
        tasks_changed_until: how far the sync has come, in Label Studio's own time.
        reading_until, read_to_task: a sync under way reads what changed until then, and has read
            the tasks up to that id; None when none was cut short.
        report: a `SyncReport` of the last sync, which was at `synchronized_at`.
    """

    __tablename__ = "project_records"

    project_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    label_config_hash: Mapped[str | None] = mapped_column(String(64))
    observed: Mapped[int] = mapped_column(default=0)
    tasks_changed_until: Mapped[datetime | None]
    reading_until: Mapped[datetime | None]
    read_to_task: Mapped[int | None]
    report: Mapped[dict[str, Any] | None]
    synchronized_at: Mapped[datetime | None]


class Forgotten(Base):
    """What was removed on request and must not come back; task 0 stands for the whole project."""

    __tablename__ = "forgotten"

    project_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    forgotten_at: Mapped[datetime] = mapped_column(default=now)


class Removal(Base):
    """A file that is still to be removed: its rows are gone, the worker may have died since."""

    __tablename__ = "removals"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)  # "mask" or "embedding"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)


class DatasetVersion(Base):
    """An immutable list of revisions with its split, for training and export."""

    __tablename__ = "dataset_versions"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int]
    name: Mapped[str] = mapped_column(String(100))
    digest: Mapped[str] = mapped_column(String(64))
    forgotten: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(default=now)


class DatasetItem(Base):
    """One revision of a dataset version."""

    __tablename__ = "dataset_items"

    dataset_id: Mapped[int] = mapped_column(ForeignKey("dataset_versions.id"), primary_key=True)
    revision_id: Mapped[int] = mapped_column(
        ForeignKey("revisions.id"), primary_key=True, index=True
    )
    split: Mapped[str] = mapped_column(String(16))


class MaskOverlap(Base):
    """Pixels that two masks share; masks are named by their content, so it never changes.

    `first_hash` comes before `second_hash`. Equal masks and empty ones have no row.
    """

    __tablename__ = "mask_overlaps"

    first_hash: Mapped[str] = mapped_column(String(32), primary_key=True)
    second_hash: Mapped[str] = mapped_column(String(32), primary_key=True, index=True)
    pixels: Mapped[int]


class AgreementReport(Base):
    """A project's `backend.corrections.agreement.Agreement`, and of which corrections it tells."""

    __tablename__ = "agreement_reports"

    project_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    stamp: Mapped[str] = mapped_column(String(64))
    report: Mapped[dict[str, Any]]
    computed_at: Mapped[datetime] = mapped_column(default=now)


def is_correction() -> ColumnElement[bool]:
    """Whether an annotation and its revision count: valid, not skipped, and looked at by somebody.

    Those made from predictions in bulk were not.
    """
    return and_(
        Annotation.state == AnnotationState.VALID,
        Revision.was_cancelled.is_(False),
        Revision.from_prediction.is_(False),
    )
