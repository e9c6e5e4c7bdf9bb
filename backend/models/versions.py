"""Versions of models: what they are called, and which one serves a project."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from sqlalchemy import Connection, select

from backend.database import insert_or_ignore
from backend.services import Services
from backend.tables import ModelVersion, Project, table_of

BUNDLED = ("tiny",)
# Enough of a weights file to tell it from every other, cheap enough for a 3 s deadline.
FINGERPRINT_BYTES = 2**20


def in_service(services: Services, project_id: int) -> str:
    """The version whose predictions a project gets: its own, else the default model's."""
    with services.database.reading() as session:
        return in_service_now(services, session.connection(), project_id)


def in_service_now(services: Services, connection: Connection, project_id: int) -> str:
    """As `in_service`, in a transaction that is under way."""
    projects = table_of(Project)
    query = select(projects.c.model_version).where(projects.c.id == project_id)
    return connection.scalar(query) or default_version(services)


def register_project(services: Services, project_id: int, label_config: str) -> str:
    """Remember a project and its labeling config; returns the version in service.

    Label Studio calls this before every batch and whenever its Data Manager opens, so nothing is
    written unless something changed.
    """
    default = default_version(services)
    with services.database.reading() as session:
        known = session.get(Project, project_id)
        registered = session.scalar(
            select(ModelVersion.id).where(ModelVersion.version == default).limit(1)
        )
    if known is None or known.label_config != label_config or registered is None:
        with services.database.session() as session:
            project = session.get(Project, project_id) or Project(id=project_id)
            project.label_config = label_config
            session.add(project)
            weights = {"checkpoint": services.settings.model, "adapter": services.settings.adapter}
            insert_or_ignore(session, ModelVersion, {"version": default, **weights})
    return (known.model_version if known else None) or default


def all_versions(services: Services) -> list[str]:
    """Every version that was ever registered, oldest first; at least the default one."""
    with services.database.reading() as session:
        known = list(session.scalars(select(ModelVersion.version).order_by(ModelVersion.id)))
    default = default_version(services)
    return known if default in known else [*known, default]


def default_version(services: Services) -> str:
    """The version of the configured checkpoint, without loading it."""
    return version_name(services.settings.model, services.settings.adapter)


@lru_cache(maxsize=16)
def version_name(checkpoint: str, adapter: str | None = None) -> str:
    """Name of a checkpoint with its adapter: what it is called, and a hash of what it is.

    The bundled model's is written beside its weights. A file's comes from its size and its first
    and last megabyte, a folder's from its weight files', a hub id's from the id alone.
    """
    if checkpoint in BUNDLED and adapter is None:
        from medsam3_model.checkpoints.presets import bundled_version

        return bundled_version(checkpoint)
    path = Path(checkpoint).expanduser()
    stem = (path.stem if path.is_file() else path.name) or "model"
    digest = hashlib.sha256(json.dumps([checkpoint if not path.exists() else "", stem]).encode())
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    for file in [*files, *([Path(adapter).expanduser()] if adapter else [])]:
        _add_fingerprint(digest, file)
    return f"{stem}-{digest.hexdigest()[:8]}"


def _add_fingerprint(digest: "hashlib._Hash", file: Path) -> None:
    size = file.stat().st_size
    digest.update(str(size).encode())
    with file.open("rb") as stream:
        digest.update(stream.read(FINGERPRINT_BYTES))
        stream.seek(max(0, size - FINGERPRINT_BYTES))
        digest.update(stream.read(FINGERPRINT_BYTES))
