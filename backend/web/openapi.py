"""`GET /api/v1/openapi.json`: the API in the words of OpenAPI 3.1, for programs and for people.

It is made from what the application has: the paths of its URL map, the endpoints' docstrings, and
the models of their bodies and answers. docs/api.md is made from it. A framework that reads bodies
itself would pass by the limits of `backend.web.requests`, so it is built here.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from flask import Blueprint, Flask, current_app
from pydantic import TypeAdapter
from werkzeug.routing import Rule

from backend.services import WEBHOOK_SECRET_HEADER
from backend.tables import LARGEST_INTEGER
from backend.web.auth import OPEN_PATHS, READING, WEBHOOK_PATH, is_console
from backend.web.operations import (
    ApiOperation,
    ErrorAnswer,
    Media,
    QueryParameter,
    operation,
    operation_of,
)

blueprint = Blueprint("openapi", __name__, url_prefix="/api/v1")
_CACHE = "medsam3_openapi"
_JSON = "application/json"
_PARAMETER = re.compile(r"<(?:(?P<converter>\w+):)?(?P<name>\w+)>")
# A line of a docstring's section `Attributes:` with which one or several begin.
_ATTRIBUTE = re.compile(r"    (?P<names>\w+(?:, \w+)*): (?P<meaning>.*)")
# Any of these opens an endpoint.
_SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "The API token, or a person's own (`medsam3 tokens`).",
    },
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "User and password as Label Studio sends them, or a name and its token.",
    },
    "webhook": {
        "type": "apiKey",
        "in": "header",
        "name": WEBHOOK_SECRET_HEADER,
        "description": "The secret of Label Studio's webhook, which opens `/webhook` alone.",
    },
}
_REFUSALS: dict[int, str] = {
    400: "The path, the query or the body is wrong: the sentence names what.",
    401: "Credentials are missing or wrong.",
    403: "A viewer's token, or a page of another site: nothing was changed.",
    404: "There is nothing of that name.",
    409: "Refused on purpose: the sentence says why.",
    413: "The body is too large, or holds too much.",
    415: "The body is not declared as JSON.",
    503: "The database or Redis does not answer: come back after `Retry-After` seconds.",
}


@blueprint.get("/openapi.json")
@operation(dict[str, Any])
def described() -> dict[str, Any]:
    """The description of this API, as OpenAPI 3.1 has it."""
    return document(current_app)


def document(app: Flask) -> dict[str, Any]:
    """The description of an application: an OpenAPI document, to be read only."""
    if _CACHE not in app.extensions:
        app.extensions[_CACHE] = _made(app)
    made: dict[str, Any] = app.extensions[_CACHE]
    return made


def rules(app: Flask) -> Iterator[tuple[str, Rule]]:
    """Every method and rule that programs may call, by path: not the console, which is pages."""
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        if rule.endpoint.endswith("static") or is_console(rule.rule):
            continue
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            yield method, rule


def path_of(rule: Rule) -> str:
    """A rule as OpenAPI writes it: `/api/v1/training-runs/{run_id}`."""
    return _PARAMETER.sub(r"{\g<name>}", rule.rule)


def _made(app: Flask) -> dict[str, Any]:
    listed = [(method, rule, app.view_functions[rule.endpoint]) for method, rule in rules(app)]
    tags = sorted({_tag(rule) for _, rule, _ in listed})
    schemas, components = _schemas([operation_of(view) for _, _, view in listed])
    paths: dict[str, dict[str, Any]] = {}
    for method, rule, view in listed:
        shown = _operation(method, rule, inspect.getdoc(view) or "", operation_of(view), schemas)
        paths.setdefault(path_of(rule), {})[method.lower()] = shown
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "MedSAM-3 for Label Studio",
            "version": version("medsam3-label-studio"),
            "description": "What Label Studio calls, and `/api/v1` for programs of your own.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        # Where it is served from, whatever the address.
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in tags],
        "security": [{"bearer": []}, {"basic": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": _refusal_responses(schemas[ErrorAnswer, "serialization"]),
            "securitySchemes": _SCHEMES,
        },
    }


def _tag(rule: Rule) -> str:
    """The part of the API that a rule belongs to."""
    return rule.endpoint.partition(".")[0]


def _refusal_responses(schema: dict[str, Any]) -> dict[str, Any]:
    """What operations refer to, by name; see `_refusals`."""
    responses: dict[str, Any] = {
        f"Refused{status}": {"description": meaning, "content": {_JSON: {"schema": schema}}}
        for status, meaning in _REFUSALS.items()
    }
    challenge = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    responses["Refused401"]["headers"] = challenge
    responses["Refused503"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return responses


def _schemas(operations: list[ApiOperation]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """The JSON schema of every body and answer by (type, mode), and what they refer to."""
    inputs: list[Any] = [(ErrorAnswer, "serialization", TypeAdapter(ErrorAnswer))]
    for said in operations:
        if said.body is not None:
            inputs.append((said.body, "validation", TypeAdapter(said.body)))
        for answer in said.answers.values():
            if not isinstance(answer, Media):
                inputs.append((answer, "serialization", TypeAdapter(answer)))
    schemas, shared = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    components: dict[str, Any] = shared["$defs"]
    for component in components.values():
        _give_meanings(component)
    return schemas, components


def _give_meanings(schema: dict[str, Any]) -> None:
    """Move what a docstring says of attributes to the properties of that name."""
    text, _, attributes = schema.get("description", "").partition("\n\nAttributes:\n")
    meanings: list[list[str]] = []
    rest: list[str] = []
    for line in attributes.splitlines():
        if named := _ATTRIBUTE.fullmatch(line):
            meanings.append([named["names"], named["meaning"]])
        elif line.startswith(" ") and meanings:
            meanings[-1].append(line.strip())
        else:
            rest.append(line)
    for names, *words in meanings:
        several = [f"`{name}`" for name in names.split(", ")]
        # What is said of several at once names them in its order.
        meaning = " ".join([*([f"{', '.join(several)}:"] if several[1:] else []), *words])
        for name in names.split(", "):
            if name in schema.get("properties", {}):
                schema["properties"][name].setdefault("description", meaning)
    if meanings:
        schema["description"] = "\n".join([text, *rest]).strip()


def _operation(
    method: str, rule: Rule, text: str, said: ApiOperation, schemas: Mapping[Any, Any]
) -> dict[str, Any]:
    """One operation object."""
    summary, _, description = text.partition("\n\n")
    shown: dict[str, Any] = {
        "operationId": rule.endpoint.replace(".", "_"),
        "tags": [_tag(rule)],
        "summary": " ".join(summary.split()),
    }
    if description:
        shown["description"] = description
    if parameters := [*_path_parameters(rule), *map(_query_parameter, said.query)]:
        shown["parameters"] = parameters
    if said.body is not None:
        content = {_JSON: {"schema": schemas[said.body, "validation"]}}
        shown["requestBody"] = {"required": True, "content": content}
    responses = {
        status: {"description": HTTPStatus(status).phrase, "content": _content(answer, schemas)}
        for status, answer in said.answers.items()
    }
    for status in _refusals(method, rule, said):
        responses[status] = {"$ref": f"#/components/responses/Refused{status}"}
    shown["responses"] = {str(status): responses[status] for status in sorted(responses)}
    if rule.rule in OPEN_PATHS:
        shown["security"] = []
    elif rule.rule == WEBHOOK_PATH:
        shown["security"] = [{name: []} for name in _SCHEMES]
    return shown


def _refusals(method: str, rule: Rule, said: ApiOperation) -> set[int]:
    """The statuses with which an operation may be refused."""
    refused = set(said.refusals)
    if rule.rule not in OPEN_PATHS:
        refused |= {401, 503}
    if method not in READING:
        refused |= {403, 415}
    if said.body is not None:
        refused |= {400, 413}
    if said.query or any(name == "integer" for name in _kinds(rule).values()):
        refused.add(400)
    if "string" in _kinds(rule).values():
        refused.add(404)
    return refused


def _kinds(rule: Rule) -> dict[str, str]:
    """The JSON type of each variable part of a path."""
    kinds = {None: "string", "int": "integer"}
    return {match["name"]: kinds[match["converter"]] for match in _PARAMETER.finditer(rule.rule)}


def _path_parameters(rule: Rule) -> list[dict[str, Any]]:
    schemas: dict[str, dict[str, Any]] = {
        "string": {"type": "string"},
        "integer": {"type": "integer", "minimum": 0, "maximum": LARGEST_INTEGER},
    }
    return [
        {"name": name, "in": "path", "required": True, "schema": schemas[kind]}
        for name, kind in _kinds(rule).items()
    ]


def _query_parameter(parameter: QueryParameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": "query",
        "required": False,
        "description": parameter.meaning,
        "schema": dict(parameter.schema),
    }


def _content(answer: Any, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    if isinstance(answer, Media):
        return {answer.content_type: {"schema": {"type": "string"}} if answer.text else {}}
    return {_JSON: {"schema": schemas[answer, "serialization"]}}
