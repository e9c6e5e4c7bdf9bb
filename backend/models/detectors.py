"""The store of trained detectors, by version: a file is written once, complete or not at all.

Where the mask files are in an object store (`STORAGE_URL`) the detectors are there, too, so that
workers on other machines find them; else they are below the data folder.
"""

import shutil
from pathlib import Path

from backend.database import new_file
from backend.errors import ModelVersionError, StorageUnavailableError
from backend.settings import Settings

_SUFFIX = ".safetensors"


class DetectorStore:
    """Detectors of one installation."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.data_dir / "detectors"
        self._remote = (
            f"{settings.storage_url.rstrip('/')}/detectors" if settings.storage_url else None
        )

    def publish(self, draft: Path, version: str) -> None:
        """Put a finished file under its version's name; one that is there stays as it is.

        Args:
            draft: a complete detector file; it is gone afterwards.
            version: the name, which holds a hash of the weights.
        """
        target = self._path(version)
        if self._remote:
            import fsspec

            fs, root = fsspec.core.url_to_fs(self._remote)
            if not fs.exists(f"{root}/{version}{_SUFFIX}"):
                fs.makedirs(root, exist_ok=True)
                fs.put_file(str(draft), f"{root}/{version}{_SUFFIX}")
        if target.exists():
            draft.unlink()
        else:
            # From another disk a move is a copy, which another process must not see unfinished.
            with new_file(target) as near:
                shutil.move(draft, near)

    def path(self, version: str) -> Path:
        """The version's file on this machine, fetched from the object store if need be.

        Raises:
            ModelVersionError: it is not there.
            StorageUnavailableError: the object store does not say whether it is there.
        """
        target = self._path(version)
        if not target.exists() and self._remote:
            self._fetch(version, target)
        if not target.exists():
            raise ModelVersionError(
                f"The detector of version {version} is missing below {self._folder}: restore it "
                "from a backup, or roll back with `medsam3 models rollback`."
            )
        return target

    def _fetch(self, version: str, target: Path) -> None:
        """Copy a version's file from the object store, unless it is not there either."""
        import fsspec
        from rq.timeouts import BaseTimeoutException

        fs, root = fsspec.core.url_to_fs(self._remote)
        try:
            with new_file(target) as near:
                fs.get_file(f"{root}/{version}{_SUFFIX}", str(near))
        except FileNotFoundError:
            return
        except BaseTimeoutException:
            raise
        except Exception as error:
            # Each protocol has errors of its own, with what was sent in their text.
            raise StorageUnavailableError(
                f"The detector of version {version} cannot be fetched from the object store "
                f"({type(error).__name__}): check STORAGE_URL, and that it answers."
            ) from error

    def names(self) -> list[str]:
        """The versions on this machine."""
        return sorted(path.stem for path in self._folder.glob(f"*{_SUFFIX}"))

    def _path(self, version: str) -> Path:
        return self._folder / f"{version}{_SUFFIX}"
