"""SAM 3's forward pass in the pieces that may be kept: image features, text features, detector.

transformers' `Sam3Model.forward` is used for the detector; around it two things that are computed
there and never read are left out: the coarsest feature level, and the positions of the finer ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Sam3Model
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from medsam3_model.device import autocast

OUTPUT_NAMES = ("pred_logits", "pred_boxes", "presence_logits", "pred_masks", "semantic_seg")


def vision_hidden(model: Sam3Model, pixel_values: torch.Tensor) -> torch.Tensor:
    """The vision transformer's output, (B, patches, C), of pixels (B, 3, S, S)."""
    return model.vision_encoder.backbone(pixel_values).last_hidden_state


def feature_levels(model: Sam3Model, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The neck: three feature levels (B, D, h, w), finest first, of the transformer's output."""
    config: Any = model.config.vision_config
    side = int(config.image_size) // int(config.backbone_config.patch_size)
    spatial = hidden.view(hidden.shape[0], side, side, -1).permute(0, 3, 1, 2)
    return tuple(layer(spatial) for layer in model.vision_encoder.neck.fpn_layers[:-1])


def text_features(
    model: Sam3Model, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Projected text features (K, tokens, D) of token ids (K, tokens)."""
    return model.get_text_features(
        input_ids=input_ids, attention_mask=attention_mask, return_dict=True
    ).pooler_output


def detector_outputs(
    model: Sam3Model,
    levels: Sequence[torch.Tensor],
    features: torch.Tensor,
    attention_mask: torch.Tensor,
    boxes: torch.Tensor,
    labels: torch.Tensor,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """The detector's answers to K phrases about one image, or to K pairs of image and phrase.

    Args:
        model: float32 detector.
        levels: from `feature_levels`, of 1 or K images.
        features: (K, tokens, D).
        attention_mask: bool (K, tokens).
        boxes: float32 (K, M, 4), normalised cx, cy, w, h; M at least 1.
        labels: int64 (K, M), 1, 0 or -10.
        dtype: bfloat16 computes with autocast.

    Returns:
        The tensors of `OUTPUT_NAMES`, see `MedSAM3.raw`.
    """
    batch, device = len(features), levels[0].device
    coarsest = levels[-1].to(torch.float32)  # the detector's residual stream starts here
    expanded = [level.expand(batch, -1, -1, -1) for level in (*levels[:-1], coarsest)]
    position = model.vision_encoder.neck.position_encoding(
        torch.Size((1, *coarsest.shape[1:])), device, torch.float32
    ).expand(batch, -1, -1, -1)
    # transformers drops the last of each and reads the positions of the coarsest that is left.
    vision = Sam3VisionEncoderOutput(
        fpn_hidden_states=(*expanded, expanded[-1]), fpn_position_encoding=(position, position)
    )
    with autocast(device, dtype):
        outputs = model(
            vision_embeds=vision,
            # It reads `.pooler_output`: a bare tensor will not do.
            text_embeds=BaseModelOutputWithPooling(pooler_output=features),
            attention_mask=attention_mask,
            input_boxes=boxes.to(device),
            input_boxes_labels=labels.to(device),
        )
    return {name: outputs[name] for name in OUTPUT_NAMES}
