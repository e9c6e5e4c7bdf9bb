"""`MedSAM3` itself, with the bundled model: encode once, prompt often."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medsam3_model import MedSAM3
from medsam3_model.checkpoints import presets
from medsam3_model.errors import CheckpointError, PromptError
from medsam3_model.postprocessing import DetectionSettings

EVERYTHING = DetectionSettings(score_threshold=0, nms_iou_threshold=None, use_presence=False)


@pytest.fixture(scope="module")
def model() -> MedSAM3:
    return MedSAM3.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    rows, columns = np.mgrid[:90, :140]
    disc = (rows - 40) ** 2 + (columns - 80) ** 2 < 25**2
    return np.repeat(np.where(disc, 90, 190).astype(np.uint8)[..., None], 3, axis=2)


def test_bundle_has_its_own_version(model: MedSAM3) -> None:
    assert model.version == presets.bundled_version("tiny")
    assert model.settings.score_threshold == 0.5


def test_several_phrases_in_one_pass_are_as_good_as_one_by_one(
    model: MedSAM3, rgb: np.ndarray
) -> None:
    phrases = ["skin lesion", "polyp", "cell nucleus"]
    image, text = model.encode_image(rgb), model.encode_text(phrases)
    boxes = [[[50, 10, 110, 70]], [], [[0, 0, 20, 20], [50, 10, 110, 70]]]
    labels = [[1], [], [0, 1]]
    together = model.detect(image, text, boxes, labels, settings=EVERYTHING)
    assert isinstance(together, list)
    assert [found.phrase for found in together] == phrases
    for index, found in enumerate(together):
        alone = model.detect(
            image, text[index], [boxes[index]], [labels[index]], settings=EVERYTHING
        )
        assert not isinstance(alone, list)
        np.testing.assert_allclose(alone.semantic, found.semantic, atol=1e-4)
        np.testing.assert_allclose(alone.scores[:5], found.scores[:5], atol=1e-4)
        assert found.masks.shape[1:] == rgb.shape[:2]


def test_phrases_beyond_one_pass_are_split(
    model: MedSAM3, rgb: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, text = model.encode_image(rgb), model.encode_text(["polyp", "brain", "lungs"])
    whole = model.detect_all(image, text, settings=EVERYTHING)
    monkeypatch.setattr("medsam3_model.predictor._FINEST_LEVEL_BYTES_PER_PASS", 1)
    split = model.detect_all(image, text, settings=EVERYTHING)
    for one, other in zip(whole, split, strict=True):
        np.testing.assert_allclose(one.semantic, other.semantic, atol=1e-4)


def test_box_changes_the_answer_and_its_label_too(model: MedSAM3, rgb: np.ndarray) -> None:
    image, text = model.encode_image(rgb), model.encode_text(["skin lesion"])
    plain = model.detect(image, text).semantic
    positive = model.detect(image, text, [[50, 10, 110, 70]]).semantic
    negative = model.detect(image, text, [[50, 10, 110, 70]], [0]).semantic
    assert np.abs(plain - positive).max() > 1e-3
    assert not np.array_equal(positive, negative)


def test_batch_of_images_is_as_good_as_one_by_one(model: MedSAM3, rgb: np.ndarray) -> None:
    images = [rgb, rgb[::-1].copy(), rgb[:50]]
    for together, image in zip(model.encode_images(images, batch_size=2), images, strict=True):
        alone = model.encode_image(image)
        assert together.original_size == image.shape[:2]
        torch.testing.assert_close(
            together.last_hidden_state, alone.last_hidden_state, atol=1e-4, rtol=1e-4
        )


def test_raw_tensors_agree_with_the_cached_path(model: MedSAM3, rgb: np.ndarray) -> None:
    from medsam3_model.preprocessing import to_pixel_values

    ids = model.tokenizer(["polyp"], return_tensors="pt")["input_ids"]
    raw = model.raw(to_pixel_values(rgb, model.image_size), ids)
    as_it_is = replace(model.encode_image(rgb), mirrored=None)
    found = model.detect_all(as_it_is, model.encode_text(["polyp"]), settings=EVERYTHING)[0]
    assert set(raw) == {
        "pred_logits",
        "pred_boxes",
        "presence_logits",
        "pred_masks",
        "semantic_seg",
    }
    assert found.max_score == pytest.approx(float(raw["pred_logits"].sigmoid().max()), abs=1e-4)
    assert found.presence == pytest.approx(float(raw["presence_logits"].sigmoid()), abs=1e-4)


def test_bfloat16_is_close(model: MedSAM3, rgb: np.ndarray) -> None:
    half = MedSAM3.from_pretrained("tiny", device="cpu", dtype="bfloat16")
    assert half.encoder_hash == model.encoder_hash
    full = model.detect_all(model.encode_image(rgb), model.encode_text(["skin lesion"]))[0]
    near = half.detect_all(half.encode_image(rgb), half.encode_text(["skin lesion"]))[0]
    assert near.semantic.dtype == np.float32
    assert np.abs(full.semantic - near.semantic).mean() < 0.05


def test_embeddings_may_be_trained_on(model: MedSAM3, rgb: np.ndarray) -> None:
    level = model.encode_image(rgb).fpn_hidden_states[-1]
    weight = torch.ones(level.shape[1], requires_grad=True)
    (level * weight[None, :, None, None]).sum().backward()
    assert weight.grad is not None


def test_bad_prompts_are_refused(model: MedSAM3, rgb: np.ndarray) -> None:
    image = model.encode_image(rgb)
    with pytest.raises(PromptError, match="a phrase is empty"):
        model.encode_text(["polyp", "  "])
    with pytest.raises(PromptError, match="non-empty list"):
        model.encode_text("polyp")
    with pytest.raises(PromptError, match="empty"):
        model.detect(image, model.encode_text(["polyp"]), [[5, 5, 5, 9]])


def test_any_text_gets_an_answer(model: MedSAM3, rgb: np.ndarray) -> None:
    image = model.encode_image(rgb)
    phrases = ["左肺", "naïve œdème", "a" * 5000, "😀", "tumor\nof\tthe breast"]
    for found in model.detect_all(image, model.encode_text(phrases)):
        assert np.isfinite(found.semantic).all()


def test_settings_and_config_may_be_given(tmp_path: Path) -> None:
    given = MedSAM3.from_pretrained("tiny", device="cpu", settings=EVERYTHING)
    assert given.settings == EVERYTHING
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"not a readable config\.json"):
        MedSAM3.from_pretrained("tiny", config=tmp_path / "config.json", device="cpu")


def test_a_name_means_the_same_in_a_mirror(model: MedSAM3, rgb: np.ndarray) -> None:
    assert model.mirrors
    text = model.encode_text(["skin lesion", "left lung"])
    image, mirror_image = model.encode_image(rgb), model.encode_image(rgb[:, ::-1].copy())
    lesion, lung = model.detect_all(image, text)
    mirrored, sided = model.detect_all(mirror_image, text)
    np.testing.assert_allclose(mirrored.semantic[:, ::-1], lesion.semantic, atol=1e-4)
    assert mirrored.presence == pytest.approx(lesion.presence, abs=1e-4)
    # The left lung is another one there: such names are asked of the image as it is.
    assert difference(sided.semantic[:, ::-1], lung.semantic) > 0.1
    plain_lesion, plain_lung = model.detect_all(replace(image, mirrored=None), text)
    np.testing.assert_allclose(plain_lung.semantic, lung.semantic, atol=1e-4)
    assert difference(plain_lung.semantic, lung.semantic) < 0.01
    assert difference(plain_lesion.semantic, lesion.semantic) > 1e-3


def difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The largest one, as a share of the highest value: the image may hold nothing of the kind."""
    return float(np.abs(one - other).max() / max(one.max(), other.max()))


def test_a_box_is_asked_about_as_it_is_drawn(model: MedSAM3, rgb: np.ndarray) -> None:
    image, text = model.encode_image(rgb), model.encode_text(["skin lesion"])
    box = [[50, 10, 110, 70]]
    drawn = model.detect_all(image, text, box)[0]
    plain = model.detect_all(replace(image, mirrored=None), text, box)[0]
    np.testing.assert_array_equal(drawn.semantic, plain.semantic)


def test_clicks_mean_the_same_in_a_mirror(model: MedSAM3, rgb: np.ndarray) -> None:
    tracker, width = model.tracker, rgb.shape[1]
    assert tracker is not None
    image, mirror_image = model.encode_image(rgb), model.encode_image(rgb[:, ::-1].copy())
    clicked = tracker.ask(image, [[80, 40], [20, 10]], [1, 0], [50, 10, 110, 70])
    there = [[width - 80, 40], [width - 20, 10]]
    mirrored = tracker.ask(mirror_image, there, [1, 0], [width - 110, 10, width - 50, 70])
    np.testing.assert_allclose(mirrored.logits[0, :, ::-1], clicked.logits[0], atol=1e-3)
    assert mirrored.iou == pytest.approx(clicked.iou, abs=1e-4)
    # An answer that is to be mended is mirrored with the clicks.
    mended = tracker.ask(image, [[80, 40]], mask=clicked.logits[0])
    turned = tracker.ask(mirror_image, there[:1], mask=mirrored.logits[0])
    np.testing.assert_allclose(turned.logits[0, :, ::-1], mended.logits[0], atol=1e-3)
