"""Starting weights for pre-training a small `Sam3Model` from nothing, or from a shallower one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import Sam3Config, Sam3Model

POSITIONS = "vision_encoder.backbone.embeddings.position_embeddings"


@torch.no_grad()
def initialise(model: "Sam3Model") -> None:
    """Replace transformers' starting weights, which are made for a pre-trained model.

    Its normal(0, .02) leaves a 64-wide detector almost silent. Linear layers get Xavier and
    convolutions Kaiming weights; the patches start with sine positions, so that boxes can be
    related to places from the first step; the queries start at boxes spread over the image.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            fan_in = module.weight[0].numel()
            if isinstance(module, nn.ConvTranspose2d):
                fan_in = module.weight.shape[0]  # kernel equals stride: one tap per output pixel
            nn.init.normal_(module.weight, std=fan_in**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for level in model.vision_encoder.neck.fpn_layers:
        # no louder than the prompts that are mixed in later
        level.get_parameter("proj2.weight").mul_(0.3)
    embeddings = model.vision_encoder.backbone.embeddings
    count, width = embeddings.position_embeddings.shape[1:]
    embeddings.position_embeddings.copy_(0.5 * _sine_positions(round(count**0.5), width))
    # The queries differ from the start: equal ones would all learn the same.
    decoder = model.detr_decoder
    nn.init.normal_(decoder.query_embed.weight)
    nn.init.normal_(decoder.presence_token.weight)
    decoder.reference_points.weight.copy_(_spread_boxes(len(decoder.reference_points.weight)))
    # Boxes begin where their queries are, masks faint, and most pixels as background.
    weights = dict(model.named_parameters())
    weights["detr_decoder.box_head.layer3.weight"].zero_()
    weights["mask_decoder.mask_embedder.layers.2.weight"].mul_(0.1)
    weights["mask_decoder.semantic_projection.bias"].fill_(-1.0)


def deepened(model: "Sam3Model", config: "Sam3Config") -> "Sam3Model":
    """A model with `config`'s, as many or more, layers in its vision transformer, in training.

    It answers as `model` does at first: further layers are copies of its last ones, which add
    nothing until they learn to.
    """
    from transformers import Sam3Model

    prefix = "vision_encoder.backbone.layers."
    deeper = Sam3Model(config).train()
    before, after = (len(each.vision_encoder.backbone.layers) for each in (model, deeper))
    state = model.state_dict()
    for number in range(before, after):
        origin = f"{prefix}{number - (after - before)}."
        for key in [key for key in state if key.startswith(origin)]:
            silent = key.removeprefix(origin).startswith(("attention.o_proj.", "mlp.fc2."))
            value = torch.zeros_like(state[key]) if silent else state[key].clone()
            state[f"{prefix}{number}.{key.removeprefix(origin)}"] = value
    deeper.load_state_dict(state)
    return deeper


def resize_positions(state: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """The state dict of a model trained at another resolution, for `tokens` × `tokens` patches."""
    positions = state[POSITIONS]
    old = round(positions.shape[1] ** 0.5)
    if old == tokens:
        return dict(state)
    square = positions.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, (tokens, tokens), mode="bicubic", antialias=True)
    return {**state, POSITIONS: square.permute(0, 2, 3, 1).reshape(1, tokens * tokens, -1)}


def _sine_positions(side: int, width: int) -> Tensor:
    """(1, side·side, width): sines and cosines of y in one half, of x in the other."""
    quarter = width // 4
    place = (torch.arange(side) + 0.5) / side
    frequencies = torch.pi * 2 ** torch.linspace(0, 5, quarter)
    waves = place[:, None] * frequencies[None]
    line = torch.cat([waves.sin(), waves.cos()], dim=1)
    grid = torch.zeros(side, side, width)
    grid[..., : 2 * quarter] = line[:, None]
    grid[..., 2 * quarter : 4 * quarter] = line[None]
    return grid.reshape(1, side * side, width)


def _spread_boxes(count: int) -> Tensor:
    """Logits of `count` boxes: one for the whole image, the rest small and large over the image."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(count, 2, generator=generator) * 0.8 + 0.1
    sizes = torch.rand(count, 1, generator=generator).expand(-1, 2) * 0.5 + 0.1
    boxes = torch.cat([centres, sizes], dim=1)
    boxes[0] = torch.tensor([0.5, 0.5, 0.8, 0.8])
    return torch.logit(boxes)
