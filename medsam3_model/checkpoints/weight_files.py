"""Weight files: tensors are read one at a time, and nothing in a file is ever executed.

Safetensors (one file or shards with an index) and torch's zip files are read. Files are mapped
into memory, and mapped again now and then, so that reading a file of several gigabytes into
another precision does not hold both copies.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from medsam3_model.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
# Where a training checkpoint keeps the weights, beside the optimizer's state.
_WRAPPERS = ("model", "state_dict", "model_state_dict")
_MOST_WRAPPERS = 3
# What data-parallel training, torch.compile and trainers write before every tensor's name.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_REOPEN_BYTES = 256 * 2**20
_SAFETENSORS_HEADER_LIMIT = 100_000_000  # the format's own


class TensorFile(ABC):
    """Named tensors of one checkpoint on disk.

    Attributes:
        path: the file, or the index of the shards.
        shapes: the shape of every tensor.
        metadata: the file's own notes; empty where the format has none.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]

    def __init__(self) -> None:
        self._unmapped_after = 0

    @abstractmethod
    def _open(self) -> None:
        """Map the file, again if it was mapped before."""

    @abstractmethod
    def _read(self, key: str) -> torch.Tensor: ...

    def read(self, key: str) -> torch.Tensor:
        """One tensor in its stored type, usually a view of the mapped file.

        Raises CheckpointError where the file is damaged at this place.
        """
        try:
            tensor = self._read(key)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise CheckpointError(f"{self.path.name} is damaged: {key} cannot be read") from error
        # Pages that were read stay in memory until the mapping is given up.
        self._unmapped_after += tensor.numel() * tensor.element_size()
        if self._unmapped_after > _REOPEN_BYTES:
            self._unmapped_after = 0
            self._open()
        return tensor


class SafetensorsFile(TensorFile):
    """One safetensors file, or the shards that an index names."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._files = _shards(path) if path.name.endswith(".index.json") else {path: None}
        self._handles: dict[Path, Any] = {}
        self._home: dict[str, Path] = {}
        self.shapes, self.metadata = {}, {}
        self._open()
        for file, handle in self._handles.items():
            self.metadata = {**self.metadata, **(handle.metadata() or {})}
            for key in handle.keys():  # noqa: SIM118 (a safetensors handle, not a dict)
                self._home[key] = file
                self.shapes[key] = tuple(handle.get_slice(key).get_shape())

    def _open(self) -> None:
        self._handles = {}
        for file in self._files:
            try:
                self._handles[file] = safe_open(file, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{file.name} is not a readable safetensors file ({error}): it is probably "
                    "truncated, download it again"
                ) from error

    def _read(self, key: str) -> torch.Tensor:
        return self._handles[self._home[key]].get_tensor(key)


class TorchFile(TensorFile):
    """A file of `torch.save`, read with `weights_only`: other objects than tensors are refused."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.metadata = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._open()
        self.shapes = {key: tuple(tensor.shape) for key, tensor in self._tensors.items()}

    def _open(self) -> None:
        mapped = zipfile.is_zipfile(self.path)
        try:
            with warnings.catch_warnings():
                # An unusual pickle is refused below; that it is unusual interests nobody.
                warnings.filterwarnings("ignore", message="Detected pickle protocol")
                content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{self.path.name} holds Python objects besides tensors; loading them would run "
                "code from the file, so it was refused and nothing was run. Ask its author for "
                "safetensors, or for a plain dict of tensors; docs/checkpoints.md says how to "
                "take the tensors out of a file that you trust"
            ) from error
        except (RuntimeError, EOFError, OSError, KeyError, ValueError, struct.error) as error:
            raise CheckpointError(
                f"{self.path.name} is damaged or truncated: download it again"
            ) from error
        self._tensors = _flat_tensors(content, self.path)

    def _read(self, key: str) -> torch.Tensor:
        return self._tensors[key]


def open_tensors(path: Path) -> TensorFile:
    """Open a weights file by its content, whatever its name says.

    Raises CheckpointError where it is not a weights file; the message says what it seems to be.
    """
    if path.name.endswith(".index.json"):
        return SafetensorsFile(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if refusal := _not_weights(head, size):
        raise CheckpointError(f"{path.name} is not a checkpoint: {refusal}")
    if head.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            raise CheckpointError(
                f"{path.name} is truncated: it begins as a torch file but lacks its end "
                f"({size:,} bytes are here); download it again"
            )
        return TorchFile(path)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return TorchFile(path)
    if len(head) > 8 and head[8:9] == b"{":
        (header,) = struct.unpack("<Q", head[:8])
        if header > min(_SAFETENSORS_HEADER_LIMIT, size - 8):
            raise CheckpointError(
                f"{path.name} is truncated: its header announces more than the {size:,} bytes "
                "that are here; download it again"
            )
        return SafetensorsFile(path)
    raise CheckpointError(
        f"{path.name} is not a checkpoint: it is neither safetensors nor a torch file"
    )


def some_names(names: Iterable[str]) -> str:
    """The first three names for a message, and how many more there are."""
    names = list(names)
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def misfits(missing: Sequence[str], unexpected: Sequence[str], misshapen: Sequence[str]) -> str:
    """What keeps a file's tensors from a model, for a message; empty where nothing does."""
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    return "; ".join(f"{len(keys)} {kind} ({some_names(keys)})" for kind, keys in kinds if keys)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; the file replaces `path` once it is whole.

    Whoever is killed meanwhile leaves the old file as it was.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _not_weights(head: bytes, size: int) -> str | None:
    text = head.lstrip().lower()
    if size == 0:
        return "the file is empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "it is an HTML page, probably a login or error page saved by a download without "
            "access to the repository"
        )
    if text.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer; fetch the file itself with `git lfs pull`"
    if text.startswith((b"{", b"[")):
        return "it is a JSON text, perhaps an error message of the server or a config.json"
    if re.match(rb"(access|repository|entry|invalid|not found|unauthorized)", text):
        return "it is a server's error message"
    return None


def _shards(index: Path) -> dict[Path, None]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{index.name} is not an index of safetensors shards") from error
    folder = index.parent
    missing = sorted(str(name) for name in names if not (folder / Path(str(name)).name).is_file())
    if missing:
        raise CheckpointError(f"shards are missing beside {index.name}: {', '.join(missing[:3])}")
    # Only names beside the index: an index must not read from elsewhere.
    return dict.fromkeys(sorted(folder / Path(str(name)).name for name in names))


def _flat_tensors(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """The model's tensors of what `torch.save` wrote, which may be a training run's whole state."""
    for _ in range(_MOST_WRAPPERS):  # a dict may hold itself
        if isinstance(content, Mapping):
            inner = (content.get(name) for name in _WRAPPERS)
            content = next((one for one in inner if isinstance(one, Mapping)), content)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, not named tensors")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"{path.name} holds no tensors")
    for prefix in _PREFIXES * 2:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors
