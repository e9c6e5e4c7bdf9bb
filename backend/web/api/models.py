"""`/api/v1/models`: every version, which one serves which project, promotion and rollback.

What is refused on purpose answers 409 with the reason.
"""

from datetime import datetime
from typing import Any

from flask import Blueprint
from pydantic import Field
from sqlalchemy import select

from backend.errors import ModelVersionError
from backend.models import promotion
from backend.models.versions import default_version
from backend.tables import Id, ModelVersion, Project, Promotion, PromotionKind
from backend.web.operations import Answer, operation
from backend.web.requests import Body, read_body, services

blueprint = Blueprint("models", __name__, url_prefix="/api/v1/models")


class RollbackWish(Body):
    """The project that returns to the version before."""

    project: Id


class PromotionWish(RollbackWish):
    """The project, and the version that is to serve it."""

    version: str = Field(min_length=1, max_length=200)
    force: bool = Field(False, description="Even though the gate refused it, which is noted.")


class PromotionAnswer(Answer):
    """What serves the project now, and what did before."""

    project: int
    version: str
    previous: str
    kind: PromotionKind


class VersionAnswer(Answer):
    """A version; its card says what it was made from (docs/training.md)."""

    version: str
    project: int | None
    parent: str | None
    run: str | None
    card: dict[str, Any] | None
    created_at: datetime


class ModelsAnswer(Answer):
    """Every version; `in_service` has the one of each project by the project's id."""

    default: str
    in_service: dict[str, str]
    models: list[VersionAnswer]


@blueprint.errorhandler(ModelVersionError)
def _refused(error: ModelVersionError) -> tuple[dict[str, str], int]:
    return {"error": str(error)}, 409


@blueprint.get("")
@operation(ModelsAnswer)
def versions() -> dict[str, Any]:
    """Every version with its card, and which one serves which project."""
    with services().database.reading() as session:
        rows = session.scalars(select(ModelVersion).order_by(ModelVersion.id)).all()
        serving = {row.id: row.model_version for row in session.scalars(select(Project))}
    default = default_version(services())
    return {
        "default": default,
        "in_service": {str(id_): version or default for id_, version in serving.items()},
        "models": [
            {
                "version": row.version,
                "project": row.project_id,
                "parent": row.parent,
                "run": row.run_id,
                "card": row.card,
                "created_at": row.created_at.isoformat(),
            }
            for row in rows
        ],
    }


@blueprint.post("/promote")
@operation(PromotionAnswer, body=PromotionWish, refuses=(409,))
def promoted() -> dict[str, Any]:
    """Put a version into service."""
    body = read_body(PromotionWish)
    return _promotion(promotion.promote(services(), body.project, body.version, force=body.force))


@blueprint.post("/rollback")
@operation(PromotionAnswer, body=RollbackWish, refuses=(409,))
def rolled_back() -> dict[str, Any]:
    """Return to the version before."""
    return _promotion(promotion.rollback(services(), read_body(RollbackWish).project))


def _promotion(made: Promotion) -> dict[str, Any]:
    return {
        "project": made.project_id,
        "version": made.version,
        "previous": made.previous,
        "kind": made.kind,
    }
