"""The Hugging Face hub: fetches checkpoints from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from medsam3_model.checkpoints.published import by_repository
from medsam3_model.errors import CheckpointError

_REPOSITORY = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.pt", "*.bin")
_SMALL_FILES = ("*.json", "*.txt")


def is_repository(name: str) -> bool:
    """Whether a name has the form `owner/name` of the hub."""
    return _REPOSITORY.match(name) is not None


def download(
    repo_id: str, *, revision: str | None = None, folder: Path | None = None, progress: bool = True
) -> Path:
    """Fetch a checkpoint into the hub's cache, going on where an earlier download stopped.

    Of weights in several formats only the safest is fetched: safetensors where there are any. Of a
    published checkpoint that is known here only its own file is.

    Args:
        repo_id: "owner/name", e.g. "facebook/sam3" (gated: access is asked for on its page).
        revision: branch, tag or commit; default the main branch.
        folder: where to put the files; default the hub's own cache.
        progress: show progress bars.

    Returns:
        The folder with the weights and the small files beside them.

    Raises:
        CheckpointError: the repository does not exist, is gated, holds no weights, or the hub
            cannot be reached; the message says what to do.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    if not is_repository(repo_id):
        raise CheckpointError(f"{repo_id!r} is not a repository of the hub: it is owner/name")
    # The root of the HTTP library's errors, whichever library this version of the hub uses.
    no_connection: Any = HfHubHTTPError.__bases__[0]
    (enable_progress_bars if progress else disable_progress_bars)()
    try:
        repository = HfApi().model_info(repo_id, revision=revision)
        files = [sibling.rfilename for sibling in repository.siblings or ()]
        known = by_repository(repo_id)
        if known is not None and known.file in files:
            files = [known.file]
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                local_dir=folder,
                allow_patterns=[*weights_patterns(files), *_SMALL_FILES],
            )
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repo_id} is gated: ask for access on https://huggingface.co/{repo_id}, then run "
            "`hf auth login` (or set HF_TOKEN) and download again"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repo_id} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo_id} does not exist on the hub, or is private: check the name, or run "
            "`hf auth login`"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, no_connection, OSError) as error:
        raise CheckpointError(
            f"{repo_id} could not be fetched ({type(error).__name__}): check the connection and "
            "run the same command again, it goes on where it stopped"
        ) from error


def cached(repo_id: str) -> Path | None:
    """The folder of an earlier `download`, without touching the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        return None


def weights_patterns(files: list[str]) -> tuple[str, ...]:
    """Which weights of a repository to fetch: safetensors, else whatever there is.

    Raises CheckpointError where there are none.
    """
    top = [name for name in files if "/" not in name]
    if any(name.endswith(".safetensors") for name in top):
        return _WEIGHTS[:2]
    others = tuple(name for name in top if name.endswith((".pt", ".bin")))
    if not others:
        raise CheckpointError("the repository holds neither safetensors nor .pt nor .bin files")
    return others
