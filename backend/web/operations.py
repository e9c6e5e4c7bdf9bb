"""Operations: what an endpoint takes and answers, said beside it; the API's description is made
from that (`backend.web.openapi`).

An endpoint reads its query and its body itself, through `backend.web.requests`, whose limits come
before anything is built. Tests hold what is said here against what the endpoints do.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from backend.tables import LARGEST_INTEGER

EndpointFunction = TypeVar("EndpointFunction", bound=Callable[..., Any])


class Answer(BaseModel):
    """What an endpoint answers, as JSON. It is open: later versions may add fields."""


class ErrorAnswer(Answer):
    """What is wrong, in a sentence."""

    error: str


@dataclass(frozen=True)
class Media:
    """An answer that is no JSON: its media type, and whether it is text."""

    content_type: str
    text: bool


@dataclass(frozen=True)
class QueryParameter:
    """One argument of a query, which may always be left out.

    Attributes:
        name: as it is sent.
        meaning: what it does.
        schema: its JSON schema.
    """

    name: str
    meaning: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class ApiOperation:
    """What an endpoint takes and answers.

    Attributes:
        answers: by status: a type that pydantic knows, or `Media`.
        body: the model of the JSON body; None: it takes none.
        query: the arguments of the query.
        refusals: statuses with an `ErrorAnswer` that are this endpoint's own; those that follow
            from its method, path, query and body are added by `backend.web.openapi`.
    """

    answers: Mapping[int, Any]
    body: type[BaseModel] | None
    query: tuple[QueryParameter, ...]
    refusals: frozenset[int]


_described: dict[Callable[..., Any], ApiOperation] = {}


def operation(
    answer: Any,
    *,
    status: int = 200,
    or_status: int | None = None,
    body: type[BaseModel] | None = None,
    query: Iterable[QueryParameter] = (),
    refuses: Iterable[int] = (),
) -> Callable[[EndpointFunction], EndpointFunction]:
    """Say what the endpoint below takes and answers; see `ApiOperation`.

    Args:
        answer: what it answers.
        status: the answer's status.
        or_status: another status with the same answer.
        body: the model that it reads its body with.
        query: the arguments that it reads.
        refuses: statuses of its own refusals.
    """
    statuses = [status] if or_status is None else [status, or_status]
    said = ApiOperation(dict.fromkeys(statuses, answer), body, tuple(query), frozenset(refuses))

    def describe(view: EndpointFunction) -> EndpointFunction:
        _described[view] = said
        return view

    return describe


def operation_of(view: Callable[..., Any]) -> ApiOperation:
    """What was said about an endpoint's function.

    Raises:
        LookupError: nothing was, which is a mistake in the program.
    """
    if view not in _described:
        raise LookupError(f"{view.__module__}.{view.__name__} needs `@operation(...)`")
    return _described[view]


def number(name: str, meaning: str) -> QueryParameter:
    """An argument that `requests.query_number` reads."""
    limits = {"minimum": 0, "maximum": LARGEST_INTEGER}
    return QueryParameter(name, meaning, {"type": "integer", **limits})


def choice(name: str, meaning: str, choices: Iterable[str]) -> QueryParameter:
    """An argument that `requests.query_choice` reads."""
    return QueryParameter(name, meaning, {"type": "string", "enum": [str(one) for one in choices]})


PROJECT = number("project", "Of this Label Studio project only.")
TASK = number("task", "Of this task only.")
