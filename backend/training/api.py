"""Endpoints of the learning loop: `/api/v1/training-runs`, `/api/v1/models` and a project's policy.

What is refused on purpose answers 409 with the reason.
"""

from typing import Any

from flask import Blueprint, abort
from pydantic import Field, field_validator
from sqlalchemy import select

from backend.errors import ModelVersionError, TrainingError
from backend.models import promotion
from backend.models.versions import default_version
from backend.settings import Consensus, Strategy
from backend.tables import GateVerdict, ModelVersion, Project, Promotion, TrainingPolicy
from backend.training import runs
from backend.training.tables import TrainingRun, Trigger
from backend.web.requests import (
    Body,
    body_project,
    json_object,
    query_project,
    read_body,
    services,
)

blueprint = Blueprint("training", __name__, url_prefix="/api/v1")


class _RunRequest(Body):
    project: int
    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    seed: int | None = Field(None, ge=0)
    replay: bool | None = None
    consensus: Consensus | None = None
    auto_promote: bool | None = None


class _Policy(Body):
    after_corrections: int | None = Field(None, ge=0)
    schedule: str | None = None
    strategy: Strategy | None = None
    consensus: Consensus | None = None
    auto_promote: bool | None = None

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, value: str | None) -> str | None:
        from croniter import croniter

        if value and not croniter.is_valid(value):
            raise ValueError("this is no cron line such as 0 3 * * *")
        return value


@blueprint.errorhandler(ModelVersionError)
@blueprint.errorhandler(TrainingError)
def _refused(error: ModelVersionError | TrainingError) -> tuple[dict[str, str], int]:
    return {"error": str(error)}, 409


@blueprint.post("/training-runs")
def start() -> tuple[dict[str, Any], int]:
    """Ask for a run: `{"project": 7, "steps": 200, ...}`; 201 for a new one, 200 for one under way.

    Body: `project`, and optionally `steps`, `minutes`, `learning_rate`, `seed`, `replay`,
    `consensus`, `auto_promote`.
    """
    wanted = read_body(_RunRequest).model_dump()
    requested = runs.request_run(services(), wanted.pop("project"), Trigger.API, **wanted)
    return {"id": requested.run_id, "new": requested.new}, 201 if requested.new else 200


@blueprint.get("/training-runs")
def listed() -> dict[str, Any]:
    """Runs with their progress, newest first. Query: `project`."""
    with services().database.reading() as session:
        found = runs.list_runs(session, query_project())
        return {"training_runs": [_with_verdict(session, run) for run in found]}


@blueprint.get("/training-runs/<run_id>")
def shown(run_id: str) -> dict[str, Any]:
    """One run with its progress and the gate's verdict."""
    with services().database.reading() as session:
        run = session.get(TrainingRun, run_id) or abort(404, f"no training run {run_id}")
        return _with_verdict(session, run)


@blueprint.post("/training-runs/<run_id>/cancel")
def cancelled(run_id: str) -> dict[str, Any]:
    """End a run: at once while it waits, at its next step while it is at work."""
    return runs.summary(runs.cancel(services(), run_id))


@blueprint.get("/models")
def versions() -> dict[str, Any]:
    """Every version with its card, and which one serves which project."""
    with services().database.reading() as session:
        rows = session.scalars(select(ModelVersion).order_by(ModelVersion.id)).all()
        serving = {row.id: row.model_version for row in session.scalars(select(Project))}
    default = default_version(services())
    return {
        "default": default,
        "in_service": {str(id_): version or default for id_, version in serving.items()},
        "models": [
            {
                "version": row.version,
                "project": row.project_id,
                "parent": row.parent,
                "run": row.run_id,
                "card": row.card,
                "created_at": row.created_at.isoformat(),
            }
            for row in rows
        ],
    }


@blueprint.post("/models/promote")
def promoted() -> dict[str, Any]:
    """Put a version into service. Body: `project`, `version`, `force` (that is noted)."""
    body = json_object()
    made = promotion.promote(
        services(),
        body_project(body),
        str(body.get("version") or ""),
        force=body.get("force") is True,
    )
    return _promotion(made)


@blueprint.post("/models/rollback")
def rolled_back() -> dict[str, Any]:
    """Return to the version before. Body: `project`."""
    return _promotion(promotion.rollback(services(), body_project(json_object())))


@blueprint.put("/projects/<int:project_id>/training")
def set_policy(project_id: int) -> dict[str, Any]:
    """A project's own choices; null returns to the setting.

    Body: `after_corrections`, `schedule` (cron, UTC; empty: none), `strategy`, `consensus`,
    `auto_promote`.
    """
    changes = read_body(_Policy).model_dump(exclude_unset=True)
    with services().database.session() as session:
        row = session.get(TrainingPolicy, project_id) or TrainingPolicy(project_id=project_id)
        for name, value in changes.items():
            setattr(row, name, value)
        session.add(row)
        session.flush()
        return {
            "project": project_id,
            **{name: getattr(row, name) for name in _Policy.model_fields},
        }


def _with_verdict(session: Any, run: TrainingRun) -> dict[str, Any]:
    return runs.summary(run, session.get(GateVerdict, run.id))


def _promotion(made: Promotion) -> dict[str, Any]:
    return {
        "project": made.project_id,
        "version": made.version,
        "previous": made.previous,
        "kind": made.kind,
    }
