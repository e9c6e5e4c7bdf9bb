"""Endpoints of the learning loop: `/api/v1/training-runs`, `/api/v1/models` and a project's policy.

What is refused on purpose answers 409 with the reason.
"""

from typing import Any, TypeVar

from flask import Blueprint, abort, current_app, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from sqlalchemy import select

from backend.errors import ModelVersionError, TrainingError
from backend.models import promotion
from backend.models.versions import default_version
from backend.services import Services
from backend.settings import Consensus, Strategy
from backend.tables import GateVerdict, ModelVersion, Project, Promotion, TrainingPolicy
from backend.training import runs
from backend.training.tables import TrainingRun, Trigger

blueprint = Blueprint("training", __name__, url_prefix="/api/v1")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


_Sent = TypeVar("_Sent", bound=_Body)


class _RunRequest(_Body):
    project: int
    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    seed: int | None = Field(None, ge=0)
    replay: bool | None = None
    consensus: Consensus | None = None
    auto_promote: bool | None = None


class _Policy(_Body):
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
    wanted = _read(_RunRequest).model_dump()
    requested = runs.request_run(_services(), wanted.pop("project"), Trigger.API, **wanted)
    return {"id": requested.run_id, "new": requested.new}, 201 if requested.new else 200


@blueprint.get("/training-runs")
def listed() -> dict[str, Any]:
    """Runs with their progress, newest first. Query: `project`."""
    project_id = request.args.get("project", type=int)
    with _services().database.reading() as session:
        found = runs.list_runs(session, project_id)
        return {"training_runs": [_with_verdict(session, run) for run in found]}


@blueprint.get("/training-runs/<run_id>")
def shown(run_id: str) -> dict[str, Any]:
    """One run with its progress and the gate's verdict."""
    with _services().database.reading() as session:
        run = session.get(TrainingRun, run_id) or abort(404, f"no training run {run_id}")
        return _with_verdict(session, run)


@blueprint.post("/training-runs/<run_id>/cancel")
def cancelled(run_id: str) -> dict[str, Any]:
    """End a run: at once while it waits, at its next step while it is at work."""
    return runs.summary(runs.cancel(_services(), run_id))


@blueprint.get("/models")
def versions() -> dict[str, Any]:
    """Every version with its card, and which one serves which project."""
    services = _services()
    with services.database.reading() as session:
        rows = session.scalars(select(ModelVersion).order_by(ModelVersion.id)).all()
        serving = {row.id: row.model_version for row in session.scalars(select(Project))}
    default = default_version(services)
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
    body = _body()
    made = promotion.promote(
        _services(),
        _project(body),
        str(body.get("version") or ""),
        force=body.get("force") is True,
    )
    return _promotion(made)


@blueprint.post("/models/rollback")
def rolled_back() -> dict[str, Any]:
    """Return to the version before. Body: `project`."""
    return _promotion(promotion.rollback(_services(), _project(_body())))


@blueprint.put("/projects/<int:project_id>/training")
def set_policy(project_id: int) -> dict[str, Any]:
    """A project's own choices; null returns to the setting.

    Body: `after_corrections`, `schedule` (cron, UTC; empty: none), `strategy`, `consensus`,
    `auto_promote`.
    """
    changes = _read(_Policy).model_dump(exclude_unset=True)
    with _services().database.session() as session:
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


def _project(body: dict[str, Any]) -> int:
    found = body.get("project")
    if not isinstance(found, int) or isinstance(found, bool):
        abort(400, "project must be Label Studio's project id, a number")
    return found


def _read(kind: type[_Sent]) -> _Sent:
    try:
        return kind.model_validate(_body())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        abort(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def _body() -> dict[str, Any]:
    found = request.get_json(force=True, silent=True)
    if not isinstance(found, dict):
        abort(400, "the body must be a JSON object")
    return found


def _services() -> Services:
    found: Services = current_app.extensions["medsam3"]
    return found
