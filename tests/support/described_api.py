"""The API's description held against what the application answers, whichever test asks."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, Response, request, request_finished
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from backend.web.openapi import document, path_of

_ADDRESS = "urn:openapi"
_descriptions: list[dict[str, Any]] = []
_validators: dict[tuple[str | None, bool], Draft202012Validator] = {}


@contextmanager
def watched_answers() -> Iterator[None]:
    """Within the block every answer of every application has to be one that is described.

    Raises:
        AssertionError: at the end, with what was answered and is not described.
    """
    undescribed: list[str] = []

    def look(app: Flask, response: Response, **_: Any) -> None:
        if mistake := _mistake_in(app, response):
            undescribed.append(mistake)

    with request_finished.connected_to(look):
        yield
    assert not undescribed, "\n".join(undescribed)


def _mistake_in(app: Flask, response: Response) -> str | None:
    """What an answer has that the description has not; None where all is well."""
    if "medsam3" not in app.extensions:
        return None  # Another server in the test's process, such as the one for S3.
    rule = request.url_rule
    described = _description(app)
    if rule is None or path_of(rule) not in described["paths"]:
        return None  # A page of the console, or an address that does not exist.
    operation = described["paths"][path_of(rule)].get(request.method.lower())
    if operation is None:
        return None  # HEAD and OPTIONS, which Flask answers.
    asked = f"{request.method} {request.path} answered {response.status_code}"
    unknown = set(request.args) - {one["name"] for one in operation.get("parameters", ())}
    if unknown and response.status_code == 200:
        return f"{asked} with the undescribed arguments {sorted(unknown)}"
    shown = operation["responses"].get(str(response.status_code))
    if shown is None:
        return f"{asked}, which is not described"
    if "$ref" in shown:
        shown = described["components"]["responses"][shown["$ref"].rpartition("/")[2]]
    content = shown["content"].get(response.mimetype)
    if content is None:
        return f"{asked} with {response.mimetype}"
    if response.mimetype != "application/json":
        return None
    described_as = validator(app, content["schema"].get("$ref"), closed=True)
    for error in described_as.iter_errors(response.get_json()):
        return f"{asked}: {error.json_path} {error.message[:200]}"
    return None


def validator(app: Flask, reference: str | None, *, closed: bool) -> Draft202012Validator:
    """Of a component of the description; `closed`: no object may have more than is described."""
    key = reference, closed
    if key not in _validators:
        described = copy.deepcopy(_description(app))
        for schema in described["components"]["schemas"].values():
            if closed and "properties" in schema:
                schema.setdefault("additionalProperties", False)
        registry: Registry[Any] = Registry().with_resource(
            _ADDRESS, DRAFT202012.create_resource(described)
        )
        _validators[key] = Draft202012Validator(
            {"$ref": f"{_ADDRESS}{reference}"} if reference else {"type": "object"},
            registry=registry,
            format_checker=Draft202012Validator.FORMAT_CHECKER,
        )
    return _validators[key]


def _description(app: Flask) -> dict[str, Any]:
    """Of the first application, for all of them: each test has one, and they are alike."""
    if not _descriptions:
        _descriptions.append(document(app))
    return _descriptions[0]
