"""Presets and bundles: what ships with the package, and what a written bundle holds."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import Sam3Config, Sam3Model

from medsam3_model.checkpoints import tracker_keys
from medsam3_model.checkpoints.bundle import write_bundle
from medsam3_model.checkpoints.loading import image_config
from medsam3_model.checkpoints.presets import (
    PRESETS,
    bundled_version,
    bundled_weights,
    read_bundle_info,
    tiny_config,
    tiny_tracker_config,
)
from medsam3_model.checkpoints.tokenizer import VOCABULARY_SIZE, build_tokenizer
from medsam3_model.errors import CheckpointError


def stored_config() -> Sam3Config:
    return image_config(json.loads((bundled_weights("tiny") / "config.json").read_text()))


def test_bundle_holds_every_tensor_of_the_architecture() -> None:
    model = Sam3Model(stored_config())
    weights = load_file(bundled_weights("tiny") / "model.safetensors")
    expected = {f"detector_model.{key}": value.shape for key, value in model.state_dict().items()}
    tracker = {key for key in weights if not key.startswith("detector_model.")}
    assert {key: weights[key].shape for key in weights.keys() - tracker} == expected
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert all(bool(value.isfinite().all()) for value in weights.values())
    # Loading is strict; the memory of earlier frames has not been trained and is not there.
    assert tracker
    assert not any(map(tracker_keys.is_of_memory, tracker))


def test_bundled_configuration_is_the_preset() -> None:
    stored = stored_config()
    assert stored.vision_config.to_dict() == tiny_config().vision_config.to_dict()
    assert stored.text_config.vocab_size == VOCABULARY_SIZE
    config = json.loads((bundled_weights("tiny") / "config.json").read_text())
    assert config["tracker_config"] == tiny_tracker_config()


def test_bundle_is_small_enough_to_ship() -> None:
    size = sum(path.stat().st_size for path in bundled_weights("tiny").iterdir())
    assert size <= 25e6


def test_version_follows_from_the_weights() -> None:
    folder = bundled_weights("tiny")
    digest = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    info = read_bundle_info(folder)
    assert info.sha256 == digest
    assert info.version == bundled_version("tiny") == f"tiny-{digest[:8]}"
    assert info.input_size == tiny_config().image_size


def test_header_names_the_preset() -> None:
    with safe_open(bundled_weights("tiny") / "model.safetensors", "pt") as file:
        assert file.metadata()["bundle_preset"] == "tiny"


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match="tiny"):
        bundled_weights("huge")


def test_every_preset_builds() -> None:
    for build in PRESETS.values():
        assert isinstance(build(), Sam3Config)


def test_input_size_must_fit_the_windows() -> None:
    with pytest.raises(ValueError, match="multiple of 72"):
        tiny_config(200)


def test_a_written_bundle_reads_back(tmp_path: Path) -> None:
    config = tiny_config(72)
    model = Sam3Model(config)
    info = write_bundle(tmp_path, "tiny", config, model.state_dict(), build_tokenizer(["polyp"]))
    assert read_bundle_info(tmp_path) == info
    weights = load_file(tmp_path / "model.safetensors")
    key = "mask_decoder.semantic_projection.weight"
    stored = weights[f"detector_model.{key}"].float()
    torch.testing.assert_close(stored, model.state_dict()[key], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "medsam3-bundle/1"}'])
def test_a_damaged_description_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "preset.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"preset\.json"):
        read_bundle_info(tmp_path)


def test_an_unknown_value_is_refused(tmp_path: Path) -> None:
    path = bundled_weights("tiny") / "preset.json"
    values = json.loads(path.read_text()) | {"colour": "blue"}
    (tmp_path / "preset.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="one too many"):
        read_bundle_info(tmp_path)
