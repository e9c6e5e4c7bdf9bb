"""`/api/v1/propagations`: the rest of a stack, drawn from its corrected slices.

What is refused on purpose answers 409 with the reason.
"""

from dataclasses import asdict
from typing import Any

from flask import Blueprint
from pydantic import Field

from backend.errors import PropagationError
from backend.predictions import propagations
from backend.tables import LARGEST_INTEGER, Id
from backend.web.operations import TASK, Answer, operation
from backend.web.requests import Body, checked_row_id, query_number, read_body, services

blueprint = Blueprint("propagations", __name__, url_prefix="/api/v1/propagations")
PAGE_SIZE = 100


def _number(meaning: str) -> Any:
    return Field(None, ge=0, le=LARGEST_INTEGER, description=meaning)


class PropagationWish(Body):
    """Which stack is to be drawn from which of its slices; slices are counted from 0."""

    task: Id
    slices: list[Id] | None = Field(
        None,
        min_length=1,
        max_length=5000,
        description="The corrected slices; without it those that somebody drew on.",
    )
    first: int | None = _number("The objects do not begin before this slice.")
    last: int | None = _number("The objects do not go on after this slice.")
    annotation: int | None = _number(
        "Whose regions; without it the draft or annotation that was saved last."
    )


class RequestedPropagation(Answer):
    """The propagation, and whether it is new: the same wish under way is one propagation."""

    id: str
    new: bool


class PropagationsAnswer(Answer):
    """Propagations, newest first."""

    propagations: list[propagations.PropagationState]


@blueprint.errorhandler(PropagationError)
def _refused(error: PropagationError) -> tuple[dict[str, str], int]:
    return {"error": str(error)}, 409


@blueprint.post("")
@operation(RequestedPropagation, status=201, or_status=200, body=PropagationWish, refuses=(409,))
def asked() -> tuple[dict[str, Any], int]:
    """Have a stack drawn from its corrected slices; 201 for a new wish, 200 for one under way."""
    wish = read_body(PropagationWish)
    id_, new = propagations.request_propagation(
        services(),
        wish.task,
        wish.slices,
        first=wish.first,
        last=wish.last,
        annotation_id=wish.annotation,
    )
    return {"id": id_, "new": new}, 201 if new else 200


@blueprint.get("")
@operation(PropagationsAnswer, query=(TASK,))
def listed() -> dict[str, Any]:
    """Propagations with their progress, newest first; at most 100."""
    rows = propagations.latest(services(), query_number("task"), PAGE_SIZE)
    return {"propagations": [asdict(row) for row in rows]}


@blueprint.get("/<propagation_id>")
@operation(propagations.PropagationState, refuses=(409,))
def shown(propagation_id: str) -> dict[str, Any]:
    """One propagation with its progress."""
    return asdict(propagations.state_of(services(), checked_row_id(propagation_id, "propagation")))


@blueprint.post("/<propagation_id>/cancel")
@operation(propagations.PropagationState, refuses=(409,))
def cancelled(propagation_id: str) -> dict[str, Any]:
    """End a propagation: at once while it waits, at its next slice while it is at work."""
    return asdict(propagations.cancel(services(), checked_row_id(propagation_id, "propagation")))
