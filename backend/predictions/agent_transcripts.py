"""Transcripts: what agents did on tasks, read from their rows for programs and people.

What a language model wrote is data: nothing of it is carried out or shown as HTML.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.tables import AgentPicture, AgentRun


def runs_of(
    session: Session, project_id: int | None, task_id: int | None, limit: int
) -> list[AgentRun]:
    """Runs, newest first; None stands for all projects, and all tasks."""
    query = select(AgentRun).order_by(AgentRun.created_at.desc(), AgentRun.id).limit(limit)
    if project_id is not None:
        query = query.where(AgentRun.project_id == project_id)
    if task_id is not None:
        query = query.where(AgentRun.task_id == task_id)
    return list(session.scalars(query))


def brief(run: AgentRun) -> dict[str, Any]:
    """What became of a run, and what it took."""
    return {
        "id": run.id,
        "project": run.project_id,
        "task": run.task_id,
        "model_version": run.model_version,
        "state": run.state,
        "instruction": run.instruction,
        "endings": [
            {key: outcome[key] for key in ("label", "page", "ending", "reason")}
            for outcome in run.outcomes
        ],
        "changed_prediction": run.prediction_id is not None,
        "requests": run.requests,
        "prompt_tokens": run.prompt_tokens,
        "completion_tokens": run.completion_tokens,
        "seconds": round(run.seconds, 3),
        "cost": run.cost,
        "error": run.error,
        "created_at": run.created_at.isoformat(),
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
    }


def transcript(run: AgentRun) -> dict[str, Any]:
    """A run with its questions, what was asked and answered, and hashes instead of pixels."""
    return {
        **brief(run),
        "images": run.image_hashes,
        "questions": [_without(question, "reference") for question in run.questions],
        "outcomes": [_without(outcome, "masks") for outcome in run.outcomes],
        "exchanges": run.exchanges,
    }


def picture_of(session: Session, run_id: str, sha256: str) -> bytes | None:
    """A picture that a run sent, as JPEG; None: the settings did not keep it."""
    query = select(AgentPicture.jpeg).where(AgentPicture.run_id == run_id)
    return session.scalar(query.where(AgentPicture.sha256 == sha256))


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}
