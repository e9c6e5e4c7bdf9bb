"""The mask store: 1-bit PNG files, named after what they show, in a folder or an object store.

The name is the first 128 bits of the SHA-256 over height, width and pixels, not over the file:
another zlib writes other bytes for the same mask, and the mask must keep its name. A file is
written before any row names it and is never changed, so a worker that dies in between leaves at
most a file that nobody names.
"""

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rq.timeouts import BaseTimeoutException

from backend.corrections.cropped_mask import CroppedMask
from backend.database import new_file, remove_drafts
from backend.errors import MaskError, StorageUnavailableError
from backend.labeling.masks import Mask

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# PNG's row filters work on bytes and make 1-bit rows longer, not shorter.
_FILTER_NONE = 0
# A disk and an object store take several files in the time of one: a writer mostly waits.
_WRITERS = 4
# Masks that are written at once, at the size of their images: a large image may have many.
_BATCH_BYTES = 2**27


class MaskStore:
    """Masks by hash below an fsspec address.

    Args:
        url: a folder, or an address such as `s3://bucket/prefix`; what the protocol needs (such
            as keys of S3) comes from fsspec's configuration and environment variables.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = root.rstrip("/")
        protocols = self._fs.protocol
        self._local = "file" in ((protocols,) if isinstance(protocols, str) else protocols)
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="masks")

    def put_all(self, masks: Sequence[CroppedMask]) -> list[str]:
        """Store masks at the size of their images, at the same time; returns their hashes.

        A mask that is there already is not written again.

        Raises:
            StorageUnavailableError: the object store does not answer.
        """
        largest = max((mask.height * -(-mask.width // 8) for mask in masks), default=1)
        step = max(1, _BATCH_BYTES // largest)
        batches = [masks[first : first + step] for first in range(0, len(masks), step)]
        return [name for batch in batches for name in self._put_batch(batch)]

    def _put_batch(self, masks: Sequence[CroppedMask]) -> list[str]:
        packed = [(mask.packed(), mask.width) for mask in masks]
        names = [_hash(rows, len(rows), width) for rows, width in packed]
        new = {
            self._path(name): encode_png(*mask)
            for name, mask in dict(zip(names, packed, strict=True)).items()
            if not self.has(name)
        }
        # A single file needs no other thread; several wait for the disk at the same time.
        write_all = map if len(new) < 2 else self._writers.map
        list(write_all(self._write, new.keys(), new.values()))
        return names

    def has(self, name: str) -> bool:
        """Whether the mask of a hash is there.

        Raises:
            StorageUnavailableError: the object store does not answer.
        """
        path = self._path(name)
        if self._local:
            return os.path.exists(path)
        with self._answers():
            return bool(self._fs.exists(path))

    def get(self, name: str) -> Mask:
        """The mask bool (H, W) of a hash.

        Raises:
            MaskError: it is not there, or not what its name says.
            StorageUnavailableError: the object store does not answer.
        """
        mask = decode_png(self.read(name))
        if _hash(np.packbits(mask, axis=1), *mask.shape) != name:
            raise MaskError(f"mask {name} is damaged: restore {self._root} from a backup")
        return mask

    def read(self, name: str) -> bytes:
        """The PNG file of a hash.

        Raises:
            MaskError: it is not there.
            StorageUnavailableError: the object store does not answer.
        """
        with self._answers():
            try:
                content: bytes = self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                raise MaskError(
                    f"mask {name} is missing below {self._root}: check STORAGE_URL"
                ) from None
        return content

    def remove(self, name: str) -> int:
        """Remove a mask; returns how many bytes went (0 when it was not there).

        Raises:
            StorageUnavailableError: the object store does not answer.
        """
        path = self._path(name)
        with self._answers():
            try:
                size = int(self._fs.size(path) or 0)
                self._fs.rm_file(path)
            except FileNotFoundError:
                return 0
            return size

    def remove_drafts(self) -> None:
        """Remove what killed writers left; an object store keeps nothing unfinished."""
        if self._local:
            remove_drafts(Path(self._root))

    def _path(self, name: str) -> str:
        # Two levels of folders would be too many for object stores and one is enough for files.
        return f"{self._root}/{name[:2]}/{name}.png"

    def _write(self, path: str, content: bytes) -> None:
        if self._local:
            # The row that will name this file survives a power failure; so must the file.
            with new_file(Path(path), durable=True) as draft:
                draft.write_bytes(content)
        else:
            with self._answers():
                self._fs.pipe_file(path, content)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Name what an object store's protocol raises where the store is away or refuses."""
        try:
            yield
        except (MaskError, BaseTimeoutException):
            raise
        except Exception as error:
            if self._local:
                raise
            # Each protocol has errors of its own, with what was sent in their text.
            raise StorageUnavailableError(
                f"The object store of masks does not answer ({type(error).__name__}): check "
                "STORAGE_URL, and that it answers."
            ) from error


def encode_png(packed: NDArray[np.uint8], width: int) -> bytes:
    """A 1-bit greyscale PNG (foreground 1, white).

    Args:
        packed: uint8 (H, ceil(width / 8)), rows packed most significant bit first.
        width: in pixels.
    """
    height = packed.shape[0]
    rows = np.empty((height, packed.shape[1] + 1), np.uint8)
    rows[:, 0], rows[:, 1:] = _FILTER_NONE, packed
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    # A mask is made of long runs; to look for nothing else takes a third of the time.
    deflate = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", deflate.compress(rows.tobytes()) + deflate.flush()),
            _chunk(b"IEND", b""),
        )
    )


def decode_png(content: bytes) -> Mask:
    """Read a mask file: bool (H, W).

    Raises:
        MaskError: it is no 1-bit PNG.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.mode != "1":
                raise MaskError(f"a mask file has mode {image.mode}, not 1 bit")
            return np.array(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise MaskError(f"a mask file cannot be read ({type(error).__name__})") from error


def _hash(packed: NDArray[np.uint8], height: int, width: int) -> str:
    digest = hashlib.sha256(struct.pack(">II", height, width))
    digest.update(np.ascontiguousarray(packed).data)
    return digest.hexdigest()[:32]


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
