"""What a step asks of the tracker and what it teaches: rivals, absence, neighbours, strokes."""

import numpy as np
import pytest
import torch

from medsam3_model.pretraining.click_rounds import (
    answer_loss,
    neighbour,
    neighbour_prompt,
    objects_in_view,
    stroke,
)

THERE = torch.ones(1, dtype=torch.bool)


def test_some_of_the_instances_in_view_are_asked_for() -> None:
    labels = torch.zeros(2, 80, 80, dtype=torch.int64)
    labels[0, :20, :20] = 1
    labels[0, 40:42, 40:42] = 2  # a single cell
    labels[1, 50:, 50:] = 1
    layers = dict(zip(("polyp", "lesion"), labels, strict=True))
    masks = objects_in_view(layers, np.random.default_rng(0))
    assert sorted(int(mask.sum()) for mask in masks) == [100, 225]
    labels = torch.arange(36).view(6, 6).repeat_interleave(20, 0).repeat_interleave(20, 1)
    assert len(objects_in_view({"cell": labels}, np.random.default_rng(0))) == 4


def test_of_rivals_the_best_is_taught_and_all_know_how_good_they_are() -> None:
    truth = torch.zeros(1, 8, 8)
    truth[0, 2:6, 2:6] = 1
    right, wrong = (2 * truth - 1) * 9, -(2 * truth - 1) * 9
    masks = torch.stack([wrong, right], 1).requires_grad_()
    sure = {"masks": masks, "iou": torch.tensor([[0.0, 1.0]]), "object_logits": torch.ones(1, 1)}
    loss, best, score = answer_loss(sure, truth, THERE)
    torch.testing.assert_close(best[0], right[0])
    assert score == pytest.approx(1.0)
    loss.backward()
    assert masks.grad is not None
    assert masks.grad[0, 0].abs().max() == 0
    mistaken = sure | {"iou": torch.tensor([[1.0, 0.0]])}
    assert answer_loss(mistaken, truth, THERE)[0] > loss + 0.5


def test_a_small_object_counts_as_much_as_a_large_one() -> None:
    losses = []
    for side in (4, 24):
        truth = torch.zeros(1, 72, 72)
        truth[0, :side, :side] = 1
        missed = {
            "masks": torch.full((1, 1, 72, 72), -9.0),
            "iou": torch.zeros(1, 1),
            "object_logits": torch.ones(1, 1),
        }
        losses.append(float(answer_loss(missed, truth, THERE)[0]))
    assert losses[0] > losses[1] / 2


def test_what_is_not_there_is_denied_and_teaches_no_mask() -> None:
    truth = torch.zeros(2, 8, 8)
    truth[:, 2:6, 2:6] = 1
    masks = (-9 * (2 * truth - 1))[:, None].requires_grad_()
    answer = {"masks": masks, "iou": torch.zeros(2, 1)}
    there = torch.tensor([True, False])
    denied = {**answer, "object_logits": torch.tensor([[9.0], [-9.0]])}
    claimed = {**answer, "object_logits": torch.tensor([[9.0], [9.0]])}
    loss = answer_loss(denied, truth, there)[0]
    assert answer_loss(claimed, truth, there)[0] > loss + 0.3
    loss.backward()
    assert masks.grad is not None
    assert masks.grad[0].abs().max() > 0
    assert masks.grad[1].abs().max() == 0


def test_a_neighbouring_slice_shows_the_object_a_little_different() -> None:
    truth = torch.zeros(2, 60, 80)
    truth[0, 20:40, 30:50] = 1
    truth[1, 5:15, 60:75] = 1
    rng = np.random.default_rng(0)
    for _ in range(20):
        near = neighbour(truth[0], rng) > 0.5
        both, either = near & (truth[0] > 0.5), near | (truth[0] > 0.5)
        assert 0.3 < both.sum() / either.sum() <= 1
    endings = [neighbour_prompt(truth, torch.tensor([0, 1]), rng) for _ in range(40)]
    assert any(not present.all() for _, present in endings)
    for prompt, present in endings:
        assert present.any()
        assert prompt.masks is not None
        ended = prompt.masks[:, 0][~present] > 0
        assert not (ended & (truth[~present] > 0.5)).any()


def test_a_stroke_is_a_line_in_the_object() -> None:
    mask = np.zeros((40, 40), np.bool_)
    mask[5:35, 10:20] = True
    for seed in range(10):
        drawn = stroke(mask, np.random.default_rng(seed))
        assert drawn.any()
        assert not drawn[~mask].any()
        assert drawn.sum() < mask.sum()
