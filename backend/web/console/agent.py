"""The page *Agent*: what language models were asked about tasks, and what they answered and did.

What a language model wrote is shown as text, never as HTML.
"""

from dataclasses import dataclass, field
from typing import Any

from flask import abort, render_template, request
from sqlalchemy import select
from werkzeug.wrappers import Response

from backend.predictions.agent_transcripts import runs_of, transcript
from backend.tables import AgentPicture, AgentRun
from backend.web.api.agent import picture
from backend.web.console.access import blueprint
from backend.web.console.shown import task_address
from backend.web.requests import checked_row_id, query_number, services

MOST_RUNS = 100


@dataclass(frozen=True)
class AgentRunShown:
    """A run, and where its task is in Label Studio; on the run's own page the rest.

    Attributes:
        transcript: see `agent_transcripts.transcript`.
        kept: the pictures that can be shown, by SHA-256: none where the gallery is off.
    """

    row: AgentRun
    address: str
    transcript: dict[str, Any] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()


@blueprint.get("/agent")
def agent() -> str:
    """The newest runs. Query: `task`, the id of the only one that counts."""
    opened, task_id = services(), query_number("task")
    with opened.database.reading() as session:
        runs = [
            AgentRunShown(run, task_address(opened.settings, run.project_id, run.task_id))
            for run in runs_of(session, None, task_id, MOST_RUNS)
        ]
    return render_template("console/agent.html", runs=runs, task_id=task_id)


@blueprint.get("/agent/<run_id>")
def agent_run(run_id: str) -> str:
    """One run with its transcript, and the pictures that were sent where they were kept."""
    checked_row_id(run_id, "agent's run")
    opened = services()
    with opened.database.reading() as session:
        row = session.get(AgentRun, run_id) or abort(404, "There is no such run of an agent.")
        kept = session.scalars(select(AgentPicture.sha256).where(AgentPicture.run_id == run_id))
        shown = frozenset(kept) if opened.settings.console_gallery else frozenset()
        address = task_address(opened.settings, row.project_id, row.task_id)
        run = AgentRunShown(row, address, transcript(row), shown)
    template = "_agent_run.html" if "fragment" in request.args else "agent_run.html"
    return render_template(f"console/{template}", run=run)


@blueprint.get("/agent/<run_id>/pictures/<sha256>")
def agent_picture(run_id: str, sha256: str) -> Response:
    """A picture that was sent; 404 where the gallery is off or it was not kept."""
    if not services().settings.console_gallery:
        abort(404, "The gallery is off.")
    return picture(run_id, sha256)
