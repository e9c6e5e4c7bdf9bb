"""Embeddings are made once, survive restarts, and no trouble on disk changes an answer."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from transformers import Sam3Config

from medsam3_model import ImageEmbedding, MedSAM3
from medsam3_model.embeddings import embedding_cache
from medsam3_model.embeddings.embedding_cache import EmbeddingPlaces, TextCache
from medsam3_model.errors import PromptError
from medsam3_model.training.replay import bundled_replay
from tests.support import sam3_reference
from tests.support.embeddings import MB, Encoder, cache_of, entries, from_disk, same
from tests.support.masks import dice


@pytest.fixture(scope="module")
def model(facebook_checkpoint: Path) -> MedSAM3:
    return MedSAM3.from_pretrained(
        facebook_checkpoint, config=sam3_reference.config(), device="cpu"
    )


@pytest.fixture(scope="module")
def bundled() -> MedSAM3:
    return MedSAM3.from_pretrained("tiny", device="cpu")


def test_second_look_comes_from_memory_and_a_new_process_reads_the_disk(
    model: MedSAM3, tmp_path: Path
) -> None:
    encoder, cache = Encoder(model), cache_of(tmp_path)
    first = cache.get(model, "a", encoder(1))
    assert cache.get(model, "a", encoder(1)) is first
    restarted = cache_of(tmp_path)
    assert same(restarted.get(model, "a", encoder(1)), from_disk(model, first))
    assert encoder.calls == 1
    assert cache.take_counts() == {"embedding_misses": 1, "embedding_memory_hits": 1}
    assert cache.take_counts() == {}
    assert restarted.take_counts() == {"embedding_disk_hits": 1}


def test_disk_keeps_the_smallest_of_what_could_be_kept(model: MedSAM3, tmp_path: Path) -> None:
    embedding = cache_of(tmp_path).get(model, "a", Encoder(model)(1))
    (entry,) = entries(tmp_path)
    assert entry.stat().st_size < embedding.last_hidden_state.nbytes / 2 + 1000
    assert entry.stat().st_size < embedding.nbytes / 10


def test_entry_of_the_full_model_takes_ten_megabytes() -> None:
    vision = Sam3Config().vision_config.backbone_config
    patches = (vision.image_size // vision.patch_size) ** 2
    hidden = torch.empty(1, patches, vision.hidden_size, device="meta")
    tensors = {"last_hidden_state": torch.zeros(1), "notes": torch.zeros(300, dtype=torch.uint8)}
    halves = hidden.to(torch.float16)
    assert hidden.nbytes / MB == 20.25
    assert (halves.nbytes + len(save(tensors))) / MB <= 10.2


def test_values_beyond_16_bit_keep_their_type(model: MedSAM3, tmp_path: Path) -> None:
    def encode() -> ImageEmbedding:
        right = Encoder(model)(1)()
        right.last_hidden_state[0, 0, 0] = 1e6
        return right

    cache_of(tmp_path).get(model, "a", encode)
    read = cache_of(tmp_path).get(model, "a", encode)
    assert read.last_hidden_state.dtype == torch.float32
    assert torch.equal(read.last_hidden_state, encode().last_hidden_state)


def test_entry_of_an_earlier_release_in_32_bit_is_read(
    model: MedSAM3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(embedding_cache, "stored_form", torch.Tensor.detach)
        right = cache_of(tmp_path).get(model, "a", Encoder(model)(1))
    later = cache_of(tmp_path)
    assert same(later.get(model, "a", Encoder(model)(2)), right)
    assert later.counts == {"embedding_disk_hits": 1}


def test_masks_from_16_bit_are_those_from_32(bundled: MedSAM3, tmp_path: Path) -> None:
    compared = []
    for image in bundled_replay()[::25]:
        encode = partial(bundled.encode_image, image.read())
        first = replace(encode(), mirrored=None)
        made = cache_of(tmp_path).get(bundled, image.key, encode)
        again = cache_of(tmp_path).get(bundled, image.key, Encoder(bundled)(1))
        assert torch.equal(again.last_hidden_state, first.last_hidden_state.half().float())
        assert same(made, again)
        texts = bundled.encode_text(list(image.layers()))
        for exact, rounded in zip(
            bundled.detect_all(first, texts), bundled.detect_all(again, texts), strict=True
        ):
            mask, other = exact.concept_mask()[0], rounded.concept_mask()[0]
            if mask.any() or other.any():
                compared.append(dice(mask, other))
    assert len(compared) >= 5
    assert min(compared) >= 0.999


def test_detectors_share_embeddings_and_encoders_do_not(
    model: MedSAM3, facebook_checkpoint: Path, adapter_file: Path, tmp_path: Path
) -> None:
    encoder, cache = Encoder(model), cache_of(tmp_path)
    detector = model.save_detector(tmp_path / "d.safetensors", base="sam3", name="other")
    cache.get(model, "a", encoder(1))
    cache.get(model.with_detector(detector), "a", encoder(1))
    assert encoder.calls == 1
    adapted = MedSAM3.from_pretrained(
        facebook_checkpoint, adapter_file, sam3_reference.config(), device="cpu"
    )
    cache.get(adapted, "a", Encoder(adapted)(1))
    in_half = MedSAM3.from_pretrained(
        facebook_checkpoint, config=sam3_reference.config(), device="cpu", dtype="bfloat16"
    )
    assert cache.get(in_half, "a", Encoder(in_half)(1)).last_hidden_state.dtype == torch.bfloat16
    assert cache.counts["embedding_misses"] == 3


def test_memory_stays_within_its_limit(model: MedSAM3) -> None:
    encoder = Encoder(model)
    size = encoder(0)().nbytes
    cache = cache_of(None, memory=2.5 * size / MB)
    for seed in (1, 2, 3, 2):
        cache.get(model, str(seed), encoder(seed))
    assert cache.counts["embedding_memory_hits"] == 1
    cache.get(model, "1", encoder(1))  # the first to go
    assert cache.counts["embedding_misses"] == 4


def test_disk_stays_within_its_limit_and_drops_what_was_used_longest_ago(
    model: MedSAM3, tmp_path: Path
) -> None:
    encoder = Encoder(model)
    cache_of(tmp_path / "one").get(model, "0", encoder(0))
    size = entries(tmp_path / "one")[0].stat().st_size
    folder = tmp_path / "limited"
    limit = 3.5 * size / MB
    for seed in range(5):
        cache_of(folder, disk=limit).get(model, str(seed), encoder(seed))
        for entry in entries(folder):  # the clock of a file system is coarse
            os.utime(entry, (entry.stat().st_atime, entry.stat().st_mtime - 10))
        cache_of(folder, disk=limit).get(model, "0", encoder(0))
    assert sum(entry.stat().st_size for entry in entries(folder)) <= limit * MB
    calls = encoder.calls
    cache_of(folder, disk=limit).get(model, "0", encoder(0))
    assert encoder.calls == calls
    cache_of(folder, disk=limit).get(model, "1", encoder(1))
    assert encoder.calls == calls + 1


def damage_nothing_but_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 5000),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        damage_nothing_but_a_bit,
    ],
    ids=["emptied", "overwritten", "truncated", "one bit"],
)
def test_damaged_entry_is_dropped_and_made_again(
    model: MedSAM3, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    encoder = Encoder(model)
    right = cache_of(tmp_path).get(model, "a", encoder(1))
    damage(entries(tmp_path)[0])
    cache = cache_of(tmp_path)
    assert same(cache.get(model, "a", encoder(1)), right)
    assert cache.counts["embedding_entries_dropped"] == 1
    assert encoder.calls == 2
    assert same(cache_of(tmp_path).get(model, "a", encoder(1)), from_disk(model, right))
    assert encoder.calls == 2


def test_folder_that_cannot_be_written_costs_only_speed(model: MedSAM3, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    encoder, cache = Encoder(model), cache_of(tmp_path / "file")
    right = encoder(1)()
    assert same(cache.get(model, "a", encoder(1)), from_disk(model, right))
    assert cache.counts["embedding_disk_errors"] == 1
    assert cache.get(model, "a", encoder(1)) is not None
    assert encoder.calls == 2


def test_unfinished_entry_of_a_dead_process_is_removed(model: MedSAM3, tmp_path: Path) -> None:
    left = tmp_path / "ab" / ".abc.1.2"
    left.parent.mkdir()
    left.write_bytes(b"x")
    os.utime(left, (0, 0))
    cache_of(tmp_path).get(model, "a", Encoder(model)(1))
    assert not left.exists()


# -- texts ----------------------------------------------------------------------------------


def test_only_new_phrases_are_encoded(model: MedSAM3) -> None:
    cache = TextCache()
    cache.get(model, ["optic cup", "polyp"])
    found = cache.get(model, ["breast tumor", "polyp", "breast tumor"])
    assert cache.take_counts() == {"text_embedding_hits": 2, "text_embedding_misses": 3}
    assert found.phrases == ("breast tumor", "polyp", "breast tumor")
    direct = model.encode_text(["breast tumor", "polyp", "breast tumor"])
    torch.testing.assert_close(found.features, direct.features, atol=1e-5, rtol=0)
    assert torch.equal(found.attention_mask, direct.attention_mask)


def test_text_cache_forgets_the_least_recently_used(model: MedSAM3) -> None:
    cache = TextCache(kept=2)
    for phrase in ("a", "b", "a", "c", "a", "b"):
        cache.get(model, [phrase])
    assert cache.counts["text_embedding_misses"] == 4


def test_no_phrase_is_refused(model: MedSAM3) -> None:
    with pytest.raises(PromptError):
        TextCache().get(model, [])


def entry(path: Path, image_key: str) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = torch.tensor(list(f'{{"image_key": "{image_key}"}}'.encode()), dtype=torch.uint8)
    save_file({"last_hidden_state": torch.zeros(3, 4), "notes": notes}, path)
    return path.stat().st_size


def test_only_the_named_images_go(tmp_path: Path) -> None:
    first = entry(tmp_path / "aa" / "1.safetensors", "f" * 64)
    page = entry(tmp_path / "ab" / "2.safetensors", "f" * 64 + ":1")
    entry(tmp_path / "ac" / "3.safetensors", "e" * 64)
    assert EmbeddingPlaces(tmp_path).remove({"f" * 64}) == (2, first + page)
    assert [path.name for path in tmp_path.glob("*/*")] == ["3.safetensors"]


def test_damaged_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "aa").mkdir()
    (tmp_path / "aa" / "x.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "aa" / "y.safetensors").write_bytes(b"")
    assert EmbeddingPlaces(tmp_path).remove({"f" * 64}) == (0, 0)
    assert len(list(tmp_path.glob("*/*"))) == 2


def test_a_missing_folder_holds_nothing(tmp_path: Path) -> None:
    assert EmbeddingPlaces(tmp_path / "none").remove({"f" * 64}) == (0, 0)
