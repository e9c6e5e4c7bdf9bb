"""From the detector's tensors to instances: every setting does what it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medsam3_model.postprocessing import (
    MEDSAM3_V1_SETTINGS,
    SAM3_SETTINGS,
    DetectionSettings,
    to_detections,
)

SIZE = (40, 80)  # height, width


def logit(probability: float) -> float:
    return float(torch.logit(torch.tensor(probability)))


def outputs(presence: float = 0.8) -> dict[str, torch.Tensor]:
    """Three queries: left half (0.9), nearly the same (0.7), a spot of 4 × 4 pixels (0.6)."""
    masks = torch.full((1, 3, 20, 40), -8.0)
    masks[0, 0, :, :20] = 8
    masks[0, 1, :, :19] = 8
    masks[0, 2, 10:12, 30:32] = 8
    boxes = torch.tensor([[0, 0, 0.5, 1], [0, 0, 0.475, 1], [0.75, 0.5, 0.8, 0.6]])
    semantic = torch.full((1, 1, 20, 40), -8.0)
    semantic[..., :20] = logit(0.75)
    return {
        "pred_logits": torch.tensor([[logit(0.9), logit(0.7), logit(0.6)]]),
        "pred_boxes": boxes[None],
        "presence_logits": torch.tensor([[logit(presence)]]),
        "pred_masks": masks,
        "semantic_seg": semantic,
    }


ALL = DetectionSettings(score_threshold=0.1, use_presence=False, nms_iou_threshold=None)


def test_instances_are_at_the_size_of_the_image_best_first() -> None:
    found = to_detections(outputs(), 0, SIZE, ALL, "polyp")
    assert found.masks.shape == (3, 40, 80)
    assert found.masks.dtype == np.bool_
    np.testing.assert_allclose(found.scores, [0.9, 0.7, 0.6], atol=1e-5)
    np.testing.assert_allclose(found.boxes[0], [0, 0, 40, 40])
    expected = np.zeros(SIZE, bool)
    expected[:, :40] = True
    np.testing.assert_array_equal(found.masks[0], expected)
    assert found.semantic.shape == SIZE
    assert found.semantic[20, 5] == pytest.approx(0.75, abs=1e-4)
    assert found.presence == pytest.approx(0.8, abs=1e-5)
    assert found.phrase == "polyp"
    assert found.max_score == pytest.approx(0.9, abs=1e-5)


def test_presence_multiplies_scores_or_not() -> None:
    with_presence = to_detections(outputs(), 0, SIZE, replace(ALL, use_presence=True))
    np.testing.assert_allclose(with_presence.scores, [0.72, 0.56, 0.48], atol=1e-5)
    assert len(to_detections(outputs(0.1), 0, SIZE, SAM3_SETTINGS)) == 0
    assert len(to_detections(outputs(0.1), 0, SIZE, MEDSAM3_V1_SETTINGS)) == 2


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({}, [0.9, 0.7, 0.6]),
        ({"score_threshold": 0.65}, [0.9, 0.7]),
        ({"nms_iou_threshold": 0.5}, [0.9, 0.6]),
        ({"nms_iou_threshold": 0.99}, [0.9, 0.7, 0.6]),
        ({"min_area": 50}, [0.9, 0.7]),
        ({"max_instances": 1}, [0.9]),
    ],
)
def test_settings(changed: dict[str, float], kept: list[float]) -> None:
    found = to_detections(outputs(), 0, SIZE, replace(ALL, **changed))
    np.testing.assert_allclose(found.scores, kept, atol=1e-5)
    assert len(found.masks) == len(found.boxes) == len(kept)


def test_small_masks_do_not_use_up_the_number_of_instances() -> None:
    changed = outputs()
    changed["pred_masks"][0, 0] = -8
    found = to_detections(changed, 0, SIZE, replace(ALL, max_instances=1))
    np.testing.assert_allclose(found.scores, [0.7], atol=1e-5)


def test_mask_threshold() -> None:
    soft = outputs()
    soft["pred_masks"][0, 0] = logit(0.6)
    assert to_detections(soft, 0, SIZE, ALL).masks[0].all()
    strict = to_detections(soft, 0, SIZE, replace(ALL, mask_threshold=0.65))
    assert 0.9 not in strict.scores.round(3)


def test_the_semantic_map_has_a_share_in_every_mask() -> None:
    """A query is sure of a column that the map denies, and unsure of one that it affirms."""
    given = outputs()
    given["pred_masks"][0, 0, :, 10] = -3.0
    given["pred_masks"][0, 0, :, 30] = 6.0
    alone = to_detections(given, 0, SIZE, ALL).masks[0]
    assert not alone[20, 21]
    assert alone[20, 61]
    shared = to_detections(given, 0, SIZE, replace(ALL, semantic_share=0.5)).masks[0]
    assert shared[20, 21]
    assert not shared[20, 61]
    whole = to_detections(given, 0, SIZE, replace(ALL, semantic_share=1.0))
    np.testing.assert_array_equal(whole.masks[0], whole.semantic > 0.5)


def test_nothing_found_still_has_shapes_and_a_fallback() -> None:
    found = to_detections(outputs(), 0, SIZE, replace(ALL, score_threshold=0.95))
    assert found.masks.shape == (0, 40, 80)
    assert found.boxes.shape == (0, 4)
    assert not found.union().any()
    mask, source = found.concept_mask()
    assert source == "semantic"
    assert mask[:, :39].all()


def test_thresholding_again_is_the_same_as_thresholding_once() -> None:
    strict = to_detections(outputs(), 0, SIZE, replace(ALL, score_threshold=0.65))
    later = to_detections(outputs(), 0, SIZE, ALL).above(0.65)
    np.testing.assert_array_equal(later.masks, strict.masks)
    np.testing.assert_array_equal(later.boxes, strict.boxes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"score_threshold": 1.5},
        {"nms_iou_threshold": -0.1},
        {"mask_threshold": 0.0},
        {"min_area": -1},
        {"max_instances": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"is between|at least"):
        DetectionSettings(**wrong)  # type: ignore[arg-type]
