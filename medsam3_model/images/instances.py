"""DICOM objects of a stack, found again where they were imported from, by their UIDs."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from pathlib import Path

from pydicom.dataset import Dataset

from medsam3_model.errors import ImageError
from medsam3_model.images.dicom import read_dataset
from medsam3_model.images.formats import HEAD_BYTES, image_suffix
from medsam3_model.images.geometry import StackGeometry
from medsam3_model.images.limits import ImageLimits


def dicom_files(source: Path) -> list[Path]:
    """The DICOM files of a file or of a folder with all below it; hidden ones are passed over."""
    return [
        path
        for path in (sorted(source.rglob("*")) if source.is_dir() else [source])
        if not any(part.startswith(".") for part in path.relative_to(source).parts)
        and path.is_file()
        and _is_dicom(path)
    ]


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return image_suffix(file.read(HEAD_BYTES)) == ".dcm"


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the hashes of files, each taken once, in their order."""
    whole = hashlib.sha256()
    for path in dict.fromkeys(paths):
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def instance_headers(
    source: Path, geometry: StackGeometry, sha256: str, limits: ImageLimits
) -> list[Dataset]:
    """The headers of a stack's objects, without pixels, one for each slice in its order.

    Slices of one multi-frame object share a header.

    Args:
        source: the file or folder that was imported.
        geometry: of the stack.
        sha256: of its content when it was imported, as `SourceStack.sha256`.
        limits: of what a file may unpack to.

    Raises:
        ImageError: objects are missing, damaged, or not those that were imported.
    """
    wanted = {instance.instance_uid for instance in geometry.sop_instances}
    found: dict[str, tuple[Path, Dataset]] = {}
    try:
        with warnings.catch_warnings():
            # pydicom warns of damage with the values that it found.
            warnings.simplefilter("ignore")
            for path in dicom_files(source):
                with path.open("rb") as file:
                    header = read_dataset(file, limits, header=True)
                uid = str(header.get("SOPInstanceUID") or "")
                if uid in wanted:
                    found.setdefault(uid, (path, header))
        if "" in wanted or found.keys() != wanted:
            raise ImageError(
                f"{len(wanted - found.keys())} of its {len(wanted)} DICOM objects are missing"
            )
        in_order = [found[instance.instance_uid] for instance in geometry.sop_instances]
        if content_hash(path for path, _ in in_order) != sha256:
            raise ImageError("its DICOM files have changed")
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(f"its DICOM files cannot be read ({type(error).__name__})") from error
    return [header for _, header in in_order]
