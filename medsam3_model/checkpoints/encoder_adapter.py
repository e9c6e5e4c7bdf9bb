"""Low-rank adapters on the last blocks of the vision transformer, which a version may have.

A block's matrix W becomes W + B·A, with A (rank, in) and B (out, rank) (LoRA, Hu et al. 2021,
arXiv 2106.09685, section 4.1). A is drawn once and stays, B alone learns (LoRA-FA, Zhang et al.
2023, arXiv 2308.03303): so an average of adapters, and weights between two versions, change W by
the average of what they change it by.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Sam3Model
from transformers.models.sam3.modeling_sam3 import Sam3ViTModel

from medsam3_model.checkpoints import hashes
from medsam3_model.errors import CheckpointError

BLOCKS, RANK = 2, 8
BACKBONE = "vision_encoder.backbone."
_LAYERS = f"{BACKBONE}layers."
_A, _B = hashes.ADAPTER_ENDINGS


class AdaptedLinear(nn.Module):
    """A linear layer with a low-rank change of its weight."""

    lora_a: Tensor
    lora_b: Tensor

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor, *, learns: bool) -> None:
        """Adapt a layer.

        Args:
            linear: as it was; it stays so.
            a: float32 (rank, in).
            b: float32 (out, rank).
            learns: `b` is a parameter, and the change is computed anew each time; else it is
                merged into the weight and costs nothing.
        """
        super().__init__()
        weight = linear.weight
        if learns:
            self.lora_b = nn.Parameter(b.clone())
        else:
            weight = nn.Parameter((weight.float() + b @ a).to(weight.dtype), requires_grad=False)
            self.register_buffer("lora_b", b)
        self.register_buffer("lora_a", a)
        self.weight, self.bias = weight, linear.bias
        self.learns = learns

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (..., in) to (..., out)."""
        weight = self.weight
        if self.learns:
            weight = weight + (self.lora_b @ self.lora_a).to(weight.dtype)
        return F.linear(inputs, weight, self.bias)


def untrained_adapter(model: Sam3Model) -> dict[str, Tensor]:
    """The tensors of an adapter of the last `BLOCKS` blocks that changes nothing yet.

    Every linear layer of a block has one. A is drawn from the layer's name, so that all adapters
    of a model have the same.
    """
    adapter: dict[str, Tensor] = {}
    layers = model.vision_encoder.backbone.layers
    for number in range(max(0, len(layers) - BLOCKS), len(layers)):
        for name, linear in layers[number].named_modules():
            if not isinstance(linear, nn.Linear):
                continue
            key = f"{_LAYERS}{number}.{name}"
            drawn = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            a = torch.empty(RANK, linear.in_features)
            adapter[key + _A] = nn.init.orthogonal_(a, generator=drawn)
            adapter[key + _B] = torch.zeros(linear.out_features, RANK)
    return adapter


def adapter_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's tensors among those of a version."""
    return {key: tensor for key, tensor in state.items() if hashes.is_adapter(key)}


def adapted_backbone(
    backbone: Sam3ViTModel, adapter: Mapping[str, Tensor], *, learns: bool = False
) -> Sam3ViTModel:
    """A vision transformer with an adapter; all other weights are shared with the given one.

    Args:
        backbone: without an adapter.
        adapter: tensors by name, as `untrained_adapter` has them.
        learns: see `AdaptedLinear`.

    Raises:
        CheckpointError: the adapter is of another model, or half of one is missing.
    """
    device = next(backbone.parameters()).device
    blocks: dict[int, nn.Module] = {}
    for key in sorted({key.rsplit(".", 1)[0] for key in adapter}):
        number, _, name = key.removeprefix(_LAYERS).partition(".")
        try:
            linear = backbone.layers[int(number)].get_submodule(name)
            a, b = adapter[key + _A], adapter[key + _B]
        except (AttributeError, IndexError, KeyError, ValueError) as error:
            raise CheckpointError(f"the adapter does not fit the model at {key}") from error
        if not isinstance(linear, nn.Linear) or not _fits(a, b, linear):
            raise CheckpointError(f"the adapter has another shape than the model at {key}")
        if int(number) not in blocks:
            blocks[int(number)] = copy.deepcopy(backbone.layers[int(number)])
        layer = AdaptedLinear(linear, a.to(device), b.to(device), learns=learns)
        blocks[int(number)].set_submodule(name, layer)
    layers = [blocks.get(number, layer) for number, layer in enumerate(backbone.layers)]
    return with_layers(backbone, layers)


def _fits(a: Tensor, b: Tensor, linear: nn.Linear) -> bool:
    """Whether B·A is as large as the layer's weight."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        return False
    return (b.shape[0], a.shape[1]) == tuple(linear.weight.shape)


def with_layers(backbone: Sam3ViTModel, layers: list[nn.Module]) -> Sam3ViTModel:
    """A vision transformer with other blocks; all else is shared."""
    with torch.device("meta"):
        other = type(backbone)(backbone.config)
    other.embeddings, other.layer_norm = backbone.embeddings, backbone.layer_norm
    other.layers = nn.ModuleList(layers)
    return other.eval()
