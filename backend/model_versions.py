"""Which model version serves a project."""

from sqlalchemy import select

from backend.services import Services
from backend.tables import ModelVersion, Project


def in_service(services: Services, project_id: int) -> str:
    """The version whose predictions a project gets: its own, else the default model's."""
    with services.database.reading() as session:
        own = session.scalar(select(Project.model_version).where(Project.id == project_id))
    return own or default_version(services)


def default_version(services: Services) -> str:
    """The version of the configured checkpoint, without loading it.

    The bundled model's version is in a small file beside its weights; another checkpoint's is
    registered by the first worker that loads it.
    """
    raise NotImplementedError


def all_versions(services: Services) -> list[str]:
    """Every version that was ever registered, oldest first."""
    with services.database.reading() as session:
        return list(session.scalars(select(ModelVersion.version).order_by(ModelVersion.id)))
