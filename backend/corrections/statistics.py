"""How good the suggestions were, and what the annotators' work cost: counts, effort, time.

Counted are the current versions of annotations that somebody worked on: skips are counted by
themselves, annotations made from predictions in bulk not at all.
"""

import statistics as numbers
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.corrections.tables import (
    Annotation,
    AnnotationState,
    OutcomeKind,
    RegionOutcome,
    Revision,
)


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


_OutcomeRow = tuple[int, str, str, float | None, float | None, float | None, float | None]


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
    counts = {
        (state, skipped): count
        for state, skipped, count in session.execute(
            select(Annotation.state, Annotation.was_cancelled, func.count())
            .where(*of_project)
            .group_by(Annotation.state, Annotation.was_cancelled)
        )
    }
    worked_on = [
        *of_project,
        Annotation.state == AnnotationState.VALID,
        Revision.was_cancelled.is_(False),
        Revision.from_prediction.is_(False),
    ]
    joined = Annotation.revision_id == Revision.id
    if revision_ids is not None:
        worked_on = [Revision.id.in_(revision_ids)]
        joined = Annotation.id == Revision.annotation_id
    revisions = session.execute(
        select(
            Revision.id,
            Revision.annotator,
            Revision.model_version,
            Revision.updated_at,
            Revision.lead_time,
        )
        .join(Annotation, joined)
        .where(*worked_on)
        .order_by(Revision.id)
    ).all()
    outcomes: list[_OutcomeRow] = [
        tuple(row)  # type: ignore[misc]
        for row in session.execute(
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
            .where(*worked_on)
            .order_by(RegionOutcome.revision_id, RegionOutcome.ordinal)
        )
    ]
    times = {row.id: row.lead_time for row in revisions}
    return {
        "annotations": {
            "valid": sum(n for (state, skip), n in counts.items() if state == "valid" and not skip),
            "skipped": sum(n for (state, skip), n in counts.items() if state == "valid" and skip),
            "quarantined": sum(n for (state, _), n in counts.items() if state == "quarantined"),
        },
        "overall": asdict(_figures(times, outcomes)),
        "by_concept": _by_concept(times, outcomes),
        "by_annotator": _by(revisions, outcomes, lambda row: str(row.annotator)),
        "by_model_version": _by(revisions, outcomes, lambda row: row.model_version or "none"),
        "by_week": _by(revisions, outcomes, lambda row: week_of(row.updated_at)),
    }


def week_of(moment: datetime) -> str:
    """The ISO week, such as `2026-W09`."""
    year, week, _ = moment.isocalendar()
    return f"{year}-W{week:02d}"


def _by(revisions: Sequence[Any], outcomes: Sequence[_OutcomeRow], key: Any) -> dict[str, Any]:
    key_of = {row.id: key(row) for row in revisions}
    times: dict[str, dict[int, float | None]] = {}
    for row in revisions:
        times.setdefault(key_of[row.id], {})[row.id] = row.lead_time
    parts: dict[str, list[_OutcomeRow]] = {}
    for outcome in outcomes:
        parts.setdefault(key_of[outcome[0]], []).append(outcome)
    return {name: asdict(_figures(times[name], parts.get(name, ()))) for name in sorted(times)}


def _by_concept(times: dict[int, float | None], outcomes: Sequence[_OutcomeRow]) -> dict[str, Any]:
    """An annotation counts for each of its concepts; its time cannot be divided among them."""
    parts: dict[str, list[_OutcomeRow]] = {}
    for outcome in outcomes:
        parts.setdefault(outcome[1], []).append(outcome)
    return {
        label: asdict(_figures({row[0]: times.get(row[0]) for row in rows}, rows))
        for label, rows in sorted(parts.items())
    }


def _figures(times: dict[int, float | None], outcomes: Iterable[_OutcomeRow]) -> CorrectionFigures:
    counted: dict[str, int] = dict.fromkeys(OutcomeKind, 0)
    dice: list[float] = []
    surface: list[float] = []
    hd95: list[float] = []
    drawn = 0.0
    for _, _, kind, one_dice, one_surface, one_hd95, length in outcomes:
        counted[kind] += 1
        drawn += length or 0.0
        if one_dice is not None and one_surface is not None and one_hd95 is not None:
            dice.append(one_dice)
            surface.append(one_surface)
            hd95.append(one_hd95)
    suggested = sum(counted.values()) - counted[OutcomeKind.ADDED]
    known_times = [seconds for seconds in times.values() if seconds is not None]
    return CorrectionFigures(
        annotations=len(times),
        accepted=counted[OutcomeKind.ACCEPTED],
        edited=counted[OutcomeKind.EDITED],
        rejected=counted[OutcomeKind.REJECTED],
        added=counted[OutcomeKind.ADDED],
        acceptance_rate=_rounded(counted[OutcomeKind.ACCEPTED] / suggested if suggested else None),
        dice=_rounded(numbers.fmean(dice) if dice else None),
        surface_dice=_rounded(numbers.fmean(surface) if surface else None),
        hd95=_rounded(numbers.median(hd95) if hd95 else None),
        added_path_length=_rounded(drawn / len(times) if times else None),
        seconds=_rounded(numbers.median(known_times) if known_times else None),
        total_seconds=round(sum(known_times), 3),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
