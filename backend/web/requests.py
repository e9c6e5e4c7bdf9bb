"""What every endpoint reads: the running application's services, and what a caller sent.

Nothing passes this door that a database or a worker could not take: see `read_body`.
"""

import json
import math
import re
import threading
from contextlib import nullcontext
from typing import Any, TypeVar

from flask import abort, current_app, request
from pydantic import BaseModel, ConfigDict, ValidationError

from backend.services import Services
from backend.tables import LARGEST_INTEGER

# Python needs up to 230 bytes for each `[]` or `{"a":1}` of a body, 36 for each number.
MOST_CONTAINERS = 500_000
MOST_VALUES = 16_000_000
DEEPEST = 64
# Bodies above this size become objects one after another: many at once would fill the memory.
_LARGE_BYTES = 2**20
_one_large_body = threading.Lock()
_NUMBER = re.compile("[0-9]{1,10}")


class Body(BaseModel):
    """A JSON body of an endpoint of ours: unknown fields and other types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Sent = TypeVar("Sent", bound=BaseModel)


def services() -> Services:
    """The services that `create_app` put into the running application."""
    opened: Services = current_app.extensions["medsam3"]
    return opened


def read_body(model: type[Sent]) -> Sent:
    """The request's body as a model.

    The request ends with 415 where the body is not declared as JSON (a page of another site can
    send any other type with its visitor's credentials), with 413 where it is too much, and with
    400 where it is no JSON, holds what no database keeps, or does not fit the model; the answer
    names the first field that does not.
    """
    if not request.is_json:
        abort(415, "the body must be JSON, sent with `Content-Type: application/json`")
    sent = request.get_data(cache=False)
    with _one_large_body if len(sent) > _LARGE_BYTES else nullcontext():
        body = _parsed(sent)
        try:
            return model.model_validate(body)
        except ValidationError as error:
            abort(400, sentence(error))


def sentence(error: ValidationError) -> str:
    """The first thing that is wrong with a body, without what was sent there."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(map(str, first["loc"]))[:100]
    message = first["msg"].removeprefix("Value error, ")
    return f"the field `{field}` is wrong: {message}" if field else f"the body is wrong: {message}"


def _parsed(sent: bytes) -> dict[str, Any]:
    # Counted before anything is built, and in strings too: no honest body is near the limits.
    if sent.count(b"[") + sent.count(b"{") > MOST_CONTAINERS or sent.count(b",") > MOST_VALUES:
        abort(413, "the body holds too many lists, objects or values; send fewer tasks at a time")
    try:
        body = json.loads(sent.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        abort(400, "the body must be JSON in UTF-8, nested not too deeply")
    if not isinstance(body, dict):
        abort(400, "the body must be a JSON object")
    _check_values(body)
    return body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check_values(body: dict[str, Any]) -> None:
    """Level by level, so that no depth can exhaust the stack."""
    level: list[Any] = [body]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for container in level:
            values = container
            if isinstance(container, dict):
                values = container.values()
                _check_strings(container)
            kinds = set(map(type, values))
            if str in kinds:
                _check_strings(value for value in values if isinstance(value, str))
            if float in kinds and not all(math.isfinite(v) for v in values if type(v) is float):
                abort(400, "the body holds a number that is too large")
            if kinds & {dict, list}:
                below += [value for value in values if isinstance(value, dict | list)]
        if not below:
            return
        level = below
    abort(400, f"the body is nested more than {DEEPEST} levels deep")


def _check_strings(strings: Any) -> None:
    for text in strings:
        if "\0" in text:
            abort(400, "the body holds a NUL character")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                abort(400, "the body holds half of a surrogate pair, which is no character")


def checked_id(number: int, what: str) -> int:
    """An id out of the path; 400 where no database can hold it."""
    if number > LARGEST_INTEGER:
        abort(400, f"there is no {what} with an id above {LARGEST_INTEGER}")
    return number


def checked_row_id(id_: str, what: str) -> str:
    """A row's id out of path or query; 404 where it cannot be one."""
    if not (id_.isascii() and id_.isalnum()):
        abort(404, f"no {what} has such an id")
    return id_


def query_number(name: str) -> int | None:
    """A number out of the query, None where it is missing; 400 where it is something else."""
    value = request.args.get(name)
    if value is None:
        return None
    if not _NUMBER.fullmatch(value) or int(value) > LARGEST_INTEGER:
        abort(400, f"{name} is a number from 0 to {LARGEST_INTEGER}")
    return int(value)


def query_project() -> int | None:
    """The query's `project`; None (all projects) where it is missing."""
    return query_number("project")


def query_choice(name: str, choices: tuple[str, ...]) -> str | None:
    """A query argument that takes one of `choices`; 400 where it is something else."""
    value = request.args.get(name)
    if value is not None and value not in choices:
        abort(400, f"{name} is one of {', '.join(choices)}")
    return value
