"""The page *Audit*: who did what, and who was refused; newest first, a page at a time."""

from flask import render_template

from backend.people import audit as trail
from backend.web.console.access import blueprint
from backend.web.requests import query_number, services

PAGE_SIZE = 100


@blueprint.get("/audit")
def audit() -> str:
    """The audit trail. Query: `before`, the id of an entry to page on."""
    with services().database.reading() as session:
        rows = trail.entries(session, before=query_number("before"), limit=PAGE_SIZE + 1)
    older = rows[PAGE_SIZE - 1].id if len(rows) > PAGE_SIZE else None
    return render_template("console/audit.html", entries=rows[:PAGE_SIZE], older=older)
