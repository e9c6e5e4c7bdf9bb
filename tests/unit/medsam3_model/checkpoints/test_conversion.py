"""Converted checkpoints say what they are, and are the same model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medsam3_model import MedSAM3
from medsam3_model.checkpoints import conversion
from medsam3_model.errors import CheckpointError
from tests.support import sam3_reference


def convert(source: Path, destination: Path, **options: object) -> conversion.Description:
    return conversion.convert(source, destination, config=sam3_reference.config(), **options)


@pytest.fixture(scope="module")
def adapted(facebook_checkpoint: Path, adapter_file: Path) -> MedSAM3:
    return MedSAM3.from_pretrained(
        facebook_checkpoint, adapter_file, sam3_reference.config(), device="cpu"
    )


@pytest.mark.parametrize("name", ["medsam3.safetensors", "medsam3"])
def test_converted_model_is_the_same_model(
    facebook_checkpoint: Path, adapter_file: Path, adapted: MedSAM3, tmp_path: Path, name: str
) -> None:
    description = convert(facebook_checkpoint, tmp_path / name, adapter=adapter_file)

    assert description.layout == "a Hugging Face Sam3Model"
    model = MedSAM3.from_pretrained(tmp_path / name, device="cpu")
    assert model.encoder_hash == adapted.encoder_hash
    assert model.detector_hash == adapted.detector_hash
    assert model.version == adapted.version
    # MedSAM3-v1 ignores the presence head; the preset travels with the weights.
    assert model.settings == adapted.settings
    assert not model.settings.use_presence
    assert conversion.verify(tmp_path / name).ok


def test_metadata_name_base_and_adapter(
    facebook_checkpoint: Path, adapter_file: Path, tmp_path: Path
) -> None:
    def metadata(path: Path) -> dict[str, str]:
        with safe_open(path, "pt") as file:
            return file.metadata()

    convert(facebook_checkpoint, tmp_path / "plain.safetensors")
    convert(facebook_checkpoint, tmp_path / "adapted.safetensors", adapter=adapter_file)
    plain = metadata(tmp_path / "plain.safetensors")
    adapted = metadata(tmp_path / "adapted.safetensors")

    assert plain["base_hash"] == adapted["base_hash"]
    assert "adapter_hash" not in plain
    assert len(adapted["adapter_hash"]) == 64
    assert json.loads(plain["preset"])["name"] == "sam3"
    assert json.loads(plain["config"])["model_type"] == "sam3"


def test_transformers_reads_a_converted_folder(facebook_checkpoint: Path, tmp_path: Path) -> None:
    from transformers import Sam3Model

    convert(facebook_checkpoint, tmp_path / "model")
    model, report = Sam3Model.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.vision_config.image_size == 224


def test_half_precision_halves_the_file(facebook_checkpoint: Path, tmp_path: Path) -> None:
    full = convert(facebook_checkpoint, tmp_path / "full.safetensors")
    half = convert(facebook_checkpoint, tmp_path / "half.safetensors", dtype="bfloat16")
    assert half.file_bytes < 0.51 * full.file_bytes
    assert conversion.verify(tmp_path / "half.safetensors").ok
    with pytest.raises(CheckpointError, match="dtype is one of"):
        convert(facebook_checkpoint, tmp_path / "int.safetensors", dtype="int8")


def test_nothing_is_overwritten(facebook_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "there.safetensors").write_text("mine")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(facebook_checkpoint, tmp_path / "there.safetensors")
    assert (tmp_path / "there.safetensors").read_text() == "mine"


def test_verify_finds_changed_and_broken_values(facebook_checkpoint: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    convert(facebook_checkpoint, good)
    with safe_open(good, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(good)
    tensors["detr_decoder.box_head.layer1.bias"][0] = torch.nan
    save_file(tensors, tmp_path / "bad.safetensors", metadata)

    found = conversion.verify(tmp_path / "bad.safetensors")

    assert not found.ok
    assert "1 tensors hold infinities" in found.problems[0]
    assert "the detector's weights are not those" in found.problems[1]
    assert len(found.problems) == 2


def test_verify_reports_instead_of_raising(tmp_path: Path, adapter_file: Path) -> None:
    assert "neither a bundled model" in conversion.verify("nowhere").problems[0]
    (tmp_path / "page.pt").write_text("<html>")
    assert "HTML page" in conversion.verify(tmp_path / "page.pt").problems[0]
    found = conversion.verify(adapter_file)
    assert found.ok
    assert found.layout == "a LoRA adapter"


def test_describe_reads_headers_only(facebook_checkpoint: Path, adapter_file: Path) -> None:
    found = conversion.describe(facebook_checkpoint)
    assert found.layout == "facebook's sam3.pt"
    assert found.tensors == len(sam3_reference.facebook_tensors())
    assert found.parameters == sum(t.numel() for t in sam3_reference.facebook_tensors().values())
    assert not found.points
    assert conversion.describe(adapter_file).layout == "a LoRA adapter"
