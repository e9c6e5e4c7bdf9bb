"""Names and layouts of tensors: facebook's `sam3.pt` to transformers' `Sam3Model`.

facebook keeps the projections of an attention fused (`qkv`, `in_proj_weight`), transformers keeps
three; the rest is renaming, one transposed matrix, and a CLS position that is dropped. The
conversion is linear in every tensor, so it may be applied to weights and to their LoRA deltas.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

import torch


class Operation(Enum):
    """What happens to a facebook tensor on its way to one transformers tensor."""

    COPY = "copy"
    QUERY = 0  # first third of the rows
    KEY = 1  # second third
    VALUE = 2  # last third
    TRANSPOSE = "transpose"
    DROP_CLS = "drop_cls"  # the first of the position embeddings belongs to no patch

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of `apply`'s result for a tensor of this shape."""
        return tuple(self.apply(torch.empty(shape, device="meta")).shape)

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view of `tensor` in transformers' layout."""
        if self in (Operation.QUERY, Operation.KEY, Operation.VALUE):
            rows = tensor.shape[0] // 3
            return tensor[rows * self.value : rows * (self.value + 1)]
        if self is Operation.TRANSPOSE:
            return tensor.transpose(0, 1)
        if self is Operation.DROP_CLS:
            return tensor[:, 1:]
        return tensor


@dataclass(frozen=True)
class Target:
    """One transformers tensor and how it comes out of a facebook tensor."""

    key: str
    operation: Operation = Operation.COPY


_PROJECTIONS = {"q": Operation.QUERY, "k": Operation.KEY, "v": Operation.VALUE}

# What transformers' image model has no counterpart for: point prompts (never trained for
# concepts), buffers that are computed, and the video tracker's own weights.
_NO_COUNTERPART = re.compile(
    r"^geometry_encoder\.points_\w+_project\.(weight|bias)$"
    r"|\.freqs_cis$|\.attn_mask$"
    r"|^tracker\.|^backbone\.vision_backbone\.(sam2|interactive|propagation)_convs\."
)

_ATTENTION = ((r"\.out_proj\.", ".o_proj."),)
_LAYER = ((r"\.linear1\.", ".mlp.fc1."), (r"\.linear2\.", ".mlp.fc2."), *_ATTENTION)
_ENCODER_LAYER = (
    (r"\.cross_attn_image\.", ".cross_attn."),
    (r"\.norm([123])\.", r".layer_norm\1."),
)

# (facebook's prefix, transformers' prefix, substitutions within the rest). The first prefix that
# fits is taken, so longer ones stand before shorter ones. All substitutions are made in order, and
# a later one may change what an earlier one has written.
_SECTIONS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "backbone.vision_backbone.trunk.",
        "vision_encoder.backbone.",
        (
            (r"^pos_embed$", "embeddings.position_embeddings"),
            (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
            (r"^ln_pre\.", "layer_norm."),
            (r"^blocks\.(\d+)\.norm([12])\.", r"layers.\1.layer_norm\2."),
            (r"^blocks\.(\d+)\.attn\.proj\.", r"layers.\1.attention.o_proj."),
            (r"^blocks\.(\d+)\.attn\.", r"layers.\1.attention."),
            (r"^blocks\.", "layers."),
        ),
    ),
    (
        "backbone.vision_backbone.convs.",
        "vision_encoder.neck.fpn_layers.",
        (
            (r"\.dconv_2x2(_0)?\.", ".scale_layers.0."),
            (r"\.dconv_2x2_1\.", ".scale_layers.2."),  # 1 is the GELU between them
            (r"\.conv_1x1\.", ".proj1."),
            (r"\.conv_3x3\.", ".proj2."),
        ),
    ),
    (
        "backbone.language_backbone.encoder.transformer.resblocks.",
        "text_encoder.text_model.encoder.layers.",
        (
            (r"\.attn\.", ".self_attn."),
            (r"\.ln_([12])\.", r".layer_norm\1."),
            (r"\.c_fc\.", ".fc1."),
            (r"\.c_proj\.", ".fc2."),
        ),
    ),
    (
        "backbone.language_backbone.encoder.",
        "text_encoder.",
        (
            (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
            (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
            (r"^ln_final\.", "text_model.final_layer_norm."),
            (r"^text_projection$", "text_projection.weight"),
        ),
    ),
    ("backbone.language_backbone.resizer.", "text_projection.", ()),
    ("geometry_encoder.encode.", "geometry_encoder.layers.", (*_ENCODER_LAYER, *_LAYER)),
    (
        "geometry_encoder.",
        "geometry_encoder.",
        (
            (r"^norm\.", "prompt_layer_norm."),
            (r"^img_pre_norm\.", "vision_layer_norm."),
            (r"^encode_norm\.", "output_layer_norm."),
        ),
    ),
    ("transformer.encoder.", "detr_encoder.", (*_ENCODER_LAYER, *_LAYER)),
    (
        "transformer.decoder.layers.",
        "detr_decoder.layers.",
        (
            (r"\.cross_attn\.", ".vision_cross_attn."),
            (r"\.ca_text\.", ".text_cross_attn."),
            (r"\.norm1\.", ".vision_cross_attn_layer_norm."),
            (r"\.catext_norm\.", ".text_cross_attn_layer_norm."),
            (r"\.norm2\.", ".self_attn_layer_norm."),
            (r"\.norm3\.", ".mlp_layer_norm."),
            *_LAYER,
        ),
    ),
    (
        "transformer.decoder.",
        "detr_decoder.",
        (
            (r"^norm\.", "output_layer_norm."),
            (r"^bbox_embed\.", "box_head."),
            (r"^boxRPB_embed_([xy])\.", r"box_rpb_embed_\1."),
            (r"^presence_token_head\.", "presence_head."),
            (r"^presence_token_out_norm\.", "presence_layer_norm."),
            # facebook counts a perceptron's layers from 0, transformers from 1.
            (r"\.layers\.0\.", ".layer1."),
            (r"\.layers\.1\.", ".layer2."),
            (r"\.layers\.2\.", ".layer3."),
        ),
    ),
    (
        "segmentation_head.",
        "mask_decoder.",
        (
            (r"^mask_predictor\.mask_embed\.", "mask_embedder."),
            (r"^cross_attend_prompt\.", "prompt_cross_attn."),
            (r"^cross_attn_norm\.", "prompt_cross_attn_norm."),
            (r"^semantic_seg_head\.", "semantic_projection."),
            (r"^instance_seg_head\.", "instance_projection."),
            *_ATTENTION,
        ),
    ),
    (
        "dot_prod_scoring.",
        "dot_product_scoring.",
        (
            (r"^prompt_mlp\.layers\.0\.", "text_mlp.layer1."),
            (r"^prompt_mlp\.layers\.1\.", "text_mlp.layer2."),
            (r"^prompt_mlp\.out_norm\.", "text_mlp_out_norm."),
            (r"^prompt_proj\.", "text_proj."),
            (r"^hs_proj\.", "query_proj."),
        ),
    ),
)


def without_prefix(facebook_key: str) -> str:
    """The name inside the image model: `sam3.pt` puts `detector.` before it."""
    return facebook_key.removeprefix("detector.")


def has_no_counterpart(facebook_key: str) -> bool:
    """Whether transformers' image model knowingly lacks this tensor."""
    return _NO_COUNTERPART.search(without_prefix(facebook_key)) is not None


def targets(facebook_key: str) -> tuple[Target, ...]:
    """The transformers tensors that a facebook tensor becomes.

    Returns:
        One target, three for a fused projection, none for a tensor without a counterpart or of a
        name that is not facebook's.
    """
    key = without_prefix(facebook_key)
    if has_no_counterpart(key):
        return ()
    for prefix, new_prefix, substitutions in _SECTIONS:
        if key.startswith(prefix):
            rest = key.removeprefix(prefix)
            # The patterns see the rest alone: `^norm` is the section's norm, not a layer's.
            for pattern, replacement in substitutions:
                rest = re.sub(pattern, replacement, rest)
            return _split(new_prefix + rest, key)
    return ()


def _split(new_key: str, key: str) -> tuple[Target, ...]:
    """The tensors that a renamed one becomes: thirds of a fused projection, else one."""
    fused = re.search(r"(in_proj_|qkv\.)(weight|bias)$", new_key)
    if fused:
        stem, kind = new_key[: fused.start()], fused.group(2)
        return tuple(
            Target(f"{stem}{letter}_proj.{kind}", operation)
            for letter, operation in _PROJECTIONS.items()
        )
    if key.endswith(".text_projection"):
        return (Target(new_key, Operation.TRANSPOSE),)
    if key.endswith("trunk.pos_embed"):
        return (Target(new_key, Operation.DROP_CLS),)
    return (Target(new_key),)


def module_targets(facebook_module: str) -> tuple[Target, ...]:
    """The transformers tensors that a LoRA on a facebook module changes.

    A LoRA names `q_proj`, `k_proj` and `v_proj`, of which facebook's attention has one fused
    matrix: each is a third of it.
    """
    stem, _, last = facebook_module.rpartition(".")
    if last in ("q_proj", "k_proj", "v_proj"):
        fused = targets(f"{stem}.in_proj_weight")
        third = _PROJECTIONS[last[0]]
        return tuple(Target(target.key) for target in fused if target.operation is third)
    return targets(f"{facebook_module}.weight")
