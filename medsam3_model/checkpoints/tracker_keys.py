"""Names of the tracker's tensors: facebook's `sam3.pt` to transformers' `Sam3VideoModel`.

Nothing is fused or transposed here. Four embeddings of points become the rows of one matrix, and
one matrix (the random frequencies of positions) is stored under two names.

SAM 3.1 (`sam3.1_multiplex.pt`) has SAM 3's parts for clicks under other names; its part for videos
follows sixteen objects at once and is another architecture, which is left out here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

MODEL, NECK = "tracker_model.", "tracker_neck."
_Tensor = TypeVar("_Tensor")

_POINTS = re.compile(r"^tracker\.sam_prompt_encoder\.point_embeddings\.(\d+)\.weight$")
_FREQUENCIES = "tracker.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
# facebook counts a perceptron's layers from 0; transformers names the first and the last.
_PERCEPTRON = (
    (r"\.layers\.0\.(weight|bias)$", r".proj_in.\1"),
    (r"\.layers\.1\.(weight|bias)$", r".layers.0.\1"),
    (r"\.layers\.2\.(weight|bias)$", r".proj_out.\1"),
)
_ATTENTION = ((r"\.out_proj\.", ".o_proj."),)

# (facebook's prefix, transformers' prefix, substitutions within the rest): the first prefix that
# fits is taken, and all of its substitutions are made in order.
_SECTIONS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "backbone.vision_backbone.sam2_convs.",
        f"{NECK}fpn_layers.",
        (
            (r"\.dconv_2x2(_0)?\.", ".scale_layers.0."),
            (r"\.dconv_2x2_1\.", ".scale_layers.2."),  # 1 is the GELU between them
            (r"\.conv_1x1\.", ".proj1."),
            (r"\.conv_3x3\.", ".proj2."),
        ),
    ),
    (
        "tracker.transformer.encoder.",
        f"{MODEL}memory_attention.",
        (
            (r"^norm\.", "layer_norm."),
            (r"\.norm([123])\.", r".layer_norm\1."),
            *_ATTENTION,
        ),
    ),
    (
        "tracker.maskmem_backbone.mask_downsampler.encoder.",
        f"{MODEL}memory_encoder.mask_downsampler.",
        (
            # Convolution, norm and activation take turns; the last convolution stands alone.
            (r"^12\.", "final_conv."),
            (r"^0\.", "layers.0.conv."),
            (r"^3\.", "layers.1.conv."),
            (r"^6\.", "layers.2.conv."),
            (r"^9\.", "layers.3.conv."),
            (r"^1\.", "layers.0.layer_norm."),
            (r"^4\.", "layers.1.layer_norm."),
            (r"^7\.", "layers.2.layer_norm."),
            (r"^10\.", "layers.3.layer_norm."),
        ),
    ),
    (
        "tracker.maskmem_backbone.",
        f"{MODEL}memory_encoder.",
        (
            (r"^pix_feat_proj\.", "feature_projection."),
            (r"^out_proj\.", "projection."),
            (r"^fuser\.", "memory_fuser."),
            (r"\.dwconv\.", ".depthwise_conv."),
            (r"\.norm\.", ".layer_norm."),
            (r"\.pwconv([12])\.", r".pointwise_conv\1."),
            (r"\.gamma$", ".scale"),
        ),
    ),
    (
        "tracker.sam_prompt_encoder.",
        f"{MODEL}prompt_encoder.",
        (
            (r"^mask_downscaling\.0\.", "mask_embed.conv1."),
            (r"^mask_downscaling\.1\.", "mask_embed.layer_norm1."),
            (r"^mask_downscaling\.3\.", "mask_embed.conv2."),
            (r"^mask_downscaling\.4\.", "mask_embed.layer_norm2."),
            (r"^mask_downscaling\.6\.", "mask_embed.conv3."),
        ),
    ),
    (
        "tracker.sam_mask_decoder.transformer.",
        f"{MODEL}mask_decoder.transformer.",
        (
            (r"^norm_final_attn\.", "layer_norm_final_attn."),
            (r"\.norm([1234])\.", r".layer_norm\1."),
            (r"\.mlp\.lin1\.", ".mlp.proj_in."),
            (r"\.mlp\.lin2\.", ".mlp.proj_out."),
            (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
            (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
            *_ATTENTION,
        ),
    ),
    (
        "tracker.sam_mask_decoder.",
        f"{MODEL}mask_decoder.",
        (
            (r"^output_upscaling\.0\.", "upscale_conv1."),
            (r"^output_upscaling\.1\.", "upscale_layer_norm."),
            (r"^output_upscaling\.3\.", "upscale_conv2."),
            *_PERCEPTRON,
        ),
    ),
    (
        "tracker.",
        MODEL,
        (
            (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
            (r"^no_mem_embed$", "no_memory_embedding"),
            (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
            (r"^no_obj_ptr$", "no_object_pointer"),
            (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
            (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
            (r"^obj_ptr_proj\.", "object_pointer_proj."),
            *_PERCEPTRON,
        ),
    ),
)


_PARTS = ("tracker.", "backbone.vision_backbone.sam2_convs.")

# SAM 3.1's names of what answers clicks, and SAM 3's.
_MULTIPLEX = (
    ("backbone.vision_backbone.interactive_convs.", "backbone.vision_backbone.sam2_convs."),
    ("tracker.model.interactive_sam_prompt_encoder.", "tracker.sam_prompt_encoder."),
    ("tracker.model.interactive_sam_mask_decoder.", "tracker.sam_mask_decoder."),
    ("tracker.model.interactivity_no_mem_embed", "tracker.no_mem_embed"),
)
# Of SAM 3.1's tracker, what no click on a single image needs: all of its part for videos, and of
# the part for clicks what makes a memory of their answers.
_MULTIPLEX_VIDEO = re.compile(
    r"^tracker\.model\.(?!interactiv)|^tracker\.model\.interactive_(mask_downsample|obj_ptr_proj)\."
)


def in_bundle(model: Mapping[str, _Tensor], neck: Mapping[str, _Tensor]) -> dict[str, _Tensor]:
    """The state dicts of a tracker's model and neck as one, under their names in a bundle."""
    return {
        prefix + key: value
        for prefix, state in ((MODEL, model), (NECK, neck))
        for key, value in state.items()
    }


def is_multiplex(facebook_keys: Iterable[str]) -> bool:
    """Whether a file in facebook's layout is SAM 3.1's, to be told by what only that has."""
    only = ("interactive_convs.", "propagation_convs.", "tracker.model.", "interactive_sam_")
    return any(name in key for key in facebook_keys for name in only)


def is_of_memory(key: str) -> bool:
    """Whether one of transformers' names belongs to the memory of earlier frames."""
    of_images = (
        "prompt_encoder.",
        "mask_decoder.",
        "shared_image_embedding.",
        "no_memory_embedding",
    )
    return key.startswith(MODEL) and not key.removeprefix(MODEL).startswith(of_images)


def sources(facebook_keys: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """For each of transformers' names, the file's tensors whose rows it holds, in their order."""
    found: dict[str, tuple[str, ...]] = {}
    points: dict[int, str] = {}
    for name, key in _tracker_names(list(facebook_keys)).items():
        if point := _POINTS.match(name):
            points[int(point.group(1))] = key
        elif name == _FREQUENCIES:
            for owner in ("prompt_encoder.shared_embedding", "shared_image_embedding"):
                found[f"{MODEL}{owner}.positional_embedding"] = (key,)
        else:
            found[_renamed(name)] = (key,)
    if points:
        rows = tuple(points[index] for index in sorted(points))
        found[f"{MODEL}prompt_encoder.point_embed.weight"] = rows
    return found


def tensors_of(keys: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """As `sources`, also where a file has transformers' names itself."""
    keys = list(keys)
    return sources(keys) or {key: (key,) for key in keys if key.startswith((MODEL, NECK))}


def _tracker_names(keys: list[str]) -> dict[str, str]:
    """The tracker's tensors by the names that they have, or would have, in `sam3.pt`."""
    names = {key.removeprefix("detector."): key for key in keys}
    if is_multiplex(keys):
        names = {
            _name_in_sam3(name): key
            for name, key in names.items()
            if not _MULTIPLEX_VIDEO.search(name)
        }
        # A neck alone answers no clicks.
        if not any(name.startswith("tracker.") for name in names):
            return {}
    return {name: key for name, key in names.items() if name.startswith(_PARTS)}


def _name_in_sam3(name: str) -> str:
    """SAM 3's name of a tensor of SAM 3.1; one that no tracker has for what is not known."""
    for prefix, in_sam3 in _MULTIPLEX:
        if name.startswith(prefix):
            return in_sam3 + name.removeprefix(prefix)
    if name.startswith(_PARTS):
        return f"tracker.not_of_multiplex.{name}"
    return name


def _renamed(key: str) -> str:
    for prefix, new_prefix, substitutions in _SECTIONS:
        if key.startswith(prefix):
            rest = key.removeprefix(prefix)
            for pattern, replacement in substitutions:
                rest = re.sub(pattern, replacement, rest)
            return new_prefix + rest
    return key
