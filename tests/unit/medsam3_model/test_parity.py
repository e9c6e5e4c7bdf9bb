"""Numeric parity with facebook's implementation, from every layout, with and without adapter."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medsam3_model import MedSAM3
from tests.support import sam3_reference

TOLERANCES = {
    "pred_logits": 1e-5,
    "pred_boxes": 1e-5,
    "presence_logits": 1e-5,
    "pred_masks": 5e-5,
    "semantic_seg": 5e-5,
}


def differences(model: MedSAM3, weights: str, prompt: str) -> dict[str, float]:
    """Largest difference of each tensor from the reference's."""
    golden = sam3_reference.golden()
    boxes = labels = None
    if prompt != "text":
        boxes, labels = golden[f"boxes/{prompt}"], golden[f"boxes/{prompt}/labels"]
    outputs = model.raw(golden["image"], golden["input_ids"], boxes, labels)
    ours = {
        "pred_logits": outputs["pred_logits"],
        "pred_boxes": outputs["pred_boxes"],
        "presence_logits": outputs["presence_logits"][:, 0],
        "pred_masks": outputs["pred_masks"][..., ::4, ::4],
        "semantic_seg": outputs["semantic_seg"],
    }
    theirs = {name: f"{weights}/{prompt}/{name}" for name in ours}
    theirs["pred_boxes"] += "_xyxy"
    for name, key in theirs.items():
        assert ours[name].shape == golden[key].shape
    return {n: float(np.abs(ours[n].numpy() - golden[k]).max()) for n, k in theirs.items()}


@pytest.fixture(scope="module", params=["sam3.pt", "flat sam3.pt", "folder", "video", "sharded"])
def checkpoint(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    facebook_checkpoint: Path,
    hugging_face_folder: Path,
) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    if request.param == "sam3.pt":
        return facebook_checkpoint
    if request.param == "flat sam3.pt":
        flat = {
            key.removeprefix("detector."): tensor
            for key, tensor in sam3_reference.facebook_tensors().items()
        }
        # The real file carries buffers and the video tracker, too.
        flat["backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis"] = torch.zeros(
            64, 16, dtype=torch.complex64
        )
        flat["tracker.maskmem_tpos_enc"] = torch.zeros(7, 1, 1, 64)
        torch.save(flat, folder / "flat.pt")
        return folder / "flat.pt"
    if request.param == "folder":
        return hugging_face_folder
    tensors = load_file(hugging_face_folder / "model.safetensors")
    if request.param == "video":
        video = {f"detector_model.{key}": tensor for key, tensor in tensors.items()}
        video["tracker_neck.fpn_layers.0.proj1.weight"] = torch.zeros(1)
        video["tracker_model.no_memory_embedding"] = torch.zeros(1, 1, 128)
        save_file(video, folder / "model.safetensors")
        return folder
    from transformers import Sam3Model

    model = Sam3Model.from_pretrained(hugging_face_folder)
    model.save_pretrained(folder, max_shard_size="20MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.mark.parametrize("weights", ["base", "lora"])
def test_outputs_are_those_of_the_reference(
    checkpoint: Path, adapter_file: Path, weights: str
) -> None:
    adapter = adapter_file if weights == "lora" else None
    model = MedSAM3.from_pretrained(
        checkpoint, adapter, sam3_reference.config(), device="cpu", dtype="float32"
    )
    for prompt in ("text", "text_box", "text_box_negative"):
        found = differences(model, weights, prompt)
        too_far = {name: d for name, d in found.items() if d > TOLERANCES[name]}
        assert not too_far, (prompt, too_far)


def test_same_weights_have_the_same_hash_in_every_layout(
    facebook_checkpoint: Path, hugging_face_folder: Path, adapter_file: Path
) -> None:
    config = sam3_reference.config()
    facebook = MedSAM3.from_pretrained(facebook_checkpoint, config=config, device="cpu")
    transformers = MedSAM3.from_pretrained(hugging_face_folder, device="cpu")
    adapted = MedSAM3.from_pretrained(hugging_face_folder, adapter_file, device="cpu")

    assert facebook.encoder_hash == transformers.encoder_hash
    assert facebook.detector_hash == transformers.detector_hash
    assert facebook.version == f"sam3-{transformers.version[-8:]}"
    assert transformers.version.startswith("sam3-tiny-")
    # The adapter changes both the encoders and the detector.
    assert adapted.encoder_hash != transformers.encoder_hash
    assert adapted.detector_hash != transformers.detector_hash


def test_phrases_get_the_token_ids_of_the_reference(facebook_checkpoint: Path) -> None:
    model = MedSAM3.from_pretrained(
        facebook_checkpoint, config=sam3_reference.config(), device="cpu"
    )
    phrases = sam3_reference.description()["phrases"]
    golden = sam3_reference.golden()

    embedding = model.encode_text(phrases)

    for row, mask in enumerate(embedding.attention_mask.numpy()):
        expected = golden["base/text_features"][row][mask]
        assert mask.sum() == (golden["input_ids"][row] != 0).sum()
        np.testing.assert_allclose(embedding.features[row].numpy()[mask], expected, atol=2e-5)


@pytest.mark.parametrize("padding", [0, 49407])
def test_padding_of_token_ids_does_not_matter(facebook_checkpoint: Path, padding: int) -> None:
    model = MedSAM3.from_pretrained(
        facebook_checkpoint, config=sam3_reference.config(), device="cpu"
    )
    golden = sam3_reference.golden()
    ids = golden["input_ids"].copy()
    ids[ids == 0] = padding
    outputs = model.raw(golden["image"], ids)
    np.testing.assert_allclose(
        outputs["pred_logits"].numpy(), golden["base/text/pred_logits"], atol=1e-5
    )
