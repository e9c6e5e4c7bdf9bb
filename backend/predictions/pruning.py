"""Pruning: old predictions of versions that no longer serve their project leave the database.

Every prediction's row keeps its masks, and a project that is predicted again after each promotion
keeps all of them. Label Studio has what was delivered, and an annotation that began with one of
these is compared with Label Studio's copy. Rows that a correction names stay.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.orm import Session

from backend.corrections.tables import RegionOutcome, Revision
from backend.models import versions
from backend.people import audit
from backend.predictions.tables import StackPropagation
from backend.processes.health import note_round
from backend.services import Services, current_services
from backend.tables import AgentRun, Delivery, Suggestion, SuggestionState, now

log = logging.getLogger(__name__)

# Rows looked at in one transaction, which every other writer waits for.
TOGETHER = 500


@dataclass
class Pruned:
    """How many predictions were removed, by project; `kept`: they are old, and still needed."""

    by_project: Counter[int] = field(default_factory=Counter)
    kept: int = 0


def prune(
    services: Services,
    *,
    days: int,
    project_id: int | None = None,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Pruned:
    """Remove delivered predictions of versions that do not serve their project any more.

    Args:
        services: the database.
        days: only those that were finished before so many days.
        project_id: of this project; None: of all.
        dry_run: count, and remove nothing.
        progress: gets how many rows were looked at, batch by batch.
    """
    before, pruned = now() - timedelta(days=days), Pruned()
    for project in _projects(services) if project_id is None else [project_id]:
        serving = versions.in_service(services, project)
        for ids in _old_ones(services, project, serving, before):
            with services.database.session() as session:
                named = _named(session, ids)
                going = [id_ for id_ in ids if id_ not in named]
                if not dry_run:
                    session.execute(delete(Suggestion).where(Suggestion.id.in_(going)))
            pruned.kept += len(ids) - len(going)
            if going:
                pruned.by_project[project] += len(going)
            progress(len(ids))
    if (removed := pruned.by_project.total()) and not dry_run:
        subject = f"{removed} predictions older than {days} days"
        with services.database.session() as session:
            action = audit.AuditedAction.PRUNE
            audit.record(session, action, project_id=project_id, subject=subject)
    return pruned


def prune_job(_ids: Sequence[str]) -> None:
    """Handler on queue `ingest`: `prune`, by the setting."""
    services = current_services()
    days = services.settings.prune_days
    if days is not None:
        removed = prune(services, days=days).by_project.total()
        log.info("%d old predictions of earlier versions were removed", removed)
    note_round(services.redis, "prune")


def _projects(services: Services) -> list[int]:
    """The projects with predictions, one look into the index for each."""
    found: list[int] = []
    with services.database.reading() as session:
        while True:
            query = select(Suggestion.project_id).order_by(Suggestion.project_id).limit(1)
            if found:
                query = query.where(Suggestion.project_id > found[-1])
            following = session.scalar(query)
            if following is None:
                return found
            found.append(following)


def _old_ones(
    services: Services, project_id: int, serving: str, before: datetime
) -> Iterator[list[str]]:
    """Ids of a project's predictions that may go, in batches, oldest first."""
    last: tuple[datetime, str] | None = None
    query = (
        select(Suggestion.id, Suggestion.created_at)
        .where(
            Suggestion.project_id == project_id,
            Suggestion.created_at < before,
            Suggestion.finished_at < before,
            Suggestion.state == SuggestionState.DONE,
            Suggestion.delivery == Delivery.DELIVERED,
            Suggestion.model_version != serving,
        )
        .order_by(Suggestion.created_at, Suggestion.id)
        .limit(TOGETHER)
    )
    while True:
        following = query
        if last is not None:
            at, id_ = last
            same = and_(Suggestion.created_at == at, Suggestion.id > id_)
            following = query.where(
                Suggestion.created_at >= at, or_(Suggestion.created_at > at, same)
            )
        with services.database.reading() as session:
            rows = session.execute(following).all()
        if not rows:
            return
        last = (rows[-1].created_at, rows[-1].id)
        yield [row.id for row in rows]


def _named(session: Session, ids: Sequence[str]) -> set[str]:
    """Those that a correction names, or that work under way begins with."""
    queries = (
        select(Revision.suggestion_id).where(Revision.suggestion_id.in_(ids)),
        select(RegionOutcome.suggestion_id).where(RegionOutcome.suggestion_id.in_(ids)),
        select(AgentRun.suggestion_id).where(
            AgentRun.suggestion_id.in_(ids), AgentRun.finished_at.is_(None)
        ),
        select(StackPropagation.suggestion_id).where(
            StackPropagation.suggestion_id.in_(ids), StackPropagation.finished_at.is_(None)
        ),
    )
    return {id_ for query in queries for id_ in session.scalars(query) if id_}
