"""Training of an adapter: the blocks before it are frozen, so what they make is encoded once."""

import hashlib
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Sam3Model

from medsam3_model.checkpoints.encoder_adapter import BLOCKS, with_layers
from medsam3_model.checkpoints.hashes import WeightsHash
from medsam3_model.checkpoints.loading import empty_model
from medsam3_model.types import ImageEmbedding

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3


def stem_of(model: "MedSAM3") -> "MedSAM3":
    """A model whose vision transformer ends before the blocks that an adapter changes.

    All weights are shared. Its image embeddings are the same for all versions of a base, with or
    without an adapter; they are for `adapted`, and nothing else can be asked about them.
    """
    base = model.unadapted
    backbone = base.model.vision_encoder.backbone
    shortened = empty_model(base.config)
    vision = shortened.vision_encoder
    for name, part in base.model.named_children():
        setattr(shortened, name, part)
    vision.backbone = with_layers(backbone, list(backbone.layers[:-BLOCKS]))
    vision.neck = base.model.vision_encoder.neck
    shortened.vision_encoder = vision
    words = f"{base.base_hash} without its last {BLOCKS} blocks"
    stem = hashlib.sha256(words.encode()).hexdigest()
    return type(base)(
        shortened,
        base.tokenizer,
        name=base.name,
        device=base.device,
        dtype=base.dtype,
        hashes=WeightsHash(stem, base.detector_hash),
    )


def last_blocks(model: Sam3Model, hidden: Tensor) -> Tensor:
    """The vision transformer's output (B, patches, C), from what its stem made, as large."""
    batch, patches, width = hidden.shape
    side = math.isqrt(patches)
    spatial = hidden.view(batch, side, side, width)
    for block in model.vision_encoder.backbone.layers[-BLOCKS:]:
        spatial = block(spatial)
    return spatial.view(batch, patches, width)


@torch.no_grad()
def adapted(model: "MedSAM3", of_stem: ImageEmbedding) -> ImageEmbedding:
    """An image as a model sees it, from the embedding that the stem made of it."""
    hidden = of_stem.last_hidden_state.to(model.device, model.dtype)
    return model.restore_embedding(last_blocks(model.model, hidden), of_stem.original_size)
