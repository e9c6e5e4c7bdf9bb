"""Endpoints of training: `/api/v1/training-runs`, and what a project chooses for itself.

What is refused on purpose answers 409 with the reason.
"""

from typing import Any

from flask import Blueprint, abort
from pydantic import Field

from backend.errors import TrainingError
from backend.settings import Consensus
from backend.tables import LARGEST_INTEGER, GateVerdict, Id
from backend.training import policies, runs
from backend.training.policies import PolicyChoices
from backend.training.tables import TrainingRun, Trigger
from backend.web.requests import (
    Body,
    checked_id,
    checked_row_id,
    query_project,
    read_body,
    services,
)

blueprint = Blueprint("training", __name__, url_prefix="/api/v1")


class _RunRequest(Body):
    project: Id
    steps: int | None = Field(None, ge=1, le=LARGEST_INTEGER)
    minutes: float | None = Field(None, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    seed: int | None = Field(None, ge=0, le=LARGEST_INTEGER)
    replay: bool | None = None
    consensus: Consensus | None = None
    auto_promote: bool | None = None


@blueprint.errorhandler(TrainingError)
def _refused(error: TrainingError) -> tuple[dict[str, str], int]:
    return {"error": str(error)}, 409


@blueprint.post("/training-runs")
def start() -> tuple[dict[str, Any], int]:
    """Ask for a run: `{"project": 7, "steps": 200, ...}`; 201 for a new one, 200 for one under way.

    Body: `project`, and optionally `steps`, `minutes`, `learning_rate`, `seed`, `replay`,
    `consensus`, `auto_promote`.
    """
    overrides = read_body(_RunRequest).model_dump()
    requested = runs.request_run(services(), overrides.pop("project"), Trigger.API, **overrides)
    return {"id": requested.run_id, "new": requested.new}, 201 if requested.new else 200


@blueprint.get("/training-runs")
def listed() -> dict[str, Any]:
    """Runs with their progress, newest first. Query: `project`."""
    with services().database.reading() as session:
        listing = runs.list_runs(session, query_project())
        return {"training_runs": [_with_verdict(session, run) for run in listing]}


@blueprint.get("/training-runs/<run_id>")
def shown(run_id: str) -> dict[str, Any]:
    """One run with its progress and the gate's verdict."""
    checked_row_id(run_id, "training run")
    with services().database.reading() as session:
        run = session.get(TrainingRun, run_id) or abort(404, f"no training run {run_id}")
        return _with_verdict(session, run)


@blueprint.post("/training-runs/<run_id>/cancel")
def cancelled(run_id: str) -> dict[str, Any]:
    """End a run: at once while it waits, at its next step while it is at work."""
    return runs.summary(runs.cancel(services(), checked_row_id(run_id, "training run")))


@blueprint.put("/projects/<int:project_id>/training")
def set_policy(project_id: int) -> dict[str, Any]:
    """A project's own choices; null returns to the setting.

    Body: `after_corrections`, `schedule` (cron, UTC; empty: none), `strategy`, `consensus`,
    `auto_promote`, `agent` (whether an agent looks at uncertain tasks, for all labels or for none;
    null: for the labels that say `mode="agent"`).
    """
    checked_id(project_id, "project")
    chosen = policies.choose(services(), project_id, read_body(PolicyChoices))
    return {"project": project_id, **chosen.model_dump()}


def _with_verdict(session: Any, run: TrainingRun) -> dict[str, Any]:
    return runs.summary(run, session.get(GateVerdict, run.id))
