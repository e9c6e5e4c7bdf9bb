"""The embedding cache's files, without loading them: to remove what was made from an image."""

import json
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any


def remove_embeddings(folder: Path, image_hashes: Collection[str]) -> tuple[int, int]:
    """Remove the cached embeddings of images.

    Args:
        folder: of an `EmbeddingCache`; may be missing.
        image_hashes: the images' hashes, with which their cache keys begin.

    Returns:
        How many files went, and how many bytes.
    """
    files = size = 0
    for path in folder.glob("*/*.safetensors"):
        try:
            key = str(_notes(path).get("image_key", ""))
            if not any(key.startswith(hash_) for hash_ in image_hashes):
                continue
            bytes_ = path.stat().st_size
            path.unlink()
        except OSError:
            continue  # another process dropped it
        files, size = files + 1, size + bytes_
    return files, size


def _notes(path: Path) -> dict[str, Any]:
    """The entry's notes, from the header of a safetensors file and the few bytes it points at."""
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            first, last = json.loads(file.read(length))["notes"]["data_offsets"]
            file.seek(8 + length + first)
            found: dict[str, Any] = json.loads(file.read(last - first))
        except (struct.error, ValueError, KeyError, TypeError, OverflowError, MemoryError):
            return {}
    return found
