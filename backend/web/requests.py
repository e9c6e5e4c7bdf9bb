"""What every endpoint reads: the running application's services, and what a caller sent."""

from typing import Any, TypeVar

from flask import abort, current_app, request
from pydantic import BaseModel, ConfigDict, ValidationError

from backend.services import Services


class Body(BaseModel):
    """A JSON body of an endpoint of ours: unknown fields and other types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


Sent = TypeVar("Sent", bound=Body)


def services() -> Services:
    """The services that `create_app` put into the running application."""
    opened: Services = current_app.extensions["medsam3"]
    return opened


def json_object() -> dict[str, Any]:
    """The request's body; anything but a JSON object ends the request with 400."""
    body = request.get_json(force=True, silent=True)
    if not isinstance(body, dict):
        abort(400, "the body must be a JSON object")
    return body


def read_body(model: type[Sent]) -> Sent:
    """The request's body as a model; 400 names the first field that does not fit."""
    try:
        return model.model_validate(json_object())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        abort(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def body_project(body: dict[str, Any]) -> int:
    """The field `project` of a body; 400 where it is no number."""
    project = body.get("project")
    if not isinstance(project, int) or isinstance(project, bool):
        abort(400, "project must be Label Studio's project id, a number")
    return project


def query_project() -> int | None:
    """The query's `project`; None (all projects) where it is missing or no number."""
    return request.args.get("project", type=int)


def query_choice(name: str, choices: tuple[str, ...]) -> str | None:
    """A query argument that takes one of `choices`; 400 where it is something else."""
    value = request.args.get(name)
    if value is not None and value not in choices:
        abort(400, f"{name} is one of {', '.join(choices)}")
    return value
