"""Statistics of the corrections: how good the suggestions were, and what the work on them cost.

They count the current versions of annotations that somebody worked on. Skips are counted by
themselves, annotations made from predictions in bulk not at all.
"""

import statistics as numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from backend.corrections.tables import (
    Annotation,
    AnnotationState,
    OutcomeKind,
    RegionOutcome,
    Revision,
    is_correction,
)
from backend.database import chunked


@dataclass(frozen=True)
class CorrectionFigures:
    """One row of the statistics.

    Attributes:
        annotations: submitted ones.
        accepted, edited, rejected: suggested regions; `acceptance_rate` is the accepted share.
        added: regions drawn without a suggestion.
        dice, surface_dice: means over the accepted and edited regions, 0..1.
        hd95: their median, in pixels.
        added_path_length: contour that had to be drawn, in pixels, per annotation.
        seconds: median time per annotation, as Label Studio counted it.
        total_seconds: of all annotations.

    A mean or rate of nothing is None.
    """

    annotations: int
    accepted: int
    edited: int
    rejected: int
    added: int
    acceptance_rate: float | None
    dice: float | None
    surface_dice: float | None
    hd95: float | None
    added_path_length: float | None
    seconds: float | None
    total_seconds: float


def compute(
    session: Session, project_id: int | None = None, revision_ids: Sequence[int] | None = None
) -> dict[str, Any]:
    """The statistics of one project or all, or of the given revisions, current or not.

    Returns:
        `{"annotations": {"valid", "skipped", "quarantined"}, "overall": CorrectionFigures,
        "by_concept", "by_annotator", "by_model_version", "by_week": {key: CorrectionFigures}}`,
        weeks as ISO `2026-W09` of the submission; "none" is the model version where nothing was
        suggested.
    """
    of_project = [] if project_id is None else [Annotation.project_id == project_id]
    joined = Annotation.revision_id == Revision.id
    # Each part with as many values as a statement may have; by id, as the rows come.
    parts: list[list[ColumnElement[bool]]] = [
        [
            *of_project,
            is_correction(),
        ]
    ]
    if revision_ids is not None:
        joined = Annotation.id == Revision.annotation_id
        parts = [[Revision.id.in_(chunk)] for chunk in chunked(sorted(revision_ids))]
    revision_columns = (
        select(
            Revision.id,
            Revision.annotator,
            Revision.model_version,
            Revision.updated_at,
            Revision.lead_time,
        )
        .join(Annotation, joined)
        .order_by(Revision.id)
    )
    outcome_columns = (
        select(
            RegionOutcome.revision_id,
            RegionOutcome.label,
            RegionOutcome.outcome,
            RegionOutcome.dice,
            RegionOutcome.surface_dice,
            RegionOutcome.hd95,
            RegionOutcome.added_path_length,
        )
        .join(Revision, Revision.id == RegionOutcome.revision_id)
        .join(Annotation, joined)
        .order_by(RegionOutcome.revision_id, RegionOutcome.ordinal)
    )
    revisions = [row for part in parts for row in session.execute(revision_columns.where(*part))]
    outcomes = [row for part in parts for row in session.execute(outcome_columns.where(*part))]
    times = {row.id: row.lead_time for row in revisions}
    by_concept = {
        # An annotation counts for each of its concepts; its time cannot be divided among them.
        label: asdict(_figures({row.revision_id: times.get(row.revision_id) for row in rows}, rows))
        for label, rows in sorted(_grouped(outcomes, lambda row: row.label).items())
    }

    def by(key: Callable[[Any], str]) -> dict[str, Any]:
        """The figures of the revisions of each key."""
        key_of = {row.id: key(row) for row in revisions}
        grouped = _grouped(outcomes, lambda row: key_of[row.revision_id])
        return {
            name: asdict(_figures({row.id: row.lead_time for row in rows}, grouped.get(name, ())))
            for name, rows in sorted(_grouped(revisions, key).items())
        }

    return {
        "annotations": _counts(session, of_project),
        "overall": asdict(_figures(times, outcomes)),
        "by_concept": by_concept,
        "by_annotator": by(lambda row: str(row.annotator)),
        "by_model_version": by(lambda row: row.model_version or "none"),
        "by_week": by(lambda row: f"{row.updated_at:%G-W%V}"),
    }


def _counts(session: Session, conditions: Sequence[ColumnElement[bool]]) -> dict[str, int]:
    """How many annotations are valid, skipped (and valid), quarantined."""
    counts = {"valid": 0, "skipped": 0, "quarantined": 0}
    for state, skipped, number in session.execute(
        select(Annotation.state, Annotation.was_cancelled, func.count())
        .where(*conditions, Annotation.state != AnnotationState.DELETED)
        .group_by(Annotation.state, Annotation.was_cancelled)
    ):
        counts["skipped" if skipped and state == AnnotationState.VALID else state] += number
    return counts


def _grouped(rows: Sequence[Any], key: Callable[[Any], str]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _figures(times: Mapping[int, float | None], outcomes: Iterable[Any]) -> CorrectionFigures:
    """The figures of annotations, given as the seconds of each, and of their outcomes."""
    counted: dict[str, int] = dict.fromkeys(OutcomeKind, 0)
    compared = []
    drawn = 0.0
    for row in outcomes:
        counted[row.outcome] += 1
        drawn += row.added_path_length or 0.0
        if row.dice is not None:
            compared.append(row)
    suggested = sum(counted.values()) - counted[OutcomeKind.ADDED]
    known_times = [seconds for seconds in times.values() if seconds is not None]
    return CorrectionFigures(
        annotations=len(times),
        accepted=counted[OutcomeKind.ACCEPTED],
        edited=counted[OutcomeKind.EDITED],
        rejected=counted[OutcomeKind.REJECTED],
        added=counted[OutcomeKind.ADDED],
        acceptance_rate=round(counted[OutcomeKind.ACCEPTED] / suggested, 4) if suggested else None,
        dice=_rounded(numbers.fmean, [row.dice for row in compared]),
        surface_dice=_rounded(numbers.fmean, [row.surface_dice for row in compared]),
        hd95=_rounded(numbers.median, [row.hd95 for row in compared]),
        added_path_length=round(drawn / len(times), 4) if times else None,
        seconds=_rounded(numbers.median, known_times),
        total_seconds=round(sum(known_times), 3),
    )


def _rounded(summary: Callable[[list[float]], float], values: list[float]) -> float | None:
    return round(summary(values), 4) if values else None
