"""The Hungarian matching of queries to targets."""

import math

import pytest
import torch

from medsam3_model.training.matcher import MatchWeights, match, matching_cost


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
