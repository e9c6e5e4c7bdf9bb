"""Label Studio's contract with an ML backend: the endpoints that Label Studio itself calls."""

from typing import Any

from flask import Blueprint, Response, abort

from backend.corrections import events
from backend.model import MedSAM3Backend
from backend.models import versions as model_versions
from backend.web.metrics import render
from backend.web.requests import json_object, services

blueprint = Blueprint("contract", __name__)


@blueprint.get("/")
@blueprint.get("/health")
def health() -> dict[str, str]:
    """Label Studio asks often and waits one second: nothing is looked up here."""
    return {"status": "UP", "model_class": MedSAM3Backend.__name__}


@blueprint.post("/setup")
def setup() -> dict[str, str]:
    """The project's model version, never null; remembers the project's labeling config."""
    body = json_object()
    project_id = project_number(body.get("project"))
    schema = body.get("schema")
    return {
        "model_version": model_versions.register_project(
            services(), project_id, schema if isinstance(schema, str) else ""
        )
    }


@blueprint.post("/predict")
def predict() -> dict[str, Any]:
    """One prediction per task, or an empty list: see `backend.predictions.requests`."""
    body = json_object()
    tasks = body.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        abort(400, "`tasks` must be a list of Label Studio tasks")
    params = body.get("params")
    context = params.get("context") if isinstance(params, dict) else None
    if context is not None and not isinstance(context, dict):
        abort(400, "`params.context` must be an object or null")
    backend = MedSAM3Backend(
        label_config=str(body.get("label_config") or ""),
        project_id=str(body.get("project") or ""),
        services=services(),
    )
    answer = backend.answer(tasks, context)
    return {"results": answer.predictions, **({"errors": answer.errors} if answer.errors else {})}


@blueprint.post("/webhook")
def webhook() -> tuple[dict[str, str], int]:
    """Store the event and enqueue it; Label Studio waits one second and does not retry."""
    event_id = events.receive(services(), json_object())
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


def project_number(project: object) -> int:
    """Label Studio's `"<id>.<created>"` (or a bare id) as the id; 0 where none is sent."""
    head = str(project or "").partition(".")[0]
    return int(head) if head.isdecimal() else 0
