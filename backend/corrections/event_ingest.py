"""The ingest queue's work: from a stored webhook event to the annotations it hints at."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from backend.corrections import store
from backend.corrections.ingest import Hint, Ingest
from backend.corrections.mask_store import MaskStore
from backend.corrections.source import AnnotationSource
from backend.corrections.tables import Annotation, AnnotationState
from backend.errors import LabelStudioAuthError, LabelStudioUnavailableError, Trouble
from backend.label_studio.client import LabelStudio
from backend.services import Services
from backend.tables import Event, now

log = logging.getLogger(__name__)

NEW, DONE, FAILED = "new", "done", "failed"
# Trying again helps once Label Studio or the token is back; the event is not to blame.
_LATER = (LabelStudioUnavailableError, LabelStudioAuthError)


@contextmanager
def open_ingest(services: Services) -> Iterator[Ingest]:
    """An `Ingest` with the process's settings; closes its connections to Label Studio."""
    settings = services.settings
    with LabelStudio.from_settings(settings) as client:
        yield Ingest(
            services.database,
            MaskStore(settings.storage),
            AnnotationSource(client, settings),
            settings,
        )


def ingest_events(services: Services, ids: Sequence[str]) -> None:
    """Deal with events; each stays `new` until all that it hints at is stored.

    Raises:
        Exception: the first unforeseen error, after all events were tried, so that RQ tries
            again those that are still new.
    """
    problems: list[Exception] = []
    with open_ingest(services) as ingest:
        for event_id in ids:
            try:
                ingest_event(ingest, event_id)
            except _LATER as error:
                log.warning("event %s waits: %s", event_id, error)
            except Exception as error:
                log.exception("event %s failed", event_id)
                problems.append(error)
    if problems:
        raise problems[0]


def ingest_event(ingest: Ingest, event_id: str) -> None:
    """Deal with one event, or give it up after `max_attempts`; done twice, it changes nothing.

    Raises:
        LabelStudioUnavailableError, LabelStudioAuthError: to be tried again later.
        Exception: anything unforeseen, while attempts are left.
    """
    database = ingest.database
    with database.session() as session:
        event = session.get(Event, event_id, with_for_update=True)
        if event is None or event.state != NEW:
            return
        limit = ingest.settings.max_attempts
        if event.attempts >= limit:
            reason = event.error or f"the worker died {limit} times on it"
            _give_up(session, event, reason)
            return
        event.attempts += 1
        last = event.attempts == limit
    try:
        for hint in _hints(ingest, event):
            ingest.take_in(hint)
        with database.session() as session:
            _finish(session, event_id, DONE, None)
    except _LATER as error:
        with database.session() as session:
            session.execute(
                update(Event)
                .where(Event.id == event_id, Event.state == NEW)
                .values(attempts=Event.attempts - 1, error=str(error))
            )
        raise
    except Exception as error:
        # The text of an unforeseen error may hold anything; its type has to do.
        reason = f"unexpected {type(error).__name__}; the worker's log has the traceback"
        with database.session() as session:
            if last:
                _give_up(session, event, reason)
            else:
                session.execute(
                    update(Event)
                    .where(Event.id == event_id, Event.state == NEW)
                    .values(error=reason)
                )
        raise


def prune_events(session: Session, before: datetime) -> int:
    """Remove the events that were dealt with before a moment; returns how many."""
    ids = session.scalars(
        select(Event.id).where(Event.state != NEW, Event.finished_at < before)
    ).all()
    for id_ in ids:
        session.delete(session.get_one(Event, id_))
    return len(ids)


def _hints(ingest: Ingest, event: Event) -> Iterator[Hint]:
    """The annotations to read again: those named, and those stored of the tasks and project."""
    if event.project_id is not None and event.action.startswith("PROJECT_"):
        yield from _of_project(ingest, event.project_id)
        return
    named = [int(id_) for id_ in event.annotation_ids]
    task_id = int(event.task_ids[0]) if len(event.task_ids) == 1 else None
    for id_ in named:
        yield Hint(id_, task_id, event.project_id)
    if named or not event.task_ids:
        return
    with ingest.database.reading() as session:
        stored = session.execute(
            select(Annotation.id, Annotation.task_id, Annotation.project_id).where(
                Annotation.task_id.in_([int(id_) for id_ in event.task_ids]),
                Annotation.state != AnnotationState.DELETED,
            )
        ).all()
    for row in stored:
        yield Hint(row.id, row.task_id, row.project_id)


def _of_project(ingest: Ingest, project_id: int) -> Iterator[Hint]:
    """After a change of the project: all annotations if it is gone, else what a config may heal."""
    with ingest.database.session() as session:
        number = store.observe(session)
    project = ingest.source.project(project_id)
    affected = select(Annotation.id, Annotation.task_id).where(
        Annotation.project_id == project_id, Annotation.state != AnnotationState.DELETED
    )
    if project is not None:
        with ingest.database.session() as session:
            store.see_config(session, number, project_id, str(project.get("label_config") or ""))
        affected = affected.where(
            Annotation.trouble == Trouble.CONFIG, Annotation.revision_id.is_(None)
        )
    with ingest.database.reading() as session:
        rows = session.execute(affected).all()
    for row in rows:
        yield Hint(row.id, row.task_id, project_id)


def _finish(session: Session, event_id: str, state: str, error: str | None) -> None:
    session.execute(
        update(Event)
        .where(Event.id == event_id, Event.state == NEW)
        .values(state=state, error=error, finished_at=now())
    )


def _give_up(session: Session, event: Event, reason: str) -> None:
    """Quarantine what the event named, so that it is seen; the next version may heal it."""
    number = store.observe(session)
    task_id = int(event.task_ids[0]) if len(event.task_ids) == 1 else None
    for id_ in event.annotation_ids:
        store.save_state(
            session,
            number,
            int(id_),
            project_id=event.project_id,
            task_id=task_id,
            state=AnnotationState.QUARANTINED,
            trouble=Trouble.UNFORESEEN,
            reason=reason,
        )
    _finish(session, event.id, FAILED, reason)
