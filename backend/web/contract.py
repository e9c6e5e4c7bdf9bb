"""Label Studio's contract with an ML backend: the endpoints that Label Studio itself calls."""

from typing import Annotated, Any

from flask import Blueprint, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from backend.corrections import events
from backend.label_studio.projects import project_number
from backend.models import versions as model_versions
from backend.predictions.requests import PredictRequest
from backend.predictions.requests import predict as run
from backend.tables import Id
from backend.web.metrics import render
from backend.web.requests import read_body, services

blueprint = Blueprint("contract", __name__)

# As Label Studio writes it, `"<id>.<created>"`, read as the id.
ProjectUid = Annotated[Id, BeforeValidator(project_number)]


class _Sent(BaseModel):
    """A body of Label Studio's: fields of newer versions are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Setup(_Sent):
    project: ProjectUid
    config: str | None = Field(None, alias="schema")


class _Task(_Sent):
    id: Id | None = None
    project: Id | None = None
    data: dict[str, Any]


class _Params(_Sent):
    context: dict[str, Any] | None = None

    @field_validator("context")
    @classmethod
    def _holds_regions(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        result = (value or {}).get("result") or []
        if not isinstance(result, list) or not all(isinstance(one, dict) for one in result):
            raise ValueError("`result` must be a list of regions")
        return value


class _Predict(_Sent):
    tasks: list[_Task]
    project: ProjectUid | None = None
    label_config: str | None = None
    params: _Params | None = None


@blueprint.get("/")
@blueprint.get("/health")
def health() -> dict[str, str]:
    """Label Studio asks often and waits one second: nothing is looked up here."""
    return {"status": "UP", "model_class": "MedSAM3Backend"}


@blueprint.post("/setup")
def setup() -> dict[str, str]:
    """The project's model version, never null; remembers the project's labeling config."""
    body = read_body(_Setup)
    version = model_versions.register_project(services(), body.project, body.config or "")
    return {"model_version": version}


@blueprint.post("/predict")
def predict() -> dict[str, Any]:
    """One prediction per task, or an empty list: see `backend.predictions.requests`."""
    body = read_body(_Predict)
    project = body.project or (body.tasks[0].project if body.tasks else None) or 0
    answer = run(
        services(),
        PredictRequest(
            [task.model_dump() for task in body.tasks],
            project,
            body.label_config or "",
            body.params.context if body.params else None,
        ),
    )
    return {"results": answer.predictions, **({"errors": answer.errors} if answer.errors else {})}


@blueprint.post("/webhook")
def webhook() -> tuple[dict[str, str], int]:
    """Store the event and enqueue it; Label Studio waits one second and does not retry."""
    event_id = events.receive(services(), read_body(events.WebhookEvent))
    return {"status": "stored", "event": event_id}, 201


@blueprint.get("/versions")
def versions() -> dict[str, list[str]]:
    """Every model version that predictions may carry."""
    return {"versions": model_versions.all_versions(services())}


@blueprint.get("/metrics")
def metrics() -> Response:
    """Prometheus text format; docs/metrics.md lists every metric."""
    text, content_type = render(services())
    return Response(text, content_type=content_type)
