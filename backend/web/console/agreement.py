"""The page *Agreement*: how alike annotators of the same tasks draw, and where they do not.

Comparing masks takes longer than a page may: an ingest worker does it, and the page shows what the
worker found last.
"""

from contextlib import suppress

from flask import render_template, request

from backend.corrections.agreement import current_stamp
from backend.corrections.tables import AgreementReport
from backend.errors import QueueError
from backend.processes.queues import Handler, QueueName, enqueue
from backend.web.console.access import blueprint
from backend.web.console.shown import known_projects, task_address
from backend.web.requests import checked_id, services


@blueprint.get("/agreement")
@blueprint.get("/agreement/<int:project_id>")
def agreement(project_id: int | None = None) -> str:
    """Agreement in one project: the named one, else the first."""
    opened = services()
    with opened.database.reading() as session:
        known = known_projects(session)
        if project_id is None:
            project_id = known[0][0] if known else None
        else:
            checked_id(project_id, "project")
        row = session.get(AgreementReport, project_id) if project_id is not None else None
        stamp = current_stamp(session, project_id) if project_id is not None else ""
    is_stale = row is None or row.stamp != stamp
    if is_stale and project_id is not None:
        # Redis is away: a later look asks again.
        with suppress(QueueError):
            enqueue(
                opened.redis,
                QueueName.INGEST,
                Handler.AGREEMENT,
                [str(project_id)],
                job_id=f"agreement-{project_id}-{stamp}",
            )
    template = "_agreement.html" if "fragment" in request.args else "agreement.html"
    return render_template(
        f"console/{template}",
        report=row.report if row else None,
        computed_at=row.computed_at if row else None,
        is_stale=is_stale,
        known=known,
        chosen=project_id,
        address_of=lambda task_id: task_address(opened.settings, project_id or 0, task_id),
    )
