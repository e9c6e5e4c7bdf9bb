"""Caches of embeddings, in memory and on disk, so that an image is encoded once.

An embedding depends on the image and on the frozen encoder alone, so it stays valid when another
detector is swapped in. Memory keeps what the detector reads; disk keeps the vision transformer's
output in 16 bit, a tenth of that, from which the neck makes it again in a small part of the
encoder's time. What was just encoded is rounded likewise: the same image has the same answer,
whether a cache had it or not, and a training run that begins again goes on with the same numbers.

Several processes may share a folder: entries appear by an atomic rename, carry a checksum, and a
damaged or vanished one counts as absent. A full disk costs speed, never an answer. Behind the disk
there may be a tier that all machines share, see `shared_embeddings`.

The module imports without torch, so that entries can be removed by processes that have no model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam3_model.embeddings.shared_embeddings import SharedEmbeddings
from medsam3_model.errors import EmbeddingStoreError
from medsam3_model.types import ImageEmbedding, TextEmbedding, stored_form

if TYPE_CHECKING:
    import torch

    from medsam3_model.predictor import MedSAM3

log = logging.getLogger(__name__)

_FORMAT = "1"
_TEXTS_KEPT = 4096  # 32 KB each at full size
_UNFINISHED_S = 3600.0  # an unfinished entry this old was left by a process that died
# Of the limit: what a process may write before it looks again at what is in the folder, which it
# shares with others. Looking costs a call of the system for each entry.
_LOOK_AGAIN_AFTER = 0.1


class _Counted:
    """Hits and misses that a caller may read and publish.

    Attributes:
        counts: since the start.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        self._counts_lock = threading.Lock()

    def take_counts(self) -> dict[str, float]:
        """What was added to `counts` since the last call."""
        with self._counts_lock:
            new = self.counts - self._taken
            self._taken = self.counts.copy()
        return {name: float(count) for name, count in new.items()}

    def _count(self, name: str, amount: int = 1) -> None:
        with self._counts_lock:
            self.counts[name] += amount


class TextCache(_Counted):
    """Text embeddings in memory, least recently used ones dropped first.

    Its counts are `text_embedding_hits` and `text_embedding_misses`.
    """

    def __init__(self, kept: int = _TEXTS_KEPT) -> None:
        """Keep at most so many phrases."""
        super().__init__()
        self._kept = kept
        self._texts: OrderedDict[tuple[str, str, str], TextEmbedding] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, model: MedSAM3, phrases: Sequence[str]) -> TextEmbedding:
        """The embedding of phrases, of which only the new ones are encoded.

        Raises PromptError where there is no phrase, or an empty one.
        """
        keys = [(model.base_hash, str(model.dtype), phrase) for phrase in phrases]
        with self._lock:
            known = {key: self._texts[key] for key in keys if key in self._texts}
            for key in known:
                self._texts.move_to_end(key)
        unknown = [key for key in dict.fromkeys(keys) if key not in known]
        if unknown or not keys:
            encoded = model.encode_text([phrase for _, _, phrase in unknown])
            known.update({key: encoded[index] for index, key in enumerate(unknown)})
        self._count("text_embedding_hits", len(keys) - len(unknown))
        self._count("text_embedding_misses", len(unknown))
        with self._lock:
            for key in unknown:
                self._texts[key] = known[key]
            while len(self._texts) > self._kept:
                self._texts.popitem(last=False)
        return TextEmbedding.concatenate([known[key] for key in keys])


class EmbeddingCache(_Counted):
    """Image embeddings, least recently used ones dropped first.

    Its counts are `embedding_memory_hits`, `embedding_disk_hits`, `embedding_shared_hits`,
    `embedding_misses`, `embedding_entries_dropped` (damaged), `embedding_disk_errors` and
    `embedding_shared_errors`.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        memory_bytes: int,
        disk_bytes: int,
        shared: SharedEmbeddings | None = None,
    ) -> None:
        """Open or create a cache.

        Args:
            folder: for the disk's part; None keeps everything in memory.
            memory_bytes: limit of what this process keeps in memory (the device's memory, where
                the model is on a GPU); at least the latest embedding is kept.
            disk_bytes: limit of the folder, over all processes; 0 writes nothing.
            shared: the tier behind the disk, if there is one.
        """
        super().__init__()
        self._folder = folder if disk_bytes > 0 else None
        self._memory_bytes = memory_bytes
        self._disk_bytes = disk_bytes
        self._shared = shared
        self._images: OrderedDict[tuple[str, str], ImageEmbedding] = OrderedDict()
        self._image_bytes = 0
        self._disk_used = 0
        self._unseen: float | None = None  # bytes written since the folder was looked at
        self._oldest: deque[tuple[int, int, Path]] = deque()
        self._lock = threading.Lock()

    def get(
        self,
        model: MedSAM3,
        image_key: str,
        encode: Callable[[], ImageEmbedding],
        *,
        in_memory: bool = True,
    ) -> ImageEmbedding:
        """The embedding of an image, encoded only if neither memory nor disk has it.

        Args:
            model: whose encoder is meant.
            image_key: what identifies the pixels: a hash of the file, and the page if it has
                several.
            encode: called on a miss.
            in_memory: whether memory keeps it, too; not where it is used once, or a batch would
                push out what somebody works on.
        """
        key = _key(model, image_key)
        # The disk keeps what no neck has touched; memory also what this version's made of it.
        in_memory_key = key, model.neck_hash
        with self._lock:
            embedding = self._images.get(in_memory_key)
            if embedding is not None:
                self._images.move_to_end(in_memory_key)
                self._count("embedding_memory_hits")
                return embedding
        # Unlocked: two threads may encode one image, but none waits for another's image.
        embedding = self._read(model, key) or self._read_shared(model, key, image_key)
        if embedding is None:
            self._count("embedding_misses")
            # The caller's image would be kept as long as a way to its mirror image.
            embedding = replace(_rounded(model, encode()), mirrored=None)
            self._keep(key, image_key, embedding)
        if in_memory:
            self._remember(in_memory_key, embedding)
        return embedding

    def _remember(self, key: tuple[str, str], embedding: ImageEmbedding) -> None:
        with self._lock:
            # Another thread may have made the same one meanwhile.
            replaced = self._images.pop(key, None)
            self._image_bytes += embedding.nbytes - (replaced.nbytes if replaced else 0)
            self._images[key] = embedding
            while self._image_bytes > self._memory_bytes and len(self._images) > 1:
                _, dropped = self._images.popitem(last=False)
                self._image_bytes -= dropped.nbytes

    # -- disk -------------------------------------------------------------------------------

    def _path(self, key: str) -> Path | None:
        return self._folder and self._folder / key[:2] / f"{key}.safetensors"

    def _read(self, model: MedSAM3, key: str) -> ImageEmbedding | None:
        path = self._path(key)
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError:
            return None
        embedding = self._unpacked(model, content)
        if embedding is None:
            _unlink(path)
            return None
        with contextlib.suppress(OSError):
            _used_now(path)
        self._count("embedding_disk_hits")
        return embedding

    def _read_shared(self, model: MedSAM3, key: str, image_key: str) -> ImageEmbedding | None:
        """From the shared tier; the disk has it from now on."""
        if self._shared is None:
            return None
        try:
            content = self._shared.read(key, image_key)
        except EmbeddingStoreError as error:
            log.warning("%s: images are encoded again.", error)
            self._count("embedding_shared_errors")
            return None
        embedding = None if content is None else self._unpacked(model, content)
        if content is None or embedding is None:
            return None
        self._count("embedding_shared_hits")
        self._write(key, content)
        return embedding

    def _unpacked(self, model: MedSAM3, content: bytes) -> ImageEmbedding | None:
        """An entry's embedding; None where it is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(content)
            notes = json.loads(bytes(tensors["notes"].tolist()))
            hidden = tensors["last_hidden_state"]
            if notes["checksum"] != _checksum(hidden):
                raise ValueError("checksum")
            height, width = notes["original_size"]
        except (SafetensorError, KeyError, ValueError, TypeError):
            log.warning("A damaged image embedding was dropped; the image is encoded again.")
            self._count("embedding_entries_dropped")
            return None
        return model.restore_embedding(hidden, (height, width))

    def _keep(self, key: str, image_key: str, embedding: ImageEmbedding) -> None:
        """Write an entry to the disk and to the shared tier, as far as there are such."""
        import torch
        from safetensors.torch import save

        if self._folder is None and self._shared is None:
            return
        hidden = stored_form(embedding.last_hidden_state).to("cpu", copy=True).contiguous()
        notes = {
            "checksum": _checksum(hidden),
            "original_size": embedding.original_size,
            "image_key": image_key,  # by which `remove_embeddings` finds what is to be removed
        }
        packed = torch.tensor(list(json.dumps(notes).encode()), dtype=torch.uint8)
        content = save({"last_hidden_state": hidden, "notes": packed})
        self._write(key, content)
        if self._shared is not None:
            self._shared.write(key, image_key, content)

    def _write(self, key: str, content: bytes) -> None:
        path = self._path(key)
        if path is None:
            return
        # A reader sees the old entry or the new one; the name tells apart processes and threads
        # that write the same one at once.
        unfinished = path.with_name(f".{key}.{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(len(content))
            unfinished.write_bytes(content)
            _used_now(unfinished)
            unfinished.replace(path)
        except OSError as error:
            if not self.counts["embedding_disk_errors"]:
                log.warning("Image embeddings are not kept on disk: %s.", error.strerror)
            self._count("embedding_disk_errors")
            _unlink(unfinished)
            return

    def _make_room(self, needed: int) -> None:
        """Drop the entries used longest ago, no more of them than what is to be written needs.

        What fits stays: of images that are gone through again, every one that is dropped too soon
        is encoded again.
        """
        with self._lock:
            if self._unseen is None or self._unseen > self._disk_bytes * _LOOK_AGAIN_AFTER:
                self._look()
            looked = False
            while self._disk_used + needed > self._disk_bytes:
                if not self._oldest:
                    if looked:
                        break
                    self._look()
                    looked = True
                    continue
                used_at, size, path = self._oldest.popleft()
                try:
                    if path.stat().st_mtime_ns != used_at:
                        continue  # used since
                    path.unlink()
                except OSError:
                    continue  # another process dropped it, and wrote as much as that
                self._disk_used -= size
            self._disk_used += needed
            self._unseen = (self._unseen or 0) + needed

    def _look(self) -> None:
        """Count what is in the folder, and note in which order it is to go."""
        entries = sorted(self._entries())
        self._disk_used = sum(size for _, size, _ in entries)
        self._oldest = deque(entries)
        self._unseen = 0

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(time of last use in ns, bytes, path) of all entries."""
        entries = []
        for path in self._folder.glob("*/*") if self._folder else ():
            try:
                status = path.stat()
            except OSError:
                continue  # another process dropped it
            if path.suffix == ".safetensors":
                entries.append((status.st_mtime_ns, status.st_size, path))
            elif status.st_mtime < time.time() - _UNFINISHED_S:
                _unlink(path)
        return entries


@dataclass(frozen=True)
class EmbeddingPlaces:
    """Where an installation's embeddings lie: a machine's own folder, and the shared tier, if any.

    folder: of `EmbeddingCache`s; may be missing. shared_url: of `SharedEmbeddings`.
    """

    folder: Path
    shared_url: str | None = None

    def remove(self, image_hashes: Collection[str]) -> tuple[int, int]:
        """Remove the cached embeddings of images, without loading them.

        Args:
            image_hashes: the images' hashes, with which their cache keys begin.

        Returns:
            How many files went, and how many bytes.

        Raises:
            EmbeddingStoreError: the shared tier does not answer; the folder's part is done.
        """
        files, size = self._remove_from_folder(set(image_hashes))
        if self.shared_url is None or not image_hashes:
            return files, size
        more, their_size = SharedEmbeddings(self.shared_url).remove(image_hashes)
        return files + more, size + their_size

    def _remove_from_folder(self, hashes: set[str]) -> tuple[int, int]:
        files = size = 0
        lengths = {len(hash_) for hash_ in hashes}
        for path in self.folder.glob("*/*.safetensors") if hashes else ():
            try:
                key = str(_notes(path).get("image_key", ""))
                if not any(key[:length] in hashes for length in lengths):
                    continue
                entry_bytes = path.stat().st_size
                path.unlink()
            except OSError:
                continue  # another process dropped it
            files, size = files + 1, size + entry_bytes
        return files, size


def _rounded(model: MedSAM3, embedding: ImageEmbedding) -> ImageEmbedding:
    """An embedding as it comes back from disk."""
    import torch

    before = embedding.last_hidden_state
    hidden = stored_form(before)
    # What the encoder rounded before its neck is what the disk would give back.
    if hidden.dtype == before.dtype or torch.equal(hidden.to(before.dtype), before):
        return embedding
    return model.restore_embedding(hidden, embedding.original_size)


def _key(model: MedSAM3, image_key: str) -> str:
    parts = (_FORMAT, model.encoder_hash, str(model.dtype), str(model.image_size), image_key)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _checksum(tensor: torch.Tensor) -> int:
    import torch

    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _used_now(path: Path) -> None:
    """Note the moment to the nanosecond; a file system's own clock makes several entries equal."""
    moment = time.time_ns()
    os.utime(path, ns=(moment, moment))


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _notes(path: Path) -> dict[str, Any]:
    """The entry's notes, read by themselves; empty where it is damaged or somebody else's."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            notes: dict[str, Any] = json.loads(file.get_tensor("notes").tobytes())
    except (SafetensorError, ValueError):
        return {}
    return notes
