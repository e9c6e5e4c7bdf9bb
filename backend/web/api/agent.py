"""`GET /api/v1/agent/runs...`: what agents did on tasks, with their transcripts."""

from datetime import datetime
from typing import Any

from flask import Blueprint, Response, abort

from backend.predictions.agent_transcripts import brief, picture_of, runs_of, transcript
from backend.tables import AgentRun, SuggestionState
from backend.web.operations import PROJECT, TASK, Answer, Media, operation
from backend.web.requests import checked_row_id, query_number, query_project, services

blueprint = Blueprint("agent", __name__, url_prefix="/api/v1/agent/runs")
PAGE_SIZE = 100


class AgentEnding(Answer):
    """How the agent's work on one label of one page ended."""

    label: str
    page: int | None
    ending: str
    reason: str


class AgentOutcome(AgentEnding):
    """The same with its rounds, and whether the answer is the agent's."""

    by_agent: bool
    rounds: int
    log: list[str]


class AskedQuestion(Answer):
    """What the agent was asked: a label on a page, and how sure the model was of its own answer."""

    label: str
    phrase: str
    image: str
    page: int | None
    threshold: float | None
    confidence: float


class RecordedExchange(Answer):
    """One request to the language model and its answer; pictures by their SHA-256."""

    question: int
    action: dict[str, Any] | None
    text: str
    pictures: list[str]
    answer: str
    error: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class AgentRunAnswer(Answer):
    """An agent at work on one task, and what it took."""

    id: str
    project: int
    task: int
    model_version: str
    state: SuggestionState
    instruction: str
    endings: list[AgentEnding]
    changed_prediction: bool
    requests: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    cost: float | None
    error: str | None
    created_at: datetime
    finished_at: datetime | None


class AgentRunsAnswer(Answer):
    """Runs, newest first."""

    runs: list[AgentRunAnswer]


class TranscriptAnswer(AgentRunAnswer):
    """A run with all that was asked and answered."""

    images: list[str]
    questions: list[AskedQuestion]
    outcomes: list[AgentOutcome]
    exchanges: list[RecordedExchange]


@blueprint.get("")
@operation(AgentRunsAnswer, query=(PROJECT, TASK))
def runs() -> dict[str, Any]:
    """Runs, newest first, at most 100, without their transcripts."""
    with services().database.reading() as session:
        listed = runs_of(session, query_project(), query_number("task"), PAGE_SIZE)
        return {"runs": [brief(run) for run in listed]}


@blueprint.get("/<run_id>")
@operation(TranscriptAnswer)
def run(run_id: str) -> dict[str, Any]:
    """One run with its transcript: what was asked and answered, hashes instead of pictures."""
    checked_row_id(run_id, "agent's run")
    with services().database.reading() as session:
        return transcript(session.get(AgentRun, run_id) or abort(404, f"no run {run_id}"))


@blueprint.get("/<run_id>/pictures/<sha256>")
@operation(Media("image/jpeg", text=False))
def picture(run_id: str, sha256: str) -> Response:
    """A picture that was sent, as JPEG, where the settings keep them."""
    checked_row_id(run_id, "agent's run")
    with services().database.reading() as session:
        jpeg = picture_of(session, run_id, checked_row_id(sha256, "picture"))
    if jpeg is None:
        abort(404, "this picture was not kept; MEDSAM3_AGENT_KEEP_PICTURES keeps those to come")
    return Response(jpeg, mimetype="image/jpeg")
