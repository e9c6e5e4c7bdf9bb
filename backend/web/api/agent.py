"""`GET /api/v1/agent/runs...`: what agents did on tasks, with their transcripts."""

from typing import Any

from flask import Blueprint, Response, abort
from sqlalchemy import select

from backend.predictions.agent_transcripts import brief, runs_of, transcript
from backend.tables import AgentPicture, AgentRun
from backend.web.requests import checked_row_id, query_number, query_project, services

blueprint = Blueprint("agent", __name__, url_prefix="/api/v1/agent/runs")
PAGE_SIZE = 100


@blueprint.get("")
def runs() -> dict[str, Any]:
    """Runs, newest first, at most 100, without their transcripts. Query: `project`, `task`."""
    with services().database.reading() as session:
        listed = runs_of(session, query_project(), query_number("task"), PAGE_SIZE)
        return {"runs": [brief(run) for run in listed]}


@blueprint.get("/<run_id>")
def run(run_id: str) -> dict[str, Any]:
    """One run with its transcript: what was asked and answered, hashes instead of pictures."""
    checked_row_id(run_id, "agent's run")
    with services().database.reading() as session:
        return transcript(session.get(AgentRun, run_id) or abort(404, f"no run {run_id}"))


@blueprint.get("/<run_id>/pictures/<sha256>")
def picture(run_id: str, sha256: str) -> Response:
    """A picture that was sent, as JPEG, where the settings keep them."""
    key = (AgentPicture.run_id == checked_row_id(run_id, "agent's run"),)
    named = AgentPicture.sha256 == checked_row_id(sha256, "picture")
    with services().database.reading() as session:
        jpeg = session.scalar(select(AgentPicture.jpeg).where(*key, named))
    if jpeg is None:
        abort(404, "this picture was not kept; MEDSAM3_AGENT_KEEP_PICTURES keeps those to come")
    return Response(jpeg, mimetype="image/jpeg")
