"""Losses of the detector, by hand and at their limits."""

import math

import pytest
import torch

from medsam3_model.detector import DetectorOutput
from medsam3_model.training.losses import (
    LossWeights,
    PromptTarget,
    classification_loss,
    detector_loss,
    dice_loss,
)


def test_dice_loss_by_hand() -> None:
    # Probability ½ on four pixels, two of them true: 1 − (2·1 + 1) / (2 + 2 + 1).
    loss = dice_loss(torch.zeros(1, 2, 2), torch.tensor([[[1.0, 1], [0, 0]]]))
    assert loss.item() == pytest.approx(1 - 3 / 5)


def test_dice_loss_of_an_empty_mask_vanishes_when_nothing_is_found() -> None:
    empty = torch.zeros(1, 8, 8)
    assert dice_loss(empty - 20, empty).item() == pytest.approx(0, abs=1e-5)
    assert dice_loss(empty + 20, empty).item() > 0.9


def test_classification_aims_at_the_quality_of_the_box() -> None:
    weights = LossWeights(positive_weight=10, gamma=2)
    logits = torch.zeros(1, 2)
    quality, positive = torch.tensor([[0.5, 0.0]]), torch.tensor([[True, False]])
    loss = classification_loss(logits, quality, positive, weights)
    # At logit 0 the entropy is ln 2 whatever the aim; negatives are weighted by p².
    assert loss[0].tolist() == pytest.approx([10 * math.log(2), 0.25 * math.log(2)])
    logits.requires_grad_()
    classification_loss(logits, quality, positive, weights).sum().backward()
    assert logits.grad is not None
    aim = 0.5**0.25 * 0.5**0.75
    assert logits.grad[0, 0].item() == pytest.approx(10 * (0.5 - aim))


def test_classification_never_aims_below_one_percent() -> None:
    logits = torch.zeros(1, 1, requires_grad=True)
    positive = torch.ones(1, 1, dtype=torch.bool)
    classification_loss(logits, torch.zeros(1, 1), positive, LossWeights()).sum().backward()
    assert logits.grad is not None
    assert logits.grad.item() == pytest.approx(10 * (0.5 - 0.01))


def _target(box: list[float] | None) -> PromptTarget:
    union = torch.zeros(4, 4)
    if box is None:
        return PromptTarget(torch.zeros(0, 4), torch.zeros(0, 4, 4), union)
    union[:2, :2] = 1
    return PromptTarget(torch.tensor([box]), union[None], union)


def _output(prompts: int, rows: list[int], presence: float = 0.0) -> DetectorOutput:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    return DetectorOutput(
        logits=random(2, prompts, 3),
        boxes=random(2, prompts, 3, 4) * 0.5 + 0.2,
        presence=torch.full((2, prompts), presence),
        mask_rows=torch.tensor(rows),
        pixels=random(len(rows), 5, 4, 4),
        weights=random(len(rows), 3, 5),
        biases=random(len(rows), 3),
        semantic=random(len(rows), 4, 4),
    )


def test_total_is_the_sum_of_the_weighted_terms() -> None:
    targets = [_target([0.25, 0.25, 0.5, 0.5]), _target(None)]
    losses = detector_loss(_output(2, [0, 1]), targets)
    terms = {"classification", "box_l1", "giou", "presence"} | {
        f"{kind}_{loss}" for kind in ("mask", "semantic") for loss in ("focal", "dice")
    }
    assert set(losses) == terms | {"total"}
    assert losses["total"].item() == pytest.approx(sum(losses[t].item() for t in terms), rel=1e-5)


def test_presence_is_learned_from_both_kinds_in_every_layer() -> None:
    targets = [_target([0.25, 0.25, 0.5, 0.5]), _target(None)]
    losses = detector_loss(_output(2, [0, 1], presence=2.0), targets, LossWeights(presence=1))
    one_layer = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    assert losses["presence"].item() == pytest.approx(2 * one_layer, rel=1e-5)


def test_queries_of_an_absent_concept_are_left_alone() -> None:
    losses = detector_loss(_output(1, [0]), [_target(None)])
    for term in ("classification", "box_l1", "giou", "mask_focal", "mask_dice"):
        assert losses[term].item() == 0
    assert losses["semantic_dice"].item() > 0


def test_perfect_boxes_and_masks_cost_nothing() -> None:
    box = [0.25, 0.25, 0.5, 0.5]
    target = _target(box)
    output = DetectorOutput(
        logits=torch.tensor([[[9.0, -9.0]]]),
        boxes=torch.tensor([[box, [0.9, 0.9, 0.1, 0.1]]])[None],
        presence=torch.tensor([[9.0]]),
        mask_rows=torch.tensor([0]),
        pixels=target.semantic[None, None],
        weights=torch.full((1, 2, 1), 40.0),
        biases=torch.full((1, 2), -20.0),
        semantic=target.semantic[None] * 40 - 20,
    )
    losses = detector_loss(output, [target])
    for term in ("box_l1", "giou", "mask_focal", "mask_dice", "semantic_focal", "semantic_dice"):
        assert losses[term].item() == pytest.approx(0, abs=1e-3), term
    assert losses["classification"].item() < 0.5


def test_gradients_reach_every_output() -> None:
    output = _output(2, [0, 1])
    tensors = [
        *(output.logits, output.boxes, output.presence),
        *(output.pixels, output.weights, output.biases, output.semantic),
    ]
    for tensor in tensors:
        tensor.requires_grad_()
    detector_loss(output, [_target([0.25, 0.25, 0.5, 0.5]), _target(None)])["total"].backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in tensors)


def test_masks_may_be_asked_for_some_prompts_only() -> None:
    targets = [_target([0.25, 0.25, 0.5, 0.5]), _target([0.5, 0.5, 0.5, 0.5])]
    assert detector_loss(_output(2, [1]), targets)["mask_dice"].item() > 0
