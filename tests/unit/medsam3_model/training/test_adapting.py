"""Training with an adapter of the encoder: what learns, what is encoded, and how it goes on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medsam3_model.checkpoints.detectors import detector_state, load_detector
from medsam3_model.checkpoints.encoder_adapter import adapter_part
from medsam3_model.checkpoints.tokenizer import build_tokenizer
from medsam3_model.predictor import MedSAM3
from medsam3_model.pretraining.phrases import all_phrases
from medsam3_model.training.adapting import adapted, stem_of
from medsam3_model.training.fine_tuning import FineTuned, TrainingProgress, fine_tune
from medsam3_model.training.settings import TrainingSettings
from tests.support.discs import cache_in, disc, disc_image, small_model, small_network

FEW = TrainingSettings(
    steps=4, views=1, images_per_step=2, learning_rate=1e-3, warm_up=1, adapter=True
)
IMAGES = [disc_image(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def model() -> MedSAM3:
    return small_model()


@pytest.fixture(scope="module")
def tuned(model: MedSAM3) -> MedSAM3:
    return run(model, None).model


def run(model: MedSAM3, folder: Path | None, **changes: object) -> FineTuned:
    arguments: dict[str, object] = {"settings": FEW, "cache": cache_in(folder), **changes}
    return fine_tune(model, IMAGES, name="s", base="b", **arguments)  # type: ignore[arg-type]


def adapter_of(model: MedSAM3) -> dict[str, torch.Tensor]:
    return adapter_part(detector_state(model.model))


def frozen(model: MedSAM3) -> dict[str, torch.Tensor]:
    return {
        key: value.clone()
        for key, value in model.model.state_dict().items()
        if key.startswith(("vision_encoder.backbone.", "text_"))
    }


def test_what_the_stem_made_becomes_what_the_model_sees(tuned: MedSAM3, model: MedSAM3) -> None:
    stem, rgb = stem_of(tuned), disc(1)[0]
    assert stem.encoder_hash == stem_of(model).encoder_hash, "shared by all versions of a base"
    for version in (tuned, model):
        seen, whole = adapted(version, stem.encode_image(rgb)), version.encode_image(rgb)
        torch.testing.assert_close(seen.last_hidden_state, whole.last_hidden_state)
        assert (seen.encoder_hash, seen.neck_hash) == (whole.encoder_hash, whole.neck_hash)


def test_the_adapter_learns_and_the_start_stays(model: MedSAM3) -> None:
    before = frozen(model)
    version = run(model, None).model
    assert all(torch.equal(value, before[key]) for key, value in frozen(model).items())
    assert not adapter_of(model)
    moved = adapter_of(version)
    assert all(value.any() for key, value in moved.items() if key.endswith("lora_b"))
    assert version.encoder_hash != model.encoder_hash == version.base_hash


def test_without_one_the_encoder_stays(model: MedSAM3) -> None:
    plain = run(model, None, settings=replace(FEW, adapter=False)).model
    assert plain.encoder_hash == model.encoder_hash
    assert not adapter_of(plain)


def test_what_the_stem_made_is_kept_for_later_runs(model: MedSAM3, tmp_path: Path) -> None:
    first = run(model, tmp_path).model
    cache = cache_in(tmp_path)
    run(first, None, cache=cache, settings=replace(FEW, views=0))
    assert cache.counts["embedding_disk_hits"] > 0
    assert cache.counts["embedding_misses"] == 0, "a version of the same base, the same stem"


def test_an_adapter_goes_on_learning_or_stays_as_it_is(model: MedSAM3, tuned: MedSAM3) -> None:
    before = adapter_of(tuned)
    further = adapter_of(run(tuned, None).model)
    assert before.keys() == further.keys()
    for key, value in further.items():
        assert torch.equal(value, before[key]) == key.endswith("lora_a"), key
    kept = run(tuned, None, settings=replace(FEW, adapter=False)).model
    assert all(torch.equal(value, before[key]) for key, value in adapter_of(kept).items())
    assert kept.encoder_hash == tuned.encoder_hash
    assert kept.detector_hash != tuned.detector_hash


def test_a_run_that_was_interrupted_ends_with_the_same_weights(
    model: MedSAM3, tuned: MedSAM3, tmp_path: Path
) -> None:
    def interrupt(progress: TrainingProgress) -> None:
        if progress.step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(model, None, state=tmp_path / "state", on_progress=interrupt)
    assert run(model, None, state=tmp_path / "state").model.version == tuned.version


def test_in_half_precision_a_version_is_the_same_from_its_file(tmp_path: Path) -> None:
    network, tokenizer = small_network(), build_tokenizer(all_phrases())
    half = MedSAM3(network, tokenizer, name="small", device="cpu", dtype="bfloat16")
    version = run(half, None).model
    assert all(value.any() for value in adapter_of(version).values())
    version.save_detector(tmp_path / "s.safetensors", base="b", name="s")
    assert half.with_detector(load_detector(tmp_path / "s.safetensors")).version == version.version
