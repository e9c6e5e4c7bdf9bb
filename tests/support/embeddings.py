"""Embeddings of numbered pictures, how often they were made, and caches for them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medsam3_model import ImageEmbedding, MedSAM3
from medsam3_model.embeddings.embedding_cache import EmbeddingCache
from medsam3_model.types import stored_form

MB = 2**20


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (60, 90, 3), dtype=np.uint8)


class Encoder:
    """Encodes numbered pictures and counts how often."""

    def __init__(self, model: MedSAM3) -> None:
        self.model = model
        self.calls = 0

    def __call__(self, seed: int) -> Callable[[], ImageEmbedding]:
        def encode() -> ImageEmbedding:
            self.calls += 1
            return self.model.encode_image(picture(seed))

        return encode


@dataclass(frozen=True)
class SmallestModel:
    """What a cache needs of a model, with an embedding of two numbers: for thousands of images."""

    encoder_hash: str = "smallest"
    neck_hash: str = "smallest"
    dtype: torch.dtype = torch.float32
    image_size: int = 1

    def restore_embedding(
        self, last_hidden_state: torch.Tensor, original_size: tuple[int, int]
    ) -> ImageEmbedding:
        return ImageEmbedding(
            (), last_hidden_state, original_size, self.encoder_hash, self.neck_hash
        )

    def encode_image(self) -> ImageEmbedding:
        return self.restore_embedding(torch.ones(1, 1, 2), (1, 1))


def same(one: ImageEmbedding, other: ImageEmbedding) -> bool:
    return (
        one.original_size == other.original_size
        and one.encoder_hash == other.encoder_hash
        and all(
            torch.equal(a, b)
            for a, b in zip(one.fpn_hidden_states, other.fpn_hidden_states, strict=True)
        )
    )


def from_disk(model: MedSAM3, embedding: ImageEmbedding) -> ImageEmbedding:
    """What a cache makes of an embedding that it wrote to disk."""
    rounded = stored_form(embedding.last_hidden_state)
    return model.restore_embedding(rounded, embedding.original_size)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def cache_of(folder: Path | None, memory: float = 100, disk: float = 100) -> EmbeddingCache:
    return EmbeddingCache(folder, memory_bytes=int(memory * MB), disk_bytes=int(disk * MB))
