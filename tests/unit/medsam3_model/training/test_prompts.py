"""Training prompts: what is asked about an image, and the right answers."""

import numpy as np
import pytest
import torch

from backend.training.gate import FOREIGN_NAMES
from medsam3_model.pretraining.phrases import (
    CONCEPT_PHRASES,
    EVERYDAY_PHRASES,
    LESION_PHRASES,
    UNLABELLED,
)
from medsam3_model.training.prompts import BOX_ONLY, pretraining_prompts, target_of


def _layer(*corners: tuple[int, int, int, int]) -> torch.Tensor:
    layer = torch.zeros(96, 96, dtype=torch.long)
    for number, (x0, y0, x1, y1) in enumerate(corners, start=1):
        layer[y0:y1, x0:x1] = number
    return layer


def test_the_answer_has_boxes_masks_and_their_union() -> None:
    target = target_of(_layer((0, 0, 24, 48), (48, 48, 96, 96)), None, 48)
    torch.testing.assert_close(
        target.boxes, torch.tensor([[0.125, 0.25, 0.25, 0.5], [0.75, 0.75, 0.5, 0.5]])
    )
    assert target.masks.shape == (2, 48, 48)
    torch.testing.assert_close(target.masks.sum(dim=0), target.semantic)
    assert target.semantic.sum() == 12 * 24 + 24 * 24


def test_many_instances_keep_the_largest_and_the_whole_union() -> None:
    corners = [
        (9 * (n % 10), 9 * (n // 10), 9 * (n % 10) + 3 + n % 3, 9 * (n // 10) + 4)
        for n in range(60)
    ]
    layer = _layer(*corners)
    target = target_of(layer, None, 48)
    assert len(target.boxes) == len(target.masks) == 24
    assert target.semantic.sum().item() == pytest.approx((layer > 0).sum().item() / 4)


def test_a_box_asks_for_the_object_in_it_alone() -> None:
    layers = {"polyp": _layer((10, 10, 40, 40), (60, 60, 90, 90))}
    seen = 0
    for seed in range(40):
        for prompt in pretraining_prompts(layers, "colon", 48, np.random.default_rng(seed)):
            if prompt.box is not None and len(prompt.target.boxes) == 1:
                seen += 1
                overlap = (prompt.box[:2] - prompt.target.boxes[0, :2]).abs().max()
                assert overlap < 0.25
                assert prompt.target.semantic.sum().item() == pytest.approx(15 * 15)
    assert seen > 5


def test_things_without_a_name_are_only_asked_with_a_box() -> None:
    for seed in range(30):
        prompts = pretraining_prompts(
            {BOX_ONLY: _layer((5, 5, 50, 50))}, "shapes", 48, np.random.default_rng(seed)
        )
        for prompt in prompts:
            assert prompt.target.present == (prompt.box is not None)


def test_absent_concepts_are_asked_and_never_what_is_merely_unlabelled() -> None:
    layers = {"breast tumor": _layer()}
    phrases = set()
    for seed in range(200):
        (prompt,) = pretraining_prompts(layers, "breast", 48, np.random.default_rng(seed))
        assert not prompt.target.present
        assert prompt.target.semantic.sum() == 0
        phrases.add(prompt.phrase)
    assert not phrases & UNLABELLED["breast"]
    assert phrases & set(CONCEPT_PHRASES["breast tumor"] + LESION_PHRASES)
    assert phrases & set(CONCEPT_PHRASES["polyp"])


def test_absent_concepts_are_asked_as_often_as_present_ones() -> None:
    layers = {"cell nucleus": _layer((10, 10, 40, 40))}
    asked = {"cell nucleus": 0.5, "polyp": 0.4, "brain": 0.1}
    absent = [
        prompt.phrase
        for seed in range(300)
        for prompt in pretraining_prompts(
            layers, "microscopy", 48, np.random.default_rng(seed), asked=asked
        )
        if not prompt.target.present
    ]
    polyps = sum(phrase in CONCEPT_PHRASES["polyp"] for phrase in absent)
    brains = sum(phrase in CONCEPT_PHRASES["brain"] for phrase in absent)
    assert len(absent) == 300
    assert polyps > 2 * brains > 0
    assert polyps > len(absent) / 3


def test_no_gate_asks_for_what_training_asks_for() -> None:
    assert not set(EVERYDAY_PHRASES) & set(FOREIGN_NAMES)
