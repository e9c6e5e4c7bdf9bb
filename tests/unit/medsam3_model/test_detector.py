"""The detector's outputs beside those of the model's own forward pass."""

import pytest
import torch
from transformers import Sam3Model

from medsam3_model.checkpoints.presets import tiny_config
from medsam3_model.detector import Prompts, answer_prompts, feature_levels, vision_hidden
from medsam3_model.preprocessing import PADDED_BOX
from medsam3_model.pretraining.initialisation import POSITIONS, initialise, resize_positions


@pytest.fixture(scope="module")
def model() -> Sam3Model:
    torch.manual_seed(0)
    model = Sam3Model(tiny_config(72)).eval()
    initialise(model)
    return model


def _levels(model: Sam3Model, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return feature_levels(model, vision_hidden(model, pixels))


def _prompts(model: Sam3Model) -> tuple[Prompts, dict[str, torch.Tensor]]:
    ids = torch.tensor([[0, 300, 301, 1], [0, 302, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    boxes = torch.tensor([[[0.5, 0.4, 0.3, 0.2]], [[0.5, 0.5, 1.0, 1.0]]])
    labels = torch.tensor([[1], [PADDED_BOX]])
    text = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    prompts = Prompts(torch.zeros(2, dtype=torch.long), text, mask.bool(), boxes, labels)
    asked = {"input_ids": ids, "attention_mask": mask}
    return prompts, asked | {"input_boxes": boxes, "input_boxes_labels": labels}


@torch.no_grad()
def test_last_layer_equals_the_models_own_forward(model: Sam3Model) -> None:
    pixels = torch.randn(1, 3, 72, 72, generator=torch.Generator().manual_seed(1))
    prompts, asked = _prompts(model)
    ours = answer_prompts(model, _levels(model, pixels), prompts)
    theirs = model(pixel_values=pixels.expand(2, -1, -1, -1), **asked)
    torch.testing.assert_close(ours.logits[-1], theirs.pred_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        ours.presence[-1], theirs.presence_logits[:, 0], atol=1e-4, rtol=1e-4
    )
    for at, expected in enumerate(theirs.pred_masks):
        masks = ours.masks(at, torch.arange(len(expected)))
        torch.testing.assert_close(masks, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ours.semantic, theirs.semantic_seg[:, 0], atol=1e-3, rtol=1e-3)
    centre, size = ours.boxes[-1][..., :2], ours.boxes[-1][..., 2:]
    corners = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
    torch.testing.assert_close(corners, theirs.pred_boxes, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_masks_of_some_prompts_are_those_of_all(model: Sam3Model) -> None:
    pixels = torch.randn(1, 3, 72, 72, generator=torch.Generator().manual_seed(2))
    prompts, _ = _prompts(model)
    vision = _levels(model, pixels)
    every, second = (
        answer_prompts(model, vision, prompts),
        answer_prompts(model, vision, prompts, torch.tensor([1])),
    )
    third, fifth = torch.tensor([2]), torch.tensor([4])
    both = second.masks(0, torch.cat([third, fifth]))
    torch.testing.assert_close(both[:1], every.masks(1, third), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[1:], every.masks(1, fifth), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second.semantic[0], every.semantic[1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_masks_can_be_painted_after_mixed_precision(model: Sam3Model) -> None:
    pixels = torch.randn(1, 3, 72, 72, generator=torch.Generator().manual_seed(3))
    prompts, _ = _prompts(model)
    vision, queries = _levels(model, pixels), torch.tensor([0, 5])
    exact = answer_prompts(model, vision, prompts).masks(0, queries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = answer_prompts(model, vision, prompts)
    masks = output.masks(0, queries)
    assert masks.dtype == torch.float32
    assert (masks - exact).abs().max() < 0.1 * exact.abs().max()


def test_positions_survive_a_change_of_resolution_and_back(model: Sam3Model) -> None:
    state = model.state_dict()
    larger = resize_positions(state, 12)
    assert larger[POSITIONS].shape == (1, 144, 192)
    Sam3Model(tiny_config(144)).load_state_dict(larger)
    again = resize_positions(larger, 6)[POSITIONS]
    similar = torch.nn.functional.cosine_similarity(again, state[POSITIONS], dim=-1)
    assert similar.mean() > 0.9
