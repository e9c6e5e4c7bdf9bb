"""The database, and the predictions, events and corrections in it that failed."""

from pathlib import Path
from typing import Any

from sqlalchemy import exists, func, make_url, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased

from backend.corrections.groups import count_groups
from backend.corrections.tables import Annotation, AnnotationState
from backend.database import Database, newest_revision
from backend.doctor.check import Check, fail, ok, warn
from backend.settings import Settings
from backend.tables import Delivery, Event, Suggestion, SuggestionState

_SHOWN_ERRORS = 5


def open_existing_database(settings: Settings) -> tuple[Database | None, Check]:
    """Open the database without creating or migrating it."""
    url = make_url(settings.database)
    where = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        return None, warn(
            "database",
            f"{where} is not there yet",
            "it is made at the first start of `medsam3 serve`",
        )
    try:
        database = Database(settings.database)
        revision = database.revision()
    except SQLAlchemyError as error:
        return None, fail(
            "database",
            f"{where} cannot be opened ({type(error).__name__})",
            "check DATABASE_URL, and that the server runs and knows this user",
        )
    if revision != newest_revision():
        return database, fail(
            "database",
            f"{where} is at {revision or 'no'} migration, this version needs {newest_revision()}",
            "restart `medsam3 serve` (or web and workers) of this version: they migrate it",
        )
    return database, ok("database", where)


def check_failed_tasks(database: Database) -> Check:
    """Tasks whose last prediction failed, with the reasons, most frequent first."""
    later = aliased(Suggestion)
    superseded = exists().where(
        later.project_id == Suggestion.project_id,
        later.task_id == Suggestion.task_id,
        later.created_at > Suggestion.created_at,
        later.state == SuggestionState.DONE,
        later.error.is_(None),
    )
    failed = or_(Suggestion.state == SuggestionState.FAILED, Suggestion.delivery == Delivery.NONE)
    unpredicted = (Suggestion.error.is_not(None), failed, ~superseded)
    rows = _by_reason(database, Suggestion.error, Suggestion.task_id, *unpredicted)
    if not rows:
        return ok("failed tasks", "none")
    total = sum(count for _, count, _ in rows)
    lines = [
        f"{count} × {error} (task {task_id})" if count > 1 else f"task {task_id}: {error}"
        for error, count, task_id in rows[:_SHOWN_ERRORS]
    ]
    if len(rows) > _SHOWN_ERRORS:
        lines.append(f"and {len(rows) - _SHOWN_ERRORS} other reasons")
    return warn(
        "failed tasks",
        f"{total} predictions failed:\n" + "\n".join(lines),
        "when the reason is gone: `medsam3 preannotate PROJECT`",
    )


def check_events(database: Database) -> Check:
    """Webhook events that could not be handled."""
    waiting = (Event.error.is_not(None), Event.finished_at.is_(None))
    rows = _by_reason(database, Event.error, Event.id, *waiting)
    if not rows:
        return ok("events", "none waits with an error")
    return warn(
        "events",
        f"{sum(count for _, count, _ in rows)} wait with an error, most often: {rows[0][0]}",
        "they are tried again; the annotations themselves are safe in Label Studio",
    )


def check_quarantined(database: Database) -> Check:
    """Quarantined annotations, the most frequent reasons first."""
    quarantined = Annotation.state == AnnotationState.QUARANTINED
    rows = _by_reason(database, Annotation.reason, Annotation.id, quarantined)
    if not rows:
        return ok("corrections", "no annotation is quarantined")
    total = sum(count for _, count, _ in rows)
    reasons = "; ".join(
        f"annotation {first}{f' and {count - 1} more' if count > 1 else ''}: {reason}"
        for reason, count, first in rows[:_SHOWN_ERRORS]
    )
    return warn(
        "corrections",
        f"{total} annotations are quarantined: {reasons}",
        "`medsam3 corrections list --state quarantined` shows all of them",
    )


def check_groups(database: Database) -> list[Check]:
    """How many groups a project's corrected images are in, and how many are in none."""
    with database.reading() as session:
        counted = count_groups(session)
    checks = []
    for project, (groups, images, alone) in counted.items():
        name = f"groups of project {project}"
        message = f"{groups} groups, {alone} of {images} images have none"
        if groups and alone:
            fill = "give each task the field that MEDSAM3_GROUP_FIELD names"
            checks.append(warn(name, f"{message}: each of those is its own", fill))
        else:
            checks.append(ok(name, message))
    return checks


def _by_reason(
    database: Database, reason: Any, id_: Any, *conditions: Any
) -> list[tuple[str, int, Any]]:
    """Each reason with its number of rows and the first of their ids, most frequent first."""
    query = select(reason, func.count(), func.min(id_)).where(*conditions).group_by(reason)
    with database.reading() as session:
        rows = session.execute(query.order_by(func.count().desc(), func.min(id_)))
        return [(text, count, first) for text, count, first in rows]
