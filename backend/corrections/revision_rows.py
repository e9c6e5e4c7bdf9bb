"""Writing a revision's rows, with statements that were made beforehand; see `store`."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import CursorResult, Insert, insert
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from backend.corrections.cropped_mask import CroppedMask
from backend.corrections.tables import (
    ConceptMask,
    Image,
    RegionMask,
    RegionOutcome,
    Revision,
    table_of,
)

if TYPE_CHECKING:
    from backend.corrections.ingest import Draft

_images = table_of(Image)
_ADD_REVISION = insert(table_of(Revision))
_ADD_REGIONS = insert(table_of(RegionMask))
_ADD_CONCEPTS = insert(table_of(ConceptMask))
_ADD_OUTCOMES = insert(table_of(RegionOutcome))


def add_revision(session: Session, draft: "Draft", hashes: Mapping[CroppedMask, str]) -> int:
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
    for statement, rows in _parts(draft, hashes):
        if rows:
            numbered = [{"revision_id": revision_id, **row} for row in rows]
            session.execute(statement, numbered)
    return int(revision_id)


def _parts(
    draft: "Draft", hashes: Mapping[CroppedMask, str]
) -> Iterable[tuple[Insert, list[dict[str, Any]]]]:
    """The rows below a revision."""
    yield (
        _ADD_REGIONS,
        [
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
        ],
    )
    yield (
        _ADD_CONCEPTS,
        [
            {
                "item_index": page,
                "label": label,
                "height": mask.height,
                "width": mask.width,
                "area": mask.area,
                "mask_hash": hashes[mask],
            }
            for (page, label), mask in draft.concepts.items()
        ],
    )
    yield (
        _ADD_OUTCOMES,
        [
            {"ordinal": ordinal, **vars(outcome), "final_ids": list(outcome.final_ids)}
            for ordinal, outcome in enumerate(draft.outcomes)
        ],
    )


def remember_images(session: Session, draft: "Draft") -> None:
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
