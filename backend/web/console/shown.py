"""How the console's pages show values: ages, times, and links into Label Studio."""

from datetime import datetime
from urllib.parse import urlsplit

from flask import Flask
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.corrections.tables import Annotation
from backend.settings import Settings
from backend.tables import Project, now

NOTHING = "–"


def add_filters(app: Flask) -> None:
    """Give templates the filters of this file."""
    for function in (age, moment, figure, percent):
        app.add_template_filter(function, function.__name__)


def age(seconds: float | None) -> str:
    """A span of time, in its largest unit."""
    if seconds is None:
        return NOTHING
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def seconds_since(time: datetime | None) -> float | None:
    """Seconds from a time until now."""
    return None if time is None else max(0.0, (now() - time).total_seconds())


def moment(time: datetime | None) -> str:
    """A time, UTC, to the minute."""
    return NOTHING if time is None else f"{time:%Y-%m-%d %H:%M}"


def figure(value: float | None, digits: int = 3) -> str:
    """A number with as many digits behind the point."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """A share as a whole number of per cent."""
    return NOTHING if share is None else f"{100 * share:.0f} %"


def known_projects(session: Session) -> list[tuple[int, str | None]]:
    """Connected projects and those with annotations, by id: the id, and the title if known."""
    titles = dict(session.execute(select(Project.id, Project.title)).all())
    annotated = session.scalars(select(Annotation.project_id).distinct())
    return [(project_id, titles.get(project_id)) for project_id in sorted({*titles, *annotated})]


def label_studio_address(settings: Settings) -> str:
    """Where a browser reaches Label Studio: an alias, where there is one, without a login in it.

    The setting `label_studio_url` is the address at which this backend reaches it, which need not
    be one for people.
    """
    aliases = [alias for alias in settings.label_studio_aliases if "://" in alias]
    address = urlsplit((aliases or [settings.label_studio_url])[0])
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl().rstrip("/")


def task_address(settings: Settings, project_id: int, task_id: int) -> str:
    """A task in Label Studio's Data Manager."""
    return f"{label_studio_address(settings)}/projects/{project_id}/data?task={task_id}"
