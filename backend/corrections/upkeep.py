"""What has to be done about the corrections from time to time; workers call it."""

import logging
from dataclasses import dataclass
from datetime import timedelta

from backend.corrections.event_ingest import open_ingest, prune_events
from backend.corrections.privacy import Removed, retain
from backend.corrections.sync import Report, known_projects, reconcile_project
from backend.errors import LabelStudioAuthError, LabelStudioError, LabelStudioUnavailableError
from backend.services import Services
from backend.tables import now

log = logging.getLogger(__name__)

# Events that were dealt with are looked at by nobody after a month.
KEEP_EVENTS = timedelta(days=30)


@dataclass(frozen=True)
class Upkeep:
    """What one round did; `removed` is None where no retention time is set."""

    reports: tuple[Report, ...]
    removed: Removed | None
    pruned_events: int


def keep_up(services: Services) -> Upkeep:
    """Reconcile all known projects, remove what is past its retention time, prune events.

    A project that Label Studio refuses does not keep the others from their turn.

    Raises:
        LabelStudioUnavailableError, LabelStudioAuthError: the next round tries again.
    """
    reports = []
    settings = services.settings
    with open_ingest(services) as ingest:
        for project_id in known_projects(ingest):
            try:
                reports.append(reconcile_project(ingest, project_id))
            except (LabelStudioUnavailableError, LabelStudioAuthError):
                raise
            except LabelStudioError as error:
                log.warning("project %s was not reconciled: %s", project_id, error)
        removed = None
        if settings.retention_days is not None:
            removed = retain(
                services.database,
                ingest.masks,
                settings.embedding_dir,
                days=settings.retention_days,
            )
    with services.database.session() as session:
        pruned = prune_events(session, now() - KEEP_EVENTS)
    return Upkeep(tuple(reports), removed, pruned)
