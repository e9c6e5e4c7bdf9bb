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
from backend.web.requests import Body, checked_row_id, query_number, read_body, services

blueprint = Blueprint("propagations", __name__, url_prefix="/api/v1/propagations")
PAGE_SIZE = 100
_Slice = Field(None, ge=0, le=LARGEST_INTEGER)


class _Wish(Body):
    task: Id
    slices: list[Id] | None = Field(None, min_length=1, max_length=5000)
    first: int | None = _Slice
    last: int | None = _Slice
    annotation: int | None = _Slice


@blueprint.errorhandler(PropagationError)
def _refused(error: PropagationError) -> tuple[dict[str, str], int]:
    return {"error": str(error)}, 409


@blueprint.post("")
def asked() -> tuple[dict[str, Any], int]:
    """Have a stack drawn from its corrected slices; 201 for a new wish, 200 for one under way.

    Body: `task`, and optionally `slices` (numbers from 0), `first`, `last`, `annotation`.
    """
    wish = read_body(_Wish)
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
def listed() -> dict[str, Any]:
    """Propagations with their progress, newest first. Query: `task`."""
    rows = propagations.latest(services(), query_number("task"), PAGE_SIZE)
    return {"propagations": [asdict(row) for row in rows]}


@blueprint.get("/<propagation_id>")
def shown(propagation_id: str) -> dict[str, Any]:
    """One propagation with its progress."""
    return asdict(propagations.state_of(services(), checked_row_id(propagation_id, "propagation")))


@blueprint.post("/<propagation_id>/cancel")
def cancelled(propagation_id: str) -> dict[str, Any]:
    """End a propagation: at once while it waits, at its next slice while it is at work."""
    return asdict(propagations.cancel(services(), checked_row_id(propagation_id, "propagation")))
