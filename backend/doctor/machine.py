"""This machine: folders, weights, image sources, the web process."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx2

from backend.doctor.check import Check, fail, ok, warn
from backend.models.versions import BUNDLED
from backend.settings import Settings


def check_data_folder(settings: Settings) -> Check:
    """The data folder can be written, and its secrets are the owner's alone."""
    folder = settings.data_dir
    if not folder.exists():
        return warn("data folder", f"{folder} is not there yet", "it is made at the first start")
    if not os.access(folder, os.W_OK):
        return fail(
            "data folder",
            f"{folder} cannot be written",
            "set MEDSAM3_DATA_DIR to a folder that this user may write",
        )
    secrets = folder / "credentials.json"
    if secrets.exists() and secrets.stat().st_mode & 0o077:
        return warn("data folder", f"{secrets} may be read by other users", f"chmod 600 {secrets}")
    return ok("data folder", str(folder))


def check_model(settings: Settings) -> Check:
    """The configured weights are there. They are not loaded."""
    from medsam3_model.checkpoints.presets import bundled_version
    from medsam3_model.errors import CheckpointError

    if settings.model in BUNDLED:
        try:
            return ok("model", bundled_version(settings.model))
        except CheckpointError as error:
            return fail("model", str(error), "install the package again, with its weights")
    missing = [
        name
        for name, value in (
            ("MEDSAM3_MODEL", settings.model),
            ("MEDSAM3_ADAPTER", settings.adapter),
        )
        if value and _looks_like_path(value) and not Path(value).expanduser().exists()
    ]
    if missing:
        return fail(
            "model",
            f"{' and '.join(missing)}: no such file or folder",
            f"set {missing[0]} to a checkpoint on this machine, a hub id, or `tiny`",
        )
    return ok("model", settings.model)


def check_image_sources(settings: Settings) -> Iterator[Check]:
    """Local roots exist."""
    for root in settings.allowed_local_roots:
        if not (root.expanduser().is_dir() and os.access(root.expanduser(), os.R_OK | os.X_OK)):
            yield fail(
                "local roots",
                f"{root} is not a folder that can be read",
                "correct MEDSAM3_ALLOWED_LOCAL_ROOTS, or mount the folder on this machine too",
            )


def check_web(settings: Settings) -> Check:
    """The web process answers on this machine. How Label Studio sees it is part of a project."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
    url = f"http://{host}:{settings.port}"
    try:
        status = httpx2.get(f"{url}/health", timeout=3.0, trust_env=False).status_code
    except httpx2.TransportError as error:
        return fail(
            "web",
            f"nothing answers at {url} ({type(error).__name__})",
            "start it: `medsam3 serve`, or `medsam3 web` alone",
        )
    if status != 200:
        return fail(
            "web",
            f"{url}/health answered {status}",
            "another program may hold this port: set MEDSAM3_PORT",
        )
    return ok("web", f"answers at {url}")


def _looks_like_path(value: str) -> bool:
    """A hub id is `owner/name`: one slash, and nothing of that name here."""
    return value.count("/") != 1 or value.startswith((".", "~", "/")) or Path(value).suffix != ""
