"""The shared tier of the embeddings: entries that all machines of an installation read and write.

It lies at an fsspec address, behind each machine's own disk. What a machine encoded, the others
need not encode again, and a disk that was replaced or is too small costs a download. A store that
is slow or away costs speed, never an answer: nobody waits longer than a moment for it, and after a
failure it is left alone for a while. How long entries stay is the store's to say (a rule of the
bucket); what is forgotten on request is removed.
"""

import hashlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from medsam3_model.errors import EmbeddingStoreError

log = logging.getLogger(__name__)

# Seconds that an image waits for its entry; encoding takes about as long on a slow machine.
_PATIENCE_S = 5.0
# Seconds for which a store that failed is not asked again.
_LEAVE_ALONE_S = 30.0
# Entries that wait to be written; a store that is slower than the encoder misses some.
_MOST_WAITING = 16
# The keys of images begin with the SHA-256 of the file, of so many digits.
_IMAGE_HASH_DIGITS = 64

_Answer = TypeVar("_Answer")


class SharedEmbeddings:
    """Entries of an `EmbeddingCache` below an fsspec address."""

    def __init__(self, url: str) -> None:
        """Name the store; nothing is connected yet.

        Args:
            url: a folder that several machines mount, or an address such as `s3://bucket/prefix`;
                what the protocol needs (such as keys of S3) comes from fsspec's configuration and
                environment variables.
        """
        self._url = url
        self._lock = threading.Lock()
        self._waiting: set[Future[None]] = set()
        self._left_alone_until = 0.0

    def read(self, key: str, image_key: str) -> bytes | None:
        """An entry; None where it is not there, or the store does not answer in time.

        Raises:
            EmbeddingStoreError: the store failed; it is left alone for a while from now on.
        """
        if self._left_alone():
            return None

        def fetch() -> bytes | None:
            files, root = self._opened()
            try:
                content: bytes = files.cat_file(_path(root, key, image_key))
            except FileNotFoundError:
                return None
            return content

        asked = _beside(fetch)
        wait([asked], _PATIENCE_S)
        error = asked.exception() if asked.done() else TimeoutError()
        if error is not None:
            self._left_alone_until = time.monotonic() + _LEAVE_ALONE_S
            raise _failure(error)
        return asked.result()

    def write(self, key: str, image_key: str, content: bytes) -> None:
        """Have an entry written beside what the caller goes on with.

        Too many that wait, or a store that failed, leave it out: another machine encodes again.
        """
        if self._left_alone():
            return

        def store() -> None:
            files, root = self._opened()
            path = _path(root, key, image_key)
            if "file" not in _protocols(files):
                files.pipe_file(path, content)
                return
            # Beside it first: a reader of a shared folder sees a whole entry or none.
            draft = f"{path}.{uuid.uuid4().hex}"
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
            files.pipe_file(draft, content)
            files.mv(draft, path)

        with self._lock:
            self._waiting = {one for one in self._waiting if not one.done()}
            if len(self._waiting) >= _MOST_WAITING:
                return
            future = _beside(store)
            self._waiting.add(future)
        future.add_done_callback(self._written)

    def flush(self) -> None:
        """Wait until what was handed to `write` is written or has failed."""
        with self._lock:
            waiting = list(self._waiting)
        for future in waiting:
            future.exception()

    def remove(self, image_hashes: Collection[str]) -> tuple[int, int]:
        """Remove the entries of images, whatever encoder made them.

        Args:
            image_hashes: SHA-256 of their files, in hexadecimal digits.

        Returns:
            How many files went, and how many bytes.

        Raises:
            EmbeddingStoreError: the store does not answer; what is left is removed by the next
                call.
        """
        files = size = 0
        try:
            store, root = self._opened()
            for image_hash in sorted(image_hashes):
                folder = f"{root}/{_folder(image_hash)}"
                store.invalidate_cache(folder)
                try:
                    found = store.find(folder, detail=True)
                except FileNotFoundError:
                    continue
                for path, facts in found.items():
                    store.rm_file(path)
                    files, size = files + 1, size + int(facts.get("size") or 0)
        except Exception as error:
            raise _failure(error) from error
        return files, size

    def _opened(self) -> tuple[Any, str]:
        """The store's file system and the folder in it; connects with the first call."""
        import fsspec

        files, root = fsspec.core.url_to_fs(self._url)
        return files, str(root).rstrip("/")

    def _written(self, future: "Future[None]") -> None:
        error = future.exception()
        if error is not None:
            log.warning("%s.", _failure(error))
            self._left_alone_until = time.monotonic() + _LEAVE_ALONE_S

    def _left_alone(self) -> bool:
        return time.monotonic() < self._left_alone_until


def _beside(action: Callable[[], _Answer]) -> "Future[_Answer]":
    """Do it in a thread that keeps no process from ending, whatever the store does."""
    future: Future[_Answer] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            future.set_exception(error)

    threading.Thread(target=run, name="embeddings", daemon=True).start()
    return future


def _path(root: str, key: str, image_key: str) -> str:
    return f"{root}/{_folder(image_key)}/{key}.safetensors"


def _folder(image_key: str) -> str:
    """All entries of one image lie together, so that they can be removed without a look inside."""
    return hashlib.sha256(image_key[:_IMAGE_HASH_DIGITS].encode()).hexdigest()[:32]


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)


def _failure(error: BaseException) -> EmbeddingStoreError:
    # Each protocol has errors of its own, with what was sent in their text.
    return EmbeddingStoreError(
        f"The shared store of embeddings is away or refuses ({type(error).__name__})"
    )
