"""Totals of the corrections, counted in the database: as `statistics`, but fast at any number.

They count the current versions of annotations that somebody worked on. Medians need every value,
so what is here are sums and means.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from backend.corrections.tables import (
    Annotation,
    OutcomeKind,
    RegionOutcome,
    Revision,
    is_correction,
)


@dataclass
class CorrectionTotal:
    """One row of the totals.

    Attributes:
        annotations: submitted ones; 0 where they cannot be told apart, by label.
        accepted, edited, rejected, added: regions.
        compared, dice_sum: accepted and edited regions whose Dice is known, and its sum.
        drawn: contour that had to be drawn, in pixels.
        timed, seconds_sum: annotations whose time is known, and their seconds.
    """

    annotations: int = 0
    accepted: int = 0
    edited: int = 0
    rejected: int = 0
    added: int = 0
    compared: int = 0
    dice_sum: float = 0.0
    drawn: float = 0.0
    timed: int = 0
    seconds_sum: float = 0.0

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted share of the suggested regions."""
        suggested = self.accepted + self.edited + self.rejected
        return self.accepted / suggested if suggested else None

    @property
    def dice(self) -> float | None:
        """Mean Dice of the accepted and edited regions, 0 to 1."""
        return self.dice_sum / self.compared if self.compared else None

    @property
    def seconds(self) -> float | None:
        """Mean seconds of an annotation."""
        return self.seconds_sum / self.timed if self.timed else None

    @property
    def drawn_each(self) -> float | None:
        """Contour that had to be drawn for an annotation, in pixels."""
        return self.drawn / self.annotations if self.annotations else None


@dataclass(frozen=True)
class CorrectionTotals:
    """All corrections, and by ISO week (`2026-W09`), label, annotator and model version."""

    overall: CorrectionTotal
    by_week: Mapping[str, CorrectionTotal]
    by_label: Mapping[str, CorrectionTotal]
    by_annotator: Mapping[str, CorrectionTotal]
    by_model_version: Mapping[str, CorrectionTotal]


def compute_totals(session: Session, project_id: int | None = None) -> CorrectionTotals:
    """The totals of one project, or of all; "none" is the version where nothing was suggested."""
    of_project = [] if project_id is None else [Annotation.project_id == project_id]
    counted = [
        *of_project,
        is_correction(),
    ]
    keys = (_day(session), Revision.annotator, Revision.model_version)
    submitted = session.execute(
        select(*keys, func.count(), func.count(Revision.lead_time), func.sum(Revision.lead_time))
        .join(Annotation, Annotation.revision_id == Revision.id)
        .where(*counted)
        .group_by(*keys)
    ).all()
    regions = session.execute(
        select(
            *keys,
            RegionOutcome.label,
            RegionOutcome.outcome,
            func.count(),
            func.count(RegionOutcome.dice),
            func.sum(RegionOutcome.dice),
            func.sum(RegionOutcome.added_path_length),
        )
        .join(Revision, Revision.id == RegionOutcome.revision_id)
        .join(Annotation, Annotation.revision_id == Revision.id)
        .where(*counted)
        .group_by(*keys, RegionOutcome.label, RegionOutcome.outcome)
    ).all()

    def by(key: Callable[[Any], str], of: Iterable[Any] = submitted) -> dict[str, CorrectionTotal]:
        """The totals of each key; annotations are counted from `of`."""
        found: defaultdict[str, CorrectionTotal] = defaultdict(CorrectionTotal)
        for row in of:
            _add_annotations(found[key(row)], row)
        for row in regions:
            _add_regions(found[key(row)], row)
        return dict(sorted(found.items()))

    return CorrectionTotals(
        by(lambda row: "").get("", CorrectionTotal()),
        by(lambda row: f"{date.fromisoformat(str(row[0])):%G-W%V}"),
        # An annotation may have several labels, and its time cannot be divided among them.
        by(lambda row: str(row.label), of=()),
        by(lambda row: "unknown" if row[1] is None else str(row[1])),
        by(lambda row: row[2] or "none"),
    )


def _day(session: Session) -> ColumnElement[Any]:
    """The day of the submission, UTC, as a column."""
    if session.get_bind().dialect.name == "postgresql":
        return func.date(func.timezone("UTC", Revision.updated_at))
    return func.date(Revision.updated_at)


def _add_annotations(total: CorrectionTotal, row: Any) -> None:
    total.annotations += row[3]
    total.timed += row[4]
    total.seconds_sum += row[5] or 0.0


def _add_regions(total: CorrectionTotal, row: Any) -> None:
    kind = OutcomeKind(row.outcome).value
    setattr(total, kind, getattr(total, kind) + row[5])
    total.compared += row[6]
    total.dice_sum += row[7] or 0.0
    total.drawn += row[8] or 0.0
