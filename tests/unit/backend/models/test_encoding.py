"""Images as the model sees them: from the cache, and from the mirror's as well."""

from pathlib import Path

import numpy as np
import pytest
import torch

from backend.models.encoding import EncodedImage
from medsam3_model import MedSAM3
from medsam3_model.embeddings.embedding_cache import EmbeddingCache
from tests.support.embeddings import MB, picture


@pytest.fixture(scope="module")
def model() -> MedSAM3:
    return MedSAM3.from_pretrained("tiny")


def test_a_mirror_is_encoded_once_and_only_when_it_is_looked_at(
    model: MedSAM3, tmp_path: Path
) -> None:
    reads: list[None] = []

    def read() -> np.ndarray:
        reads.append(None)
        return picture(1)

    def cache() -> EmbeddingCache:
        return EmbeddingCache(tmp_path, memory_bytes=MB, disk_bytes=100 * MB)

    first = cache()
    image = EncodedImage(first, "a", read)
    whole = image.whole(model)
    part = image.part(model, (10, 10, 50, 50))
    assert first.counts["embedding_misses"] == 2
    assert whole.mirrored is not None
    assert part.mirrored is not None
    for embedding, pixels in ((whole, picture(1)), (part, picture(1)[10:50, 10:50])):
        mirrored = embedding.mirrored()
        assert embedding.mirrored() is mirrored
        right = model.encode_image(pixels[:, ::-1].copy(), rounded=True)
        torch.testing.assert_close(mirrored.last_hidden_state, right.last_hidden_state)
    assert first.counts["embedding_misses"] == 4
    assert len(reads) == 1

    later = cache()
    again = EncodedImage(later, "a", read).whole(model)
    assert again.mirrored is not None
    assert torch.equal(again.mirrored().last_hidden_state, whole.mirrored().last_hidden_state)
    assert later.counts == {"embedding_disk_hits": 2}
    assert len(reads) == 1


def test_a_model_that_does_not_look_into_mirrors_is_left_alone(
    model: MedSAM3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "mirrors", False)
    cache = EmbeddingCache(tmp_path, memory_bytes=MB, disk_bytes=100 * MB)
    assert EncodedImage(cache, "a", lambda: picture(1)).whole(model).mirrored is None


def test_a_passing_part_is_kept_nowhere(model: MedSAM3, tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, memory_bytes=MB, disk_bytes=100 * MB)
    image = EncodedImage(cache, "a", lambda: picture(1))
    part = image.part(model, (0, 0, 40, 40), keep=False)
    assert part.mirrored is not None
    part.mirrored()
    assert not cache.counts
