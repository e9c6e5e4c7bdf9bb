import math

import pytest
import torch

from medsam3_model.training.matcher import (
    MatchWeights,
    box_iou_and_giou,
    cxcywh_to_xyxy,
    match,
    matching_cost,
)


def test_boxes_from_centre_to_corners() -> None:
    box = torch.tensor([[0.5, 0.4, 0.2, 0.6]])
    torch.testing.assert_close(cxcywh_to_xyxy(box), torch.tensor([[0.4, 0.1, 0.6, 0.7]]))


def test_giou_of_overlapping_boxes_by_hand() -> None:
    # Two 2×2 squares one apart: 1×2 shared, union 6, hull 3×2 = 6, so nothing is subtracted.
    first, second = torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 0, 3, 2])
    iou, giou = box_iou_and_giou(first, second)
    assert iou.item() == pytest.approx(2 / 6)
    assert giou.item() == pytest.approx(2 / 6)


def test_giou_of_distant_boxes_is_negative() -> None:
    # Unit squares with a gap of 2: union 2, hull 4×1, so 0 − (4 − 2) / 4.
    iou, giou = box_iou_and_giou(torch.tensor([0.0, 0, 1, 1]), torch.tensor([3.0, 0, 4, 1]))
    assert iou.item() == 0
    assert giou.item() == pytest.approx(-0.5)


def test_boxes_without_area_give_finite_values() -> None:
    point = torch.tensor([0.5, 0.5, 0.5, 0.5])
    iou, giou = box_iou_and_giou(point, point)
    assert iou.item() == 0
    assert math.isfinite(giou.item())


def test_cost_is_classification_plus_distance_minus_giou() -> None:
    weights = MatchWeights(classification=2, box_l1=5, giou=2)
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    cost = matching_cost(torch.zeros(1), box, box + torch.tensor([0.1, 0, 0, 0]), weights)
    # p = ½: focal costs α·¼·ln 2 and (1−α)·¼·ln 2. L1 .1. Half of each box shared: IoU 1/3 = GIoU.
    classification = 0.25 * 0.25 * math.log(2) - 0.75 * 0.25 * math.log(2)
    assert cost.shape == (1, 1)
    assert cost.item() == pytest.approx(2 * classification + 5 * 0.1 - 2 / 3, abs=1e-5)


def test_each_target_goes_to_the_query_at_its_place() -> None:
    boxes = torch.tensor([[[0.8, 0.8, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]]])
    targets = torch.tensor([[0.21, 0.2, 0.2, 0.2], [0.79, 0.8, 0.2, 0.2]])
    ((queries, objects),) = match(torch.zeros(1, 3), boxes, [targets])
    assert dict(zip(queries.tolist(), objects.tolist(), strict=True)) == {0: 1, 1: 0}


def test_a_confident_query_wins_among_equal_boxes() -> None:
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(1, 3, 4)
    ((queries, _),) = match(torch.tensor([[-2.0, 3.0, 0.0]]), boxes, [boxes[0, :1]])
    assert queries.tolist() == [1]


def test_prompts_without_targets_and_with_more_targets_than_queries() -> None:
    boxes = torch.rand(2, 3, 4)
    none, many = match(torch.zeros(2, 3), boxes, [torch.zeros(0, 4), torch.rand(5, 4)])
    assert none[0].tolist() == none[1].tolist() == []
    assert sorted(many[0].tolist()) == [0, 1, 2]
    assert len(set(many[1].tolist())) == 3
