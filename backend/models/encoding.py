"""Images as the model sees them: decoded at most once, their embeddings from the cache."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property
from time import perf_counter
from typing import TYPE_CHECKING

from backend.processes.counters import StageTimes, WorkStage
from backend.processes.memory import cache_limits
from backend.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medsam3_model import ImageEmbedding, MedSAM3
    from medsam3_model.box_answers import Window
    from medsam3_model.embeddings.embedding_cache import EmbeddingCache, EmbeddingPlaces


def embedding_cache(settings: Settings) -> "EmbeddingCache":
    """The cache that the settings describe; all processes of a machine share its folder."""
    from medsam3_model.embeddings.embedding_cache import EmbeddingCache
    from medsam3_model.embeddings.shared_embeddings import SharedEmbeddings

    shared_url = settings.embedding_store_url
    return EmbeddingCache(
        settings.embedding_dir,
        memory_bytes=cache_limits(settings).embeddings,
        disk_bytes=settings.embedding_disk_mb * 2**20,
        shared=SharedEmbeddings(shared_url) if shared_url else None,
    )


def embedding_places(settings: Settings) -> "EmbeddingPlaces":
    """Where the embeddings lie that go when an image is forgotten."""
    from medsam3_model.embeddings.embedding_cache import EmbeddingPlaces

    return EmbeddingPlaces(settings.embedding_dir, settings.embedding_store_url)


class EncodedImage:
    """An image and its embeddings, for the time of one prediction.

    It is decoded when the cache misses an embedding, and then kept: where there are small objects,
    up to four parts of it are encoded beside the whole.

    Args:
        cache: of embeddings.
        key: what identifies the pixels, the SHA-256 of the file.
        read: decodes it, RGB uint8 (H, W, 3).
        times: where decoding and encoding are counted, if anywhere.
        in_memory: whether memory keeps its embeddings, as far as the cache keeps them at all.
    """

    def __init__(
        self,
        cache: "EmbeddingCache",
        key: str,
        read: Callable[[], "NDArray[np.uint8]"],
        times: StageTimes | None = None,
        *,
        in_memory: bool = True,
    ) -> None:
        self._cache, self.key, self._read = cache, key, read
        self._times, self._in_memory = times, in_memory

    @cached_property
    def rgb(self) -> "NDArray[np.uint8]":
        """The pixels, RGB uint8 (H, W, 3)."""
        return self._read()

    def whole(self, model: "MedSAM3") -> "ImageEmbedding":
        """The embedding of the whole image."""
        return self._encoded(self.key, model, lambda: self.rgb)

    def part(self, model: "MedSAM3", window: "Window", *, keep: bool = True) -> "ImageEmbedding":
        """A part of the image, encoded as an image of its own.

        Args:
            model: whose encoder is used.
            window: x0, y0, x1, y1 in pixels, the last ones exclusive.
            keep: whether the cache keeps it.
        """
        x0, y0, x1, y1 = window
        key = f"{self.key}-window-{x0}-{y0}-{x1}-{y1}" if keep else None
        return self._encoded(key, model, lambda: self.rgb[y0:y1, x0:x1])

    def _encoded(
        self, key: str | None, model: "MedSAM3", read: Callable[[], "NDArray[np.uint8]"]
    ) -> "ImageEmbedding":
        """From the cache, and so is its mirror image's when a model asks for that."""
        keep = key is not None
        embedding = self._timed(key, model, lambda: model.encode_image(read(), rounded=keep))
        if not model.mirrors:
            return embedding

        def mirrored() -> "ImageEmbedding":
            return self._timed(
                key and f"{key}-mirrored",
                model,
                lambda: model.encode_mirrored(read(), rounded=keep),
            )

        return replace(embedding, mirrored=cache(mirrored))

    def _timed(
        self, key: str | None, model: "MedSAM3", encode: Callable[[], "ImageEmbedding"]
    ) -> "ImageEmbedding":
        """From the cache, or encoded, which counts as a stage; without a key it is not kept."""
        encoded = False

        def timed() -> "ImageEmbedding":
            nonlocal encoded
            encoded = True
            return encode()

        began = perf_counter()
        embedding = (
            timed()
            if key is None
            else self._cache.get(model, key, timed, in_memory=self._in_memory)
        )
        if encoded and self._times is not None:
            # With writing it to disk: only then has a GPU finished what it was told.
            self._times.observe(WorkStage.ENCODE, perf_counter() - began)
        return embedding
