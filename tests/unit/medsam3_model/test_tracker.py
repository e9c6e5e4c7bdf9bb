"""Clicks, answered by SAM 3's tracker where the checkpoint holds it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam3TrackerConfig, Sam3TrackerModel

from medsam3_model import MedSAM3
from medsam3_model.errors import CheckpointError, PromptError
from medsam3_model.preprocessing import to_pixel_values
from tests.support import sam3_reference

RGB = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)


def tracker_config() -> dict[str, Any]:
    vision = sam3_reference.config().vision_config.to_dict()
    vision["backbone_feature_sizes"] = [[64, 64], [32, 32], [16, 16]]
    return {
        "vision_config": vision,
        "prompt_encoder_config": {"hidden_size": 128, "image_size": 224, "patch_size": 14},
        "mask_decoder_config": {
            "hidden_size": 128,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
        },
    }


@pytest.fixture(scope="module")
def reference() -> Sam3TrackerModel:
    torch.manual_seed(0)
    model = Sam3TrackerModel(Sam3TrackerConfig(**tracker_config())).eval()
    with torch.no_grad():
        model.no_memory_embedding.normal_(0, 0.1)
    return model


@pytest.fixture(scope="module")
def folder(
    reference: Sam3TrackerModel,
    hugging_face_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A video checkpoint: detector, tracker, and the tracker's neck."""
    folder = tmp_path_factory.mktemp("video")
    detector = load_file(hugging_face_folder / "model.safetensors")
    tensors = {f"detector_model.{key}": value for key, value in detector.items()}
    for key, value in reference.state_dict().items():
        if key.startswith("vision_encoder.neck."):
            key = key.replace("vision_encoder.neck.", "tracker_neck.")
        elif key.startswith("vision_encoder."):
            continue
        else:
            key = f"tracker_model.{key}"
        tensors[key] = value.clone()
    tensors["tracker_model.memory_encoder.projection.weight"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "sam3_video",
        "detector_config": sam3_reference.config().to_dict(),
        "tracker_config": tracker_config(),
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> MedSAM3:
    return MedSAM3.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("points", [[[45, 30]], [[45, 30], [10, 50], [80, 5]]])
def test_clicks_get_the_masks_of_transformers_tracker(
    model: MedSAM3, reference: Sam3TrackerModel, points: list[list[float]]
) -> None:
    labels = [1, 0, 1][: len(points)]
    found = model.tracker.segment(model.encode_image(RGB), points, labels)

    vision = model.model.vision_encoder.backbone(to_pixel_values(RGB, 224)).last_hidden_state
    spatial = vision.view(1, 16, 16, -1).permute(0, 3, 1, 2)
    neck = reference.vision_encoder.neck
    levels = [layer(spatial) for layer in neck.fpn_layers[:-1]]
    decoder = reference.mask_decoder
    features = [
        decoder.conv_s0(levels[0]),
        decoder.conv_s1(levels[1]),
        levels[2] + reference.no_memory_embedding.reshape(1, -1, 1, 1),
    ]
    scale = torch.tensor([224 / 90, 224 / 60])
    with torch.no_grad():
        outputs = reference(
            image_embeddings=features,
            input_points=(torch.tensor(points) * scale)[None, None],
            input_labels=torch.tensor(labels)[None, None],
            multimask_output=len(points) == 1,
        )
    best = int(outputs.iou_scores[0, 0].argmax())
    expected = torch.nn.functional.interpolate(
        outputs.pred_masks[:, 0, best : best + 1], RGB.shape[:2], mode="bilinear"
    )[0, 0]
    np.testing.assert_allclose(found.semantic, expected.sigmoid().detach().numpy(), atol=1e-4)
    assert found.masks.shape == (len(found), 60, 90)
    assert found.max_score == pytest.approx(float(outputs.iou_scores[0, 0, best]), abs=1e-4)


def test_further_clicks_on_an_image_reuse_its_features(model: MedSAM3) -> None:
    image = model.encode_image(RGB)
    first = model.tracker.segment(image, [[45, 30]])
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = model.tracker._neck.fpn_layers[0].register_forward_hook(count)
    again = model.tracker.segment(image, [[45, 30]])
    other = model.tracker.segment(model.encode_image(RGB[::-1].copy()), [[45, 30]])
    handle.remove()
    assert calls == 1
    np.testing.assert_array_equal(again.semantic, first.semantic)
    assert not np.array_equal(other.semantic, first.semantic)


def test_box_alone_is_a_prompt(model: MedSAM3) -> None:
    image = model.encode_image(RGB)
    boxed = model.tracker.segment(image, [], box=[10, 10, 50, 40])
    assert boxed.semantic.shape == (60, 90)
    clicked = model.tracker.segment(image, [[30, 25]], box=[10, 10, 50, 40])
    assert not np.array_equal(boxed.semantic, clicked.semantic)


def test_bad_clicks_are_refused(model: MedSAM3) -> None:
    image = model.encode_image(RGB)
    with pytest.raises(PromptError, match="a click or a box"):
        model.tracker.segment(image, [])
    with pytest.raises(PromptError, match="1 points need as many labels"):
        model.tracker.segment(image, [[1, 1]], [1, 0])
    with pytest.raises(PromptError, match="not a finite number"):
        model.tracker.segment(image, [[float("nan"), 1]])


def test_image_model_has_no_tracker(hugging_face_folder: Path) -> None:
    assert MedSAM3.from_pretrained(hugging_face_folder, device="cpu").tracker is None


def test_detectors_share_the_tracker(model: MedSAM3, tmp_path: Path) -> None:
    saved = model.save_detector(tmp_path / "d.safetensors", base="b", name="n")
    assert model.with_detector(saved).tracker is model.tracker


def test_incomplete_tracker_is_refused(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["tracker_model.mask_decoder.conv_s0.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"tracker does not fit.*conv_s0\.weight"):
        MedSAM3.from_pretrained(tmp_path, device="cpu")
