"""Corrections that cannot be used, with their reasons."""

from sqlalchemy import func, select

from backend.corrections.tables import Annotation, AnnotationState
from backend.database import Database
from backend.doctor.check import Check, ok, warn

_SHOWN = 5


def check_quarantined(database: Database) -> Check:
    """Quarantined annotations, the most frequent reasons first."""
    query = (
        select(Annotation.reason, func.count(), func.min(Annotation.id))
        .where(Annotation.state == AnnotationState.QUARANTINED)
        .group_by(Annotation.reason)
        .order_by(func.count().desc(), func.min(Annotation.id))
    )
    with database.reading() as session:
        rows = session.execute(query).all()
    if not rows:
        return ok("corrections", "no annotation is quarantined")
    total = sum(count for _, count, _ in rows)
    reasons = "; ".join(
        f"annotation {first}{f' and {count - 1} more' if count > 1 else ''}: {reason}"
        for reason, count, first in rows[:_SHOWN]
    )
    return warn(
        "corrections",
        f"{total} annotations are quarantined: {reasons}",
        "`medsam3 corrections list --state quarantined` shows all of them",
    )
