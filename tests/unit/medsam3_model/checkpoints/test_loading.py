"""Strict loading: the right file loads whole, a wrong one is refused and nothing is run."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam3Config

from medsam3_model import MedSAM3
from medsam3_model.checkpoints import key_mapping, loading, lora
from medsam3_model.checkpoints.weight_files import open_tensors
from medsam3_model.errors import AdapterError, CheckpointError
from tests.support import sam3_reference


def load(path: Path, **options: object) -> MedSAM3:
    return MedSAM3.from_pretrained(path, config=sam3_reference.config(), device="cpu", **options)


# -- the full size --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_size_shapes() -> dict[str, tuple[int, ...]]:
    model = loading.empty_model(Sam3Config())
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def test_every_key_of_the_full_checkpoint_has_its_place(
    full_size_shapes: dict[str, tuple[int, ...]],
) -> None:
    keys = sam3_reference.full_keys()["checkpoint"]
    made: dict[str, tuple[int, ...]] = {}
    left_out = []
    for key, shape in keys:
        targets = key_mapping.targets(key)
        if not targets:
            left_out.append(key)
        for target in targets:
            assert target.key not in made
            made[target.key] = target.operation.shape(tuple(shape))

    assert len(keys) == 1102
    assert made == full_size_shapes
    # facebook's point prompts, which transformers' image model does not have.
    assert len(left_out) == 6
    assert all("geometry_encoder.points_" in key for key in left_out)


def test_every_key_of_the_full_adapter_has_its_place(
    full_size_shapes: dict[str, tuple[int, ...]],
    tmp_path: Path,
) -> None:
    keys = sam3_reference.full_keys()["lora"]
    # Zeros compress to nothing in a sparse file, but safetensors wants them real: 95 MB in half.
    tensors = {key: torch.zeros(shape, dtype=torch.float16) for key, shape in keys}
    save_file(tensors, tmp_path / "lora.safetensors")

    adapter = lora.Adapter(open_tensors(tmp_path / "lora.safetensors"))

    assert len(keys) == 916
    assert len(adapter.modules) == 458
    assert {module for module in adapter.modules if not key_mapping.module_targets(module)} == {
        f"geometry_encoder.points_{kind}_project" for kind in ("direct", "pool", "pos_enc")
    }
    adapter.check_fits(full_size_shapes)


# -- what a merge computes ------------------------------------------------------------------


def test_adapter_adds_scaled_product_to_fused_and_split_projections(
    facebook_checkpoint: Path, adapter_file: Path
) -> None:
    base, delta = sam3_reference.facebook_tensors(), sam3_reference.adapter_tensors()
    merged = loading.load_model(
        facebook_checkpoint, adapter=adapter_file, config=sam3_reference.config()
    ).model.state_dict()

    module = "backbone.vision_backbone.trunk.blocks.3.attn.qkv"
    change = (delta[f"{module}.lora.lora_A"] @ delta[f"{module}.lora.lora_B"]).T * (32 / 16)
    key_rows = (base[f"detector.{module}.weight"] + change)[192:384]
    torch.testing.assert_close(
        merged["vision_encoder.backbone.layers.3.attention.k_proj.weight"], key_rows
    )

    module = "transformer.decoder.layers.1.ca_text"
    a, b = (delta[f"{module}.v_proj.lora.lora_{half}"] for half in "AB")
    value_rows = base[f"detector.{module}.in_proj_weight"][256:] + (a @ b).T * 2
    torch.testing.assert_close(
        merged["detr_decoder.layers.1.text_cross_attn.v_proj.weight"], value_rows
    )


def test_adapter_file_may_say_its_own_alpha(tmp_path: Path) -> None:
    save_file(sam3_reference.adapter_tensors(), tmp_path / "a.safetensors", {"alpha": "8"})
    assert lora.Adapter(open_tensors(tmp_path / "a.safetensors")).alpha == 8


# -- refusals -------------------------------------------------------------------------------


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = sam3_reference.facebook_tensors()
    del tensors["detector.dot_prod_scoring.hs_proj.weight"]
    torch.save(tensors, tmp_path / "sam3.pt")
    with pytest.raises(CheckpointError, match=r"1 missing \(dot_product_scoring.query_proj.weight"):
        load(tmp_path / "sam3.pt")


def test_unexpected_tensor_is_named(tmp_path: Path) -> None:
    tensors = sam3_reference.facebook_tensors()
    tensors["detector.transformer.decoder.extra_head.weight"] = torch.zeros(2)
    torch.save(tensors, tmp_path / "sam3.pt")
    with pytest.raises(CheckpointError, match=r"1 unexpected \(detector.*extra_head.weight\)"):
        load(tmp_path / "sam3.pt")


def test_tensor_of_another_shape_is_named(tmp_path: Path, hugging_face_folder: Path) -> None:
    tensors = load_file(hugging_face_folder / "model.safetensors")
    tensors["text_projection.bias"] = torch.zeros(7)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 of another shape \(text_projection.bias \[7\]\)"):
        load(tmp_path / "model.safetensors")


def test_other_size_without_config_says_what_to_pass(facebook_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="full size was assumed: pass config="):
        MedSAM3.from_pretrained(facebook_checkpoint, device="cpu")


def test_doubled_tensor_is_refused(tmp_path: Path) -> None:
    tensors = sam3_reference.facebook_tensors()
    name = "dot_prod_scoring.hs_proj.weight"
    tensors[name] = tensors[f"detector.{name}"].clone()
    torch.save(tensors, tmp_path / "sam3.pt")
    with pytest.raises(CheckpointError, match="twice"):
        load(tmp_path / "sam3.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><title>Sign in</title></html>", "HTML page"),
        (b"\n  <html lang='en'>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git-lfs pointer"),
        (b'{"error": "Repository gated"}', "JSON text"),
        (b"Access to model facebook/sam3 is restricted.", "server's error message"),
        (bytes(range(256)) * 4, "neither safetensors nor a torch file"),
        (b"PK\x03\x04" + bytes(5000), "truncated"),
    ],
)
def test_what_is_not_weights_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "sam3.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(path)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
def test_truncated_torch_file_is_refused(
    tmp_path: Path, facebook_checkpoint: Path, keep: float
) -> None:
    whole = facebook_checkpoint.read_bytes()
    (tmp_path / "sam3.pt").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match="truncated"):
        load(tmp_path / "sam3.pt")


@pytest.mark.parametrize("keep", [0.0005, 0.5, 0.999])
def test_truncated_safetensors_file_is_refused(
    tmp_path: Path, hugging_face_folder: Path, keep: float
) -> None:
    whole = (hugging_face_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match="truncated"):
        load(tmp_path / "model.safetensors")


def test_missing_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors"):
        load(tmp_path)


class Bomb:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.witness),)


def zipped(path: Path, content: object) -> None:
    torch.save(content, path)


def pickled(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content))


def legacy(path: Path, content: object) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [zipped, pickled, legacy])
@pytest.mark.parametrize("hidden_in", ["checkpoint", "adapter"])
def test_code_in_a_file_is_refused_and_not_run(
    tmp_path: Path,
    facebook_checkpoint: Path,
    write: Callable[[Path, object], None],
    hidden_in: str,
) -> None:
    witness = tmp_path / "executed"
    bomb = tmp_path / "bomb.pt"
    write(bomb, {"model": {"w": torch.zeros(1)}, "extra": Bomb(witness)})
    checkpoint, adapter = (bomb, None) if hidden_in == "checkpoint" else (facebook_checkpoint, bomb)

    with pytest.raises(CheckpointError, match="nothing was run"):
        load(checkpoint, adapter=adapter)

    assert not witness.exists()
    if write is pickled:  # the bomb is live: whoever unpickles it does run it
        pickle.loads(bomb.read_bytes())  # noqa: S301
        assert witness.exists()


@pytest.mark.parametrize(
    ("keys", "seems"),
    [
        (["image_encoder.pos_embed", "prompt_encoder.no_mask_embed.weight"], "SAM 1 or MedSAM"),
        (["image_encoder.trunk.pos_embed", "memory_attention.norm.weight"], "SAM 2"),
        (["conv1.weight", "layer1.0.bn1.bias"], "an unknown model"),
    ],
)
def test_other_models_are_recognised(tmp_path: Path, keys: list[str], seems: str) -> None:
    torch.save({key: torch.zeros(2) for key in keys}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=f"seems to be {seems}.*{keys[0]}"):
        load(tmp_path / "model.pt")


def test_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load(tmp_path / "state.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        load(tmp_path / "list.pt")


def test_config_of_another_model_is_refused(tmp_path: Path, hugging_face_folder: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(hugging_face_folder / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "sam2"}')
    with pytest.raises(CheckpointError, match="'sam2'"):
        MedSAM3.from_pretrained(tmp_path, device="cpu")


def test_adapter_as_checkpoint_says_where_it_belongs(adapter_file: Path) -> None:
    with pytest.raises(CheckpointError, match="pass it as adapter="):
        load(adapter_file)


def test_checkpoint_as_adapter_is_refused(facebook_checkpoint: Path) -> None:
    with pytest.raises(AdapterError, match="not a LoRA adapter"):
        load(facebook_checkpoint, adapter=facebook_checkpoint)


def adapter_with(path: Path, **changes: torch.Tensor | None) -> Path:
    tensors = sam3_reference.adapter_tensors()
    for key, value in changes.items():
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, path)
    return path


def test_adapter_of_another_base_is_refused(tmp_path: Path, facebook_checkpoint: Path) -> None:
    module = "transformer.encoder.layers.0.linear1.lora"
    path = adapter_with(
        tmp_path / "a.safetensors",
        **{f"{module}.lora_A": torch.zeros(256, 16), f"{module}.lora_B": torch.zeros(16, 2048)},
    )
    with pytest.raises(AdapterError, match=r"another base model.*linear1"):
        load(facebook_checkpoint, adapter=path)


def test_adapter_with_a_missing_half_is_refused(tmp_path: Path, facebook_checkpoint: Path) -> None:
    key = "dot_prod_scoring.hs_proj.lora.lora_B"
    path = adapter_with(tmp_path / "a.safetensors", **{key: None})
    with pytest.raises(AdapterError, match=f"lacks {key}"):
        load(facebook_checkpoint, adapter=path)


def test_adapter_of_unknown_modules_is_refused(tmp_path: Path, facebook_checkpoint: Path) -> None:
    path = adapter_with(
        tmp_path / "a.safetensors",
        **{
            "model.layers.0.mlp.lora.lora_A": torch.zeros(8, 16),
            "model.layers.0.mlp.lora.lora_B": torch.zeros(16, 8),
        },
    )
    with pytest.raises(AdapterError, match=r"SAM 3 does not have: model\.layers\.0\.mlp"):
        load(facebook_checkpoint, adapter=path)


def test_nothing_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a bundled model"):
        MedSAM3.from_pretrained("tiiny", device="cpu")
    with pytest.raises(CheckpointError, match="holds no weights"):
        MedSAM3.from_pretrained(tmp_path, device="cpu")


# -- memory ---------------------------------------------------------------------------------


def test_reading_goes_on_after_the_file_is_mapped_anew(
    hugging_face_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsam3_model.checkpoints.weight_files._REOPEN_BYTES", 1000)
    file = open_tensors(hugging_face_folder / "model.safetensors")
    expected = load_file(hugging_face_folder / "model.safetensors")
    for key in file.shapes:
        torch.testing.assert_close(file.read(key), expected[key], rtol=0, atol=0)


def test_bfloat16_keeps_the_detector_in_float32(facebook_checkpoint: Path) -> None:
    model = load(facebook_checkpoint, dtype="bfloat16").model
    assert model.vision_encoder.backbone.layer_norm.weight.dtype == torch.bfloat16
    assert model.detr_decoder.box_head.layer3.weight.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in model.parameters())
