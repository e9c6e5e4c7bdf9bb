"""Pre-training of the tracker: what a step draws and teaches, and a short run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medsam3_model import MedSAM3
from medsam3_model.pretraining.clicks import (
    ClickTraining,
    TrackerPretraining,
    answer_loss,
    neighbour,
    neighbour_prompt,
    stroke,
)
from medsam3_model.pretraining.data import SourceImage

SHORT = ClickTraining(images_per_step=2, steps=2, warm_up=1, workers=1, single_steps=1)
THERE = torch.ones(1, dtype=torch.bool)


def test_the_rate_warms_up_and_falls_to_a_hundredth() -> None:
    config = ClickTraining(steps=100, warm_up=10, learning_rate=1e-3)
    rates = [config.rate(step) for step in (0, 50, 100)]
    assert rates == pytest.approx([1e-4, 5.05e-4, 1e-5], rel=0.02)


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


def test_a_short_run_writes_a_bundle_and_goes_on_where_it_stopped(
    sources: dict[str, list[SourceImage]], tmp_path: Path
) -> None:
    validation = {"fundus": sources["fundus"]}
    first = TrackerPretraining(SHORT, sources, validation, 0, tmp_path)
    before = first.parts.state_dict()["neck.fpn_layers.0.proj1.weight"].clone()
    first.run()
    after = first.parts.state_dict()["neck.fpn_layers.0.proj1.weight"]
    assert not torch.equal(before, after)
    again = TrackerPretraining(SHORT, sources, validation, 0, tmp_path)
    assert again.step == 2
    torch.testing.assert_close(again.parts.state_dict(), first.parts.state_dict())
    bundled = MedSAM3.from_pretrained("tiny", device="cpu")
    model = MedSAM3.from_pretrained(tmp_path / "bundle", device="cpu")
    assert model.encoder_hash == bundled.encoder_hash
    assert model.tracker is not None
    assert not model.tracker.has_memory
    assert model.tracker.traits.paints_clicks
    assert '"validation": {"fundus": [' in (tmp_path / "log.jsonl").read_text()


def test_a_run_goes_on_from_the_bundled_tracker(
    sources: dict[str, list[SourceImage]], tmp_path: Path
) -> None:
    config = ClickTraining(images_per_step=2, steps=1, warm_up=1, workers=1, go_on=True)
    run = TrackerPretraining(config, sources, {}, 0, tmp_path)
    bundled = MedSAM3.from_pretrained("tiny", device="cpu").tracker
    assert bundled is not None
    for name, value in bundled.model.state_dict().items():
        assert torch.equal(run.tracker.model.state_dict()[name], value)
