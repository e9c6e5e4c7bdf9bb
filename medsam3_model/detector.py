"""SAM 3's forward passes: encoders and detector apart, for serving and for training.

Image and text features may be kept, so they have functions of their own. To serve, the detector
(`detector_outputs`) is transformers' `Sam3Model.forward`; two things that are computed there and
never read are left out: the coarsest feature level, and the positions of the finer ones.

Training (`answer_prompts`) needs the answers of every decoder layer, of which transformers returns
the last. Its submodules are called in the same order, with savings: the prompts of one image share
its vision features, pixels are decoded only for the prompts that ask for masks, and a mask is
painted only for the queries that are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Sam3Model
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from medsam3_model.device import autocast
from medsam3_model.preprocessing import PADDED_BOX

OUTPUT_NAMES = ("pred_logits", "pred_boxes", "presence_logits", "pred_masks", "semantic_seg")


def vision_hidden(model: Sam3Model, pixel_values: Tensor) -> Tensor:
    """The vision transformer's output, (B, patches, C), of pixels (B, 3, S, S)."""
    return model.vision_encoder.backbone(pixel_values).last_hidden_state


def feature_levels(model: Sam3Model, hidden: Tensor) -> tuple[Tensor, ...]:
    """The neck: three feature levels (B, D, h, w), finest first, of the transformer's output."""
    spatial = _spatial(model, hidden)
    # SAM 3's fourth is never read, and SAM 3.1 has none.
    return tuple(layer(spatial) for layer in model.vision_encoder.neck.fpn_layers[:3])


def feature_levels_for_masks(model: Sam3Model, hidden: Tensor, images: Tensor) -> list[Tensor]:
    """As `feature_levels`, but the finer levels are made for some images only, and 0 for others.

    Finer levels serve the masks alone, and are most of the neck's cost.

    Args:
        model: whose neck is used; it may be in training.
        hidden: the vision transformer's output (B, patches, C).
        images: int64 (R,), distinct, whose finer levels are made.

    Returns:
        Three levels (B, D, h, w), finest first, the coarsest in float32.
    """
    spatial = _spatial(model, hidden)
    *finer, coarsest = model.vision_encoder.neck.fpn_layers[:3]
    levels = []
    for layer in finer:
        made = layer(spatial[images])
        levels.append(made.new_zeros(len(hidden), *made.shape[1:]).index_copy(0, images, made))
    return [*levels, coarsest(spatial).float()]  # the detector's residual stream starts here


def _spatial(model: Sam3Model, hidden: Tensor) -> Tensor:
    """The transformer's output (B, patches, C) as (B, C, h, w)."""
    config: Any = model.config.vision_config
    side = int(config.image_size) // int(config.backbone_config.patch_size)
    return hidden.view(hidden.shape[0], side, side, -1).permute(0, 3, 1, 2)


def text_features(model: Sam3Model, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Projected text features (K, tokens, D) of token ids (K, tokens)."""
    return model.get_text_features(
        input_ids=input_ids, attention_mask=attention_mask, return_dict=True
    ).pooler_output


def with_mirrored(
    outputs: Mapping[str, Tensor], of_mirrored: Mapping[str, Tensor], rows: Sequence[int]
) -> dict[str, Tensor]:
    """Answers with what is also seen in the mirror image: mean log-odds of presence and map.

    Queries are not paired: which of them finds what may differ between the two. The map has a say
    in every instance's mask, see `DetectionSettings.semantic_share`.

    Args:
        outputs: of `detector_outputs` about K phrases.
        of_mirrored: the same about the mirror image, for some of the phrases.
        rows: which of the K these are.
    """
    both = dict(outputs)
    for name in ("presence_logits", "semantic_seg"):
        again = of_mirrored[name].flip(-1) if name == "semantic_seg" else of_mirrored[name]
        both[name] = outputs[name].clone()
        both[name][list(rows)] = (outputs[name][list(rows)] + again) / 2
    return both


def detector_outputs(
    model: Sam3Model,
    levels: Sequence[Tensor],
    features: Tensor,
    attention_mask: Tensor,
    boxes: Tensor,
    labels: Tensor,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
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
        `pred_logits` (K, Q), `pred_boxes` (K, Q, 4) as x0, y0, x1, y1 fractions,
        `presence_logits` (K, 1), `pred_masks` logits (K, Q, h, w) and `semantic_seg` logits
        (K, 1, h, w) with h = w = four times as many as the image has patches along a side.
    """
    batch, device = len(features), levels[0].device
    coarsest = levels[-1].to(torch.float32)  # the detector's residual stream starts here
    expanded = [level.expand(batch, -1, -1, -1) for level in (*levels[:-1], coarsest)]
    position = _positions(model, coarsest, batch)
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


def _positions(model: Sam3Model, level: Tensor, count: int) -> Tensor:
    """Position encoding of a feature level, float32 (count, D, h, w)."""
    encode = model.vision_encoder.neck.position_encoding
    shape = torch.Size((1, *level.shape[1:]))
    return encode(shape, level.device, torch.float32).expand(count, -1, -1, -1)


@dataclass(frozen=True)
class Prompts:
    """P prompts to the detector.

    images: int64 (P,), the image that each belongs to. text (P, T, C) projected text features and
    text_mask bool (P, T). boxes float32 (P, M, 4) cxcywh in 0..1 and box_labels int64 (P, M): 1 for
    an exemplar, 0 for a counter-example, `PADDED_BOX` for none. M is at least 1: without a padded
    box the geometry token is missing, and SAM 3 was never trained so.
    """

    images: Tensor
    text: Tensor
    text_mask: Tensor
    boxes: Tensor
    box_labels: Tensor

    @classmethod
    def with_one_box(
        cls, images: Sequence[int], text: Tensor, text_mask: Tensor, boxes: Sequence[Tensor | None]
    ) -> Prompts:
        """Prompts with one positive box each, cxcywh (4,), or with a padded one for None."""
        nowhere = torch.tensor([0.5, 0.5, 1.0, 1.0])
        labels = [PADDED_BOX if box is None else 1 for box in boxes]
        every_box = torch.stack([nowhere if box is None else box for box in boxes])
        return cls(
            images=torch.tensor(images, device=text.device),
            text=text,
            text_mask=text_mask.bool(),
            boxes=every_box[:, None].to(text.device),
            box_labels=torch.tensor(labels, device=text.device)[:, None],
        )


@dataclass(frozen=True)
class DetectorOutput:
    """What the detector says about P prompts with Q queries and L decoder layers.

    logits (L, P, Q); boxes (L, P, Q, 4) cxcywh in 0..1; presence (L, P) logits.
    mask_rows: int64 (R,), the prompts that pixels were decoded for: pixels (R, C, h, w), semantic
    (R, h, w) logits. A query's mask is its row of weights (R, Q, C) times the pixels, plus its bias
    (R, Q).
    """

    logits: Tensor
    boxes: Tensor
    presence: Tensor
    mask_rows: Tensor
    pixels: Tensor
    weights: Tensor
    biases: Tensor
    semantic: Tensor

    def masks(self, at: int, queries: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Mask logits (N, h, w) of `queries` (int64, N) of the prompt `mask_rows[at]`.

        Whoever asks about several prompts hands in their `pixels.unbind()[at]`.
        """
        pixels = self.pixels[at] if pixels is None else pixels
        flat = torch.addmm(
            self.biases[at, queries, None], self.weights[at, queries], pixels.flatten(1)
        )
        return flat.view(-1, *pixels.shape[1:])


def answer_prompts(
    model: Sam3Model, levels: Sequence[Tensor], prompts: Prompts, mask_rows: Tensor | None = None
) -> DetectorOutput:
    """Answer `prompts`, with every decoder layer; on the last one equal to `Sam3Model.forward`.

    Args:
        model: the detector may be in training.
        levels: from `feature_levels`, (B, D, h, w) each, of the B images that are asked about.
        prompts: P prompts.
        mask_rows: int64, the prompts whose pixels are decoded; None for all.
    """
    # The coarsest level of each prompt's image; the finer ones only serve the masks.
    coarse = levels[-1][prompts.images]
    position = _positions(model, coarse, len(coarse))
    # RoI pooling has no bfloat16 kernel, so the few prompt tokens are always made in float32.
    with torch.autocast(prompts.boxes.device.type, enabled=False):
        geometry = model.geometry_encoder(
            box_embeddings=prompts.boxes,
            box_mask=prompts.box_labels != PADDED_BOX,
            box_labels=prompts.box_labels.clamp(min=0),
            img_feats=(coarse.float(),),
            img_pos_embeds=(position.float(),),
        )
    # The detector reads boxes as further words of the phrase.
    features = torch.cat([prompts.text, geometry.last_hidden_state.to(prompts.text.dtype)], dim=1)
    valid = torch.cat([prompts.text_mask, geometry.attention_mask.bool()], dim=1)
    encoded = model.detr_encoder(
        vision_features=[coarse],
        text_features=features,
        vision_pos_embeds=[position],
        text_mask=valid,
    )
    decoded = model.detr_decoder(
        vision_features=encoded.last_hidden_state,
        text_features=features,
        vision_pos_encoding=encoded.pos_embeds_flattened,
        text_mask=valid,
        spatial_shapes=encoded.spatial_shapes,
    )
    hidden = decoded.intermediate_hidden_states
    # Each layer moves the boxes of the one before it, in log-odds, so that they stay in 0..1.
    reference = decoded.reference_boxes.float().clamp(0, 1)
    boxes = (
        torch.logit(reference, eps=1e-3) + model.detr_decoder.box_head(hidden).float()
    ).sigmoid()
    logits = model.dot_product_scoring(
        decoder_hidden_states=hidden, text_features=features, text_mask=valid
    ).squeeze(-1)

    if mask_rows is None:
        mask_rows = torch.arange(len(prompts.images), device=prompts.images.device)
    decoder, last, images = model.mask_decoder, hidden[-1][mask_rows], prompts.images[mask_rows]
    pixels, semantic = _decode_pixels(
        model,
        [level[images] for level in levels],
        encoded.last_hidden_state[mask_rows],
        features[mask_rows],
        valid[mask_rows],
    )
    # The projection of the pixels is taken to the queries: a dot product has two sides, and there
    # are fewer queries than pixels.
    asked, projection = decoder.mask_embedder(last), decoder.instance_projection
    weights = asked @ projection.weight.flatten(1)
    biases = asked @ projection.bias
    return DetectorOutput(
        logits=logits.float(),
        boxes=boxes,
        presence=decoded.presence_logits.float().squeeze(-1),
        mask_rows=mask_rows,
        # Mixed precision leaves them in different ones, and masks are painted outside of it.
        pixels=pixels.float(),
        weights=weights.float(),
        biases=biases.float(),
        semantic=semantic.float(),
    )


def _decode_pixels(
    model: Sam3Model, levels: Sequence[Tensor], encoded: Tensor, features: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """What `Sam3MaskDecoder.forward` multiplies with the queries, (R, C, h, w), and the semantic
    logits (R, h, w).
    """
    if len(encoded) == 0:  # no prompt asks for masks
        nothing = encoded.new_zeros(levels[0].shape)
        return nothing, nothing[:, 0]
    decoder = model.mask_decoder
    normed = decoder.prompt_cross_attn_norm(encoded)
    mask = create_bidirectional_mask(
        config=decoder.config,
        inputs_embeds=normed,
        encoder_hidden_states=features,
        attention_mask=valid,
    )
    attended, _ = decoder.prompt_cross_attn(
        query=normed, key=features, value=features, attention_mask=mask
    )
    encoded = encoded + decoder.prompt_cross_attn_dropout(attended)
    coarse = encoded.transpose(1, 2).unflatten(2, levels[-1].shape[-2:])
    pixels = decoder.pixel_decoder([*levels[:-1], coarse])
    return pixels, decoder.semantic_projection(pixels).squeeze(1)
