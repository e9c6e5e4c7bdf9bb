"""Label Studio's contract with an ML backend: the endpoints that Label Studio itself calls."""

from typing import Annotated, Any

from flask import Blueprint, Response
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
)

from backend.corrections import events
from backend.label_studio.projects import project_number
from backend.models import versions as model_versions
from backend.predictions.requests import PredictRequest
from backend.predictions.requests import predict as run
from backend.tables import Id
from backend.web.metrics import render
from backend.web.operations import Answer, Media, operation
from backend.web.requests import read_body, services

blueprint = Blueprint("contract", __name__)

# As Label Studio writes it, `"<id>.<created>"`, read as the id.
ProjectUid = Annotated[
    Id,
    BeforeValidator(project_number),
    WithJsonSchema(
        {"type": ["string", "integer"], "description": "The id, or `<id>.<created>`."},
        mode="validation",
    ),
]


class _Sent(BaseModel):
    """A body of Label Studio's: fields of newer versions are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class SetupBody(_Sent):
    """A project that gets its predictions here; `schema` is its labeling config."""

    project: ProjectUid
    config: str | None = Field(None, alias="schema")


class TaskBody(_Sent):
    """A task: its id, and the data with its images."""

    id: Id | None = None
    project: Id | None = None
    data: dict[str, Any]


class PredictParams(_Sent):
    """`context` holds what an annotator drew with a smart tool: `{"result": [...]}`."""

    context: dict[str, Any] | None = None

    @field_validator("context")
    @classmethod
    def _holds_regions(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        result = (value or {}).get("result") or []
        if not isinstance(result, list) or not all(isinstance(one, dict) for one in result):
            raise ValueError("`result` must be a list of regions")
        return value


class PredictBody(_Sent):
    """The tasks to predict, and the project's labeling config."""

    tasks: list[TaskBody]
    project: ProjectUid | None = None
    label_config: str | None = None
    params: PredictParams | None = None


class HealthAnswer(Answer):
    """The process is up."""

    status: str
    model_class: str


class SetupAnswer(Answer):
    """The version of the predictions that the project gets."""

    model_version: str


class TaskAnswer(Answer):
    """A task's prediction: Label Studio's regions, and the confidence of all of it."""

    model_version: str
    score: float | None
    result: list[dict[str, Any]]


class TaskAnswers(Answer):
    """A prediction for each task in their order; or none, and why."""

    results: list[TaskAnswer]
    errors: list[str] = Field(default_factory=list)


class WebhookAnswer(Answer):
    """The event under which the webhook is stored."""

    status: str
    event: str


class VersionsAnswer(Answer):
    """Versions, oldest first."""

    versions: list[str]


@blueprint.get("/", endpoint="root")
@blueprint.get("/health")
@operation(HealthAnswer)
def health() -> dict[str, str]:
    """Whether this process is up: nothing is looked up, Label Studio waits one second."""
    return {"status": "UP", "model_class": "MedSAM3Backend"}


@blueprint.post("/setup")
@operation(SetupAnswer, body=SetupBody)
def setup() -> dict[str, str]:
    """The project's model version, never null; remembers the project's labeling config."""
    body = read_body(SetupBody)
    version = model_versions.register_project(services(), body.project, body.config or "")
    return {"model_version": version}


@blueprint.post("/predict")
@operation(TaskAnswers, body=PredictBody)
def predict() -> dict[str, Any]:
    """One prediction per task, or an empty list: see `backend.predictions.requests`."""
    body = read_body(PredictBody)
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
@operation(WebhookAnswer, status=201, body=events.WebhookEvent)
def webhook() -> tuple[dict[str, str], int]:
    """Store the event and enqueue it; Label Studio waits one second and does not retry."""
    event_id = events.receive(services(), read_body(events.WebhookEvent))
    return {"status": "stored", "event": event_id}, 201


@blueprint.get("/versions")
@operation(VersionsAnswer)
def versions() -> dict[str, list[str]]:
    """Every model version that predictions may carry."""
    return {"versions": model_versions.all_versions(services())}


@blueprint.get("/metrics")
@operation(Media("text/plain", text=True))
def metrics() -> Response:
    """Prometheus text format; docs/metrics.md lists every metric."""
    text, content_type = render(services())
    return Response(text, content_type=content_type)
