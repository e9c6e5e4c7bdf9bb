"""Clicks, answered by SAM 3's tracker where the checkpoint holds it: parity, loading, prompts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medsam3_model import MedSAM3
from medsam3_model.checkpoints import tracker_keys
from medsam3_model.errors import CheckpointError, PromptError
from tests.support import sam3_reference

RGB = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
# How far transformers' arithmetic may be from facebook's; logits reach 18.
TOLERANCE = {"masks": 2e-3, "iou": 1e-5, "object_logits": 1e-5}


def load(folder: Path, tensors: Mapping[str, torch.Tensor]) -> MedSAM3:
    path = folder / "sam3.pt"
    torch.save({"model": dict(tensors)}, path)
    return MedSAM3.from_pretrained(path, config=sam3_reference.video_config(), device="cpu")


def all_tensors() -> dict[str, torch.Tensor]:
    return sam3_reference.facebook_tensors() | sam3_reference.tracker_tensors()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MedSAM3:
    return load(tmp_path_factory.mktemp("with-tracker"), all_tensors())


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    frame = torch.from_numpy(sam3_reference.tracker_golden()["frames"][:1])
    return (frame.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def given(*names: str) -> dict[str, torch.Tensor]:
    golden = sam3_reference.tracker_golden()
    prompts = {
        "points": torch.from_numpy(golden["image/points"]).float(),
        "point_labels": torch.from_numpy(golden["image/labels"]).long(),
        "boxes": torch.from_numpy(golden["image/box"]),
    }
    return {name: prompts[name] for name in names}


def one_click() -> dict[str, torch.Tensor]:
    return {name: value[:, :1] for name, value in given("points", "point_labels").items()}


def check(answer: Mapping[str, torch.Tensor], case: str) -> None:
    for name, tolerance in TOLERANCE.items():
        stored = "object" if name == "object_logits" else name
        expected = sam3_reference.tracker_golden()[f"image/{case}/{stored}"]
        np.testing.assert_allclose(answer[name], expected, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("multimask", [True, False])
def test_one_click_is_answered_as_facebook_does(
    model: MedSAM3, pixels: torch.Tensor, multimask: bool
) -> None:
    answer = model.tracker.raw(pixels, **one_click(), multimask=multimask)
    check(answer, "click_multi" if multimask else "click_single")


@pytest.mark.parametrize(
    ("case", "names", "multimask"),
    [
        ("clicks", ("points", "point_labels"), False),
        ("box", ("boxes",), False),
        ("box_multi", ("boxes",), True),
        ("box_clicks", ("boxes", "points", "point_labels"), False),
    ],
)
def test_prompts_are_answered_as_facebook_does(
    model: MedSAM3, pixels: torch.Tensor, case: str, names: tuple[str, ...], multimask: bool
) -> None:
    check(model.tracker.raw(pixels, **given(*names), multimask=multimask), case)


def test_an_earlier_mask_is_refined_as_facebook_does(model: MedSAM3, pixels: torch.Tensor) -> None:
    first = model.tracker.raw(pixels, **one_click())
    clicks = given("points", "point_labels")
    check(model.tracker.raw(pixels, **clicks, masks=first["masks"]), "refine")


def test_the_features_are_facebooks(model: MedSAM3, pixels: torch.Tensor) -> None:
    golden = sam3_reference.tracker_golden()
    tracker = model.tracker
    levels = tracker._levels_of(tracker.trunk(pixels))
    for index, step in enumerate((4, 2, 1)):
        ours = levels[index][..., ::step, ::step].detach()
        np.testing.assert_allclose(ours, golden[f"image/fpn{index}"], rtol=0, atol=1e-4)


def test_a_mask_alone_and_a_batch_are_prompts(model: MedSAM3, pixels: torch.Tensor) -> None:
    first = model.tracker.raw(pixels, **one_click())
    alone = model.tracker.raw(pixels, masks=first["masks"])
    assert alone["masks"].shape == (1, 1, 64, 64)
    twice = model.tracker.raw(
        pixels.repeat(2, 1, 1, 1), points=one_click()["points"].repeat(2, 1, 1)
    )
    torch.testing.assert_close(twice["masks"][:1], first["masks"], rtol=0, atol=1e-3)


def test_both_layouts_hold_the_same_tracker(
    model: MedSAM3, pixels: torch.Tensor, hugging_face_folder: Path, tmp_path: Path
) -> None:
    detector = load_file(hugging_face_folder / "model.safetensors")
    tensors = {f"detector_model.{key}": value for key, value in detector.items()}
    facebook = sam3_reference.tracker_tensors()
    for key, parts in tracker_keys.sources(facebook).items():
        tensors[key] = torch.cat([facebook[part] for part in parts]).clone()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(sam3_reference.video_config()))
    other = MedSAM3.from_pretrained(tmp_path, device="cpu")
    expected = model.tracker.raw(pixels, **given("boxes"))
    torch.testing.assert_close(other.tracker.raw(pixels, **given("boxes")), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tracker.sam_mask_decoder.conv_s0.weight": None}, r"1 missing .*conv_s0\.weight"),
        ({"tracker.new_part.weight": torch.zeros(3)}, r"1 unexpected .*new_part\.weight"),
        ({"tracker.no_obj_ptr": torch.zeros(1, 7)}, r"1 of another shape .*no_obj_ptr"),
        (
            {"detector.backbone.vision_backbone.sam2_convs.0.conv_1x1.bias": None},
            r"1 missing .*tracker_neck\.fpn_layers\.0\.proj1\.bias",
        ),
    ],
)
def test_a_tracker_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    tensors = {k: v for k, v in (all_tensors() | change).items() if v is not None}
    with pytest.raises(CheckpointError, match=f"tracker does not fit.*{message}"):
        load(tmp_path, tensors)


def test_without_a_tracker_or_its_sizes_there_is_none(
    hugging_face_folder: Path, tmp_path: Path
) -> None:
    assert MedSAM3.from_pretrained(hugging_face_folder, device="cpu").tracker is None
    path = tmp_path / "sam3.pt"
    torch.save({"model": all_tensors()}, path)
    model = MedSAM3.from_pretrained(path, config=sam3_reference.config(), device="cpu")
    assert model.tracker is None


def test_further_clicks_on_an_image_reuse_its_features(model: MedSAM3) -> None:
    image = model.encode_image(RGB)
    first = model.tracker.ask(image, [[45, 30]])
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = model.tracker.neck.fpn_layers[0].register_forward_hook(count)
    again = model.tracker.ask(image, [[45, 30]])
    other = model.tracker.ask(model.encode_image(RGB[::-1].copy()), [[45, 30]])
    handle.remove()
    assert calls == 1
    np.testing.assert_array_equal(again.logits, first.logits)
    assert not np.array_equal(other.logits, first.logits)


def test_a_single_click_has_rivals_and_everything_else_one_answer(model: MedSAM3) -> None:
    image = model.encode_image(RGB)
    side = model.tracker.mask_side
    clicked = model.tracker.ask(image, [[30, 25]])
    assert (clicked.logits.shape, clicked.iou.shape) == ((3, side, side), (3,))
    boxed = model.tracker.ask(image, box=[10, 10, 50, 40])
    both = model.tracker.ask(image, [[30, 25]], box=[10, 10, 50, 40])
    mended = model.tracker.ask(image, [[30, 25]], mask=clicked.logits[0])
    alone = model.tracker.ask(image, mask=clicked.logits[0])
    assert {len(answer.logits) for answer in (boxed, both, mended, alone)} == {1}
    assert not np.array_equal(boxed.logits, both.logits)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "a click, a box or a mask"),
        ({"points": [[1, 1]], "point_labels": [1, 0]}, "1 points need as many labels"),
        ({"points": [[1, 1]], "point_labels": [2]}, "1 points need as many labels"),
        ({"points": [[float("nan"), 1]]}, "not a finite number"),
        ({"points": [[90.5, 1]]}, "outside of the image of 90 x 60"),
        ({"points": [[5, -1]]}, "outside of the image"),
        ({"box": [10, 10, 10, 40]}, "box is empty"),
        ({"mask": np.zeros((3, 4))}, "logits of 64 x 64, not 3 x 4"),
        ({"mask": np.full((64, 64), np.inf)}, "finite logits"),
    ],
)
def test_bad_prompts_are_refused(model: MedSAM3, prompt: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        model.tracker.ask(model.encode_image(RGB), **prompt)


def test_an_image_tracker_needs_no_memory_but_half_a_memory_is_refused(
    model: MedSAM3, pixels: torch.Tensor, hugging_face_folder: Path, tmp_path: Path
) -> None:
    detector = load_file(hugging_face_folder / "model.safetensors")
    tensors = {f"detector_model.{key}": value for key, value in detector.items()}
    facebook = sam3_reference.tracker_tensors()
    memory = {}
    for key, parts in tracker_keys.sources(facebook).items():
        value = torch.cat([facebook[part] for part in parts]).clone()
        (memory if tracker_keys.is_of_memory(key) else tensors)[key] = value
    (tmp_path / "config.json").write_text(json.dumps(sam3_reference.video_config()))
    save_file(tensors, tmp_path / "model.safetensors")
    images_only = MedSAM3.from_pretrained(tmp_path, device="cpu")
    assert model.tracker.has_memory
    assert not images_only.tracker.has_memory
    expected = model.tracker.raw(pixels, **given("boxes"))
    torch.testing.assert_close(images_only.tracker.raw(pixels, **given("boxes")), expected)
    with pytest.raises(PromptError, match="has no memory of frames"):
        images_only.tracker.propagate_raw(pixels, [(0, 1, {"box": [1, 1, 9, 9]})], 0)
    save_file(tensors | dict(list(memory.items())[:3]), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tracker does not fit.*missing"):
        MedSAM3.from_pretrained(tmp_path, device="cpu")


def test_painted_clicks_are_discs_in_the_mask_prompt(model: MedSAM3) -> None:
    points = torch.tensor([[[35.0, 70.0], [140.0, 70.0]]])  # 3.5 pixels a cell
    painted = model.tracker.painted(None, points, torch.tensor([[1, 0]]))
    assert painted.shape == (1, 1, 64, 64)
    assert painted[0, 0, 20, 10] == -painted[0, 0, 20, 40] > 0
    assert (painted != 0).sum() < 50
    before = torch.full((1, 1, 64, 64), 2.0)
    over = model.tracker.painted(before, points, torch.tensor([[1, 0]]))
    torch.testing.assert_close(over[painted == 0], before[painted == 0])
    torch.testing.assert_close(over[painted != 0], painted[painted != 0])


def test_detectors_share_the_tracker(model: MedSAM3, tmp_path: Path) -> None:
    saved = model.save_detector(tmp_path / "d.safetensors", base="b", name="n")
    assert model.with_detector(saved).tracker is model.tracker
