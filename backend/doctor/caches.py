"""Caches: how much memory and disk they may take here, and whether the projects fit."""

import json
from itertools import islice
from pathlib import Path
from statistics import fmean

from sqlalchemy import select

from backend.database import Database
from backend.doctor.check import Check, ok, warn
from backend.errors import LabelStudioError
from backend.label_studio.client import LabelStudio
from backend.models.versions import BUNDLED
from backend.processes.memory import cache_limits
from backend.settings import Settings
from backend.tables import Project

# Entries that are measured where there are some.
_MEASURED = 100
# Of SAM 3 at 1008 pixels in patches of 14: 16 bit for each of 1024 values of a patch.
_FULL_SIZE_BYTES = (1008 // 14) ** 2 * 1024 * 2


def check_caches(settings: Settings) -> Check:
    """The limits that hold on this machine, and whether they were set or chosen."""
    limits = cache_limits(settings)

    def said(size: int, setting: int | None) -> str:
        return f"{size >> 20} MB ({'chosen' if setting is None else 'set'})"

    return ok(
        "caches",
        f"of {limits.available >> 20} MB of memory each worker may keep embeddings in "
        f"{said(limits.embeddings, settings.embedding_memory_mb)} and images in "
        f"{said(limits.images, settings.image_cache_mb)}; "
        f"{settings.embedding_disk_mb} MB of disk are for embeddings",
    )


def check_embedding_room(settings: Settings, database: Database) -> Check:
    """Whether the disk's part of the cache holds an embedding of every task.

    A task may have several images, so what is said is the least that is needed.
    """
    with database.reading() as session:
        projects = list(session.scalars(select(Project.id).order_by(Project.id)))
    tasks = 0
    with LabelStudio.from_settings(settings) as client:
        for project_id in projects:
            try:
                tasks += int(client.project(project_id).get("task_number") or 0)
            except LabelStudioError:
                continue  # the project's own check says so
    image_bytes = _entries_of_image(settings) * _entry_bytes(settings)
    needed_mb = -(-tasks * image_bytes // 2**20)
    fits = f"{tasks} tasks × {image_bytes / 2**20:.2f} MB = {needed_mb} MB"
    if needed_mb <= settings.embedding_disk_mb:
        return ok("embeddings", f"{fits}, which fit into {settings.embedding_disk_mb} MB")
    if settings.embedding_store_url:
        return ok(
            "embeddings",
            f"{fits}; what {settings.embedding_disk_mb} MB of disk do not hold is read from the "
            "shared store",
        )
    return warn(
        "embeddings",
        f"{fits}, but MEDSAM3_EMBEDDING_DISK_MB is {settings.embedding_disk_mb}: "
        f"{tasks - settings.embedding_disk_mb * 2**20 // image_bytes} images are encoded again "
        "each time that all are predicted",
        f"set MEDSAM3_EMBEDDING_DISK_MB={needed_mb} where the disk has room",
    )


def check_embedding_store(settings: Settings) -> Check | None:
    """Whether the store answers in which machines share embeddings; None where there is none."""
    from medsam3_model.embeddings.shared_embeddings import SharedEmbeddings
    from medsam3_model.errors import EmbeddingStoreError

    if settings.embedding_store_url is None:
        return None
    try:
        SharedEmbeddings(settings.embedding_store_url).read("doctor", "doctor")
    except EmbeddingStoreError as error:
        return warn(
            "embedding store",
            f"{error}: each machine encodes all images for itself",
            "check MEDSAM3_EMBEDDING_STORE_URL, and what its protocol needs (such as keys of S3)",
        )
    return ok("embedding store", "answers; machines share what they encoded")


def _entry_bytes(settings: Settings) -> int:
    """Of the entries on disk, or of the model's configuration where there are none."""
    sizes = []
    for path in islice(settings.embedding_dir.glob("*/*.safetensors"), _MEASURED):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue  # a worker dropped it
    if sizes:
        return round(fmean(sizes))
    try:
        config = json.loads((_model_folder(settings) / "config.json").read_text())
        backbone = config["detector_config"]["vision_config"]["backbone_config"]
        patches = (backbone["image_size"] // backbone["patch_size"]) ** 2
        return int(patches * backbone["hidden_size"] * 2)
    except (OSError, ValueError, KeyError, TypeError):
        return _FULL_SIZE_BYTES


def _entries_of_image(settings: Settings) -> int:
    """Two where the model looks at the mirror image, too."""
    from medsam3_model.checkpoints.presets import read_bundle_info
    from medsam3_model.errors import CheckpointError

    try:
        return 2 if read_bundle_info(_model_folder(settings)).mirrors else 1
    except CheckpointError:  # no bundle, and no other checkpoint does
        return 1


def _model_folder(settings: Settings) -> Path:
    from medsam3_model.checkpoints.presets import WEIGHTS_FOLDER

    if settings.model in BUNDLED:
        return WEIGHTS_FOLDER / settings.model
    return Path(settings.model).expanduser()
