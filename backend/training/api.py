"""Endpoints of training: `/api/v1/training-runs`, and what a project chooses for itself.

What is refused on purpose answers 409 with the reason.
"""

from datetime import datetime
from typing import Any

from flask import Blueprint, abort
from pydantic import Field

from backend.errors import TrainingError
from backend.settings import Consensus, Strategy
from backend.tables import LARGEST_INTEGER, GateVerdict, Id
from backend.training import policies, runs
from backend.training.options import RunOptions
from backend.training.policies import PolicyChoices
from backend.training.tables import RunState, Stage, TrainingRun, Trigger
from backend.web.operations import PROJECT, Answer, operation
from backend.web.requests import (
    Body,
    checked_id,
    checked_row_id,
    query_project,
    read_body,
    services,
)

blueprint = Blueprint("training", __name__, url_prefix="/api/v1")


class TrainingWish(Body):
    """The project to train, and what shall differ from its policy and the settings."""

    project: Id
    steps: int | None = Field(None, ge=1, le=LARGEST_INTEGER)
    minutes: float | None = Field(None, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    seed: int | None = Field(None, ge=0, le=LARGEST_INTEGER)
    replay: bool | None = None
    consensus: Consensus | None = None
    auto_promote: bool | None = None
    adapter: bool | None = None


class RequestedRun(Answer):
    """The run, and whether it is new: a project has one run at a time."""

    id: str
    new: bool


class GateComparison(Answer):
    """Mean Dice of the candidate and of the version in service; 95 % of the difference."""

    images: int
    candidate: float
    incumbent: float
    difference: float
    low: float
    high: float


class ConceptComparison(GateComparison):
    """The same for one phrase, asked by text (T) or by text and boxes (T+I)."""

    concept: str
    mode: str


class ForeignNames(Answer):
    """How many names of things that are in no image got a mask, of how many that were asked."""

    asked: int
    candidate: int
    incumbent: int


class GateFigures(Answer):
    """What the gate compared; nothing without images."""

    overall: GateComparison | None
    concepts: list[ConceptComparison]
    foreign_names: ForeignNames | None = None
    as_trained: "AsTrained | None" = None


class AsTrained(Answer):
    """The refused version, where the one half of the way to it passed."""

    version: str
    reasons: list[str]
    figures: GateFigures


class GateAnswerShown(Answer):
    """The gate's verdict."""

    passed: bool
    reasons: list[str]
    figures: GateFigures


class TrainingRunAnswer(Answer):
    """A training run with its progress. docs/training.md explains the stages and why it ends."""

    id: str
    project: int
    trigger: Trigger
    state: RunState
    stage: Stage | None
    step: int
    steps: int
    loss: float | None
    validation_dice: float | None
    eta_s: float | None
    stopped: str | None
    attempts: int
    incumbent: str | None
    candidate: str | None
    options: RunOptions
    error: str | None
    gate: GateAnswerShown | None
    created_at: datetime
    finished_at: datetime | None


class TrainingRunsAnswer(Answer):
    """Runs, newest first."""

    training_runs: list[TrainingRunAnswer]


class PolicyAnswer(Answer):
    """A project's choices; null where the setting holds."""

    project: int
    after_corrections: int | None
    schedule: str | None
    strategy: Strategy | None
    consensus: Consensus | None
    auto_promote: bool | None
    agent: bool | None
    adapter: bool | None


@blueprint.errorhandler(TrainingError)
def _refused(error: TrainingError) -> tuple[dict[str, str], int]:
    return {"error": str(error)}, 409


@blueprint.post("/training-runs")
@operation(RequestedRun, status=201, or_status=200, body=TrainingWish, refuses=(409,))
def start() -> tuple[dict[str, Any], int]:
    """Ask for a run; 201 for a new one, 200 for one under way."""
    overrides = read_body(TrainingWish).model_dump()
    requested = runs.request_run(services(), overrides.pop("project"), Trigger.API, **overrides)
    return {"id": requested.run_id, "new": requested.new}, 201 if requested.new else 200


@blueprint.get("/training-runs")
@operation(TrainingRunsAnswer, query=(PROJECT,))
def listed() -> dict[str, Any]:
    """Runs with their progress, newest first; at most 50."""
    with services().database.reading() as session:
        listing = runs.list_runs(session, query_project())
        return {"training_runs": [_with_verdict(session, run) for run in listing]}


@blueprint.get("/training-runs/<run_id>")
@operation(TrainingRunAnswer)
def shown(run_id: str) -> dict[str, Any]:
    """One run with its progress and the gate's verdict."""
    checked_row_id(run_id, "training run")
    with services().database.reading() as session:
        run = session.get(TrainingRun, run_id) or abort(404, f"no training run {run_id}")
        return _with_verdict(session, run)


@blueprint.post("/training-runs/<run_id>/cancel")
@operation(TrainingRunAnswer, refuses=(409,))
def cancelled(run_id: str) -> dict[str, Any]:
    """End a run: at once while it waits, at its next step while it is at work."""
    return runs.summary(runs.cancel(services(), checked_row_id(run_id, "training run")))


@blueprint.put("/projects/<int:project_id>/training")
@operation(PolicyAnswer, body=PolicyChoices)
def set_policy(project_id: int) -> dict[str, Any]:
    """Set a project's own choices; null returns to the setting."""
    checked_id(project_id, "project")
    chosen = policies.choose(services(), project_id, read_body(PolicyChoices))
    return {"project": project_id, **chosen.model_dump()}


def _with_verdict(session: Any, run: TrainingRun) -> dict[str, Any]:
    return runs.summary(run, session.get(GateVerdict, run.id))
