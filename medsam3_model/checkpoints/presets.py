"""Presets: named model sizes, and the weights that come with the package.

A bundle is a folder `weights/<preset>/` with `model.safetensors` (fp16, the keys of transformers'
`Sam3VideoModel`: detector and tracker), `config.json` (a `Sam3VideoConfig`), `tokenizer.json` and
`preset.json`. The last one is all that a process without torch needs: which weights these are and
how they are used.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam3_model.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import Sam3Config

WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"
BUNDLE_FORMAT = "medsam3-bundle/1"


@dataclass(frozen=True)
class BundleInfo:
    """What `preset.json` says about bundled weights.

    version: `<preset>-<first 8 hex digits of sha256>`.
    input_size: pixels of the square that an image is resized to.
    mean, std: per channel, on values 0..1.
    mask_threshold: a pixel belongs to a mask from this probability on.
    score_threshold: an instance counts from this score on.
    use_presence: scores are σ(logit)·σ(presence), as SAM 3 defines them.
    exemplars: a box shows what is meant all over the image; else it asks for the object in it.
    semantic_share: of the semantic map in every instance's mask, see `DetectionSettings`.
    second_looks: by phrase, see `second_look`.
    mirrors: answers are the mean of those about the image and about its mirror image, see
        `MedSAM3.mirrors`.
    """

    preset: str
    version: str
    sha256: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mask_threshold: float
    score_threshold: float
    use_presence: bool
    exemplars: bool
    semantic_share: float
    second_looks: Mapping[str, float] = field(default_factory=dict)
    mirrors: bool = False


def tiny_config(input_size: int = 216, layers: int = 9) -> "Sam3Config":
    """SAM 3's architecture with 6 million parameters, for a laptop's CPU.

    216 pixels in patches of 12 give 18×18 tokens and masks of 72×72. Nine ViT layers, six of them
    windowed; the detector works in 64 dimensions, which its convolutions at mask resolution need
    for speed. `input_size` (a multiple of 72) serves training at another resolution: half of the
    pixels cost half of the time. `layers` (every third is global) makes a deeper ViT.
    """
    from transformers import Sam3Config

    from medsam3_model.checkpoints.tokenizer import END_ID, MAX_TOKENS, START_ID, VOCABULARY_SIZE

    patch, window, width, hidden = 12, 6, 192, 64
    if input_size % (patch * window):
        raise ValueError(f"input_size must be a multiple of {patch * window}, not {input_size}")
    tokens = input_size // patch
    detector: dict[str, Any] = {
        "hidden_size": hidden,
        "num_attention_heads": 4,
        "intermediate_size": 4 * hidden,
        "dropout": 0.0,
    }
    return Sam3Config(
        vision_config={
            "model_type": "sam3_vision_model",
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": width,
                "intermediate_size": 4 * width,
                "num_hidden_layers": layers,
                "num_attention_heads": width // 32,
                "image_size": input_size,
                "pretrain_image_size": input_size,
                "patch_size": patch,
                "window_size": window,
                "global_attn_indexes": list(range(2, layers, 3)),
            },
            "fpn_hidden_size": hidden,
            "backbone_feature_sizes": [[scale * tokens] * 2 for scale in (4, 2, 1)],
        },
        text_config={
            "model_type": "clip_text_model",
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": 128,
            "intermediate_size": 512,
            "projection_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_TOKENS,
            "hidden_act": "gelu",
            "bos_token_id": START_ID,
            "eos_token_id": END_ID,
            "pad_token_id": END_ID,
        },
        geometry_encoder_config={**detector, "num_layers": 2},
        detr_encoder_config={**detector, "num_layers": 3},
        detr_decoder_config={**detector, "num_layers": 3, "num_queries": 32},
        mask_decoder_config={"hidden_size": hidden, "num_attention_heads": 4},
    )


def tiny_tracker_config() -> dict[str, Any]:
    """Sizes of the tracker that belongs to `tiny_config`, as a config.json's `tracker_config`."""
    hidden = 64
    return {
        "model_type": "sam3_tracker_video",
        # Ours; see `tracker.TrackerTraits`.
        "traits": {
            "paints_clicks": True,
            "refines_boxes": True,
            "trusted_iou": 0.5,
            "trusted_stability": 0.3,
        },
        "prompt_encoder_config": {"hidden_size": hidden, "mask_input_channels": 16},
        "mask_decoder_config": {
            "hidden_size": hidden,
            "mlp_dim": 4 * hidden,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": hidden,
        },
        "memory_attention_hidden_size": hidden,
        "memory_attention_num_layers": 2,
        "memory_attention_feed_forward_hidden_size": 4 * hidden,
        "memory_attention_dropout": 0.0,
        "memory_attention_rope_dropout": 0.0,
        "memory_attention_rope_feat_sizes": [18, 18],
        "memory_encoder_hidden_size": hidden,
        "memory_encoder_output_channels": 64,  # transformers knows no other width
        "mask_downsampler_embed_dim": hidden,
        "memory_fuser_embed_dim": hidden,
        "memory_fuser_intermediate_dim": 4 * hidden,
    }


PRESETS: dict[str, Callable[..., "Sam3Config"]] = {"tiny": tiny_config}
TRACKER_CONFIGS: dict[str, Callable[[], dict[str, Any]]] = {"tiny": tiny_tracker_config}


def bundled() -> tuple[str, ...]:
    """Names of the weights that come with the package."""
    return tuple(sorted(path.parent.name for path in WEIGHTS_FOLDER.glob("*/model.safetensors")))


def bundled_weights(name: str) -> Path:
    """The folder of the weights that ship with the package.

    Raises CheckpointError when there are none of that name.
    """
    if name not in bundled():
        raise CheckpointError(
            f"No weights called {name!r} are bundled; there are: {', '.join(bundled()) or 'none'}."
        )
    return WEIGHTS_FOLDER / name


def read_bundle_info(folder: Path) -> BundleInfo:
    """What `preset.json` in `folder` says; torch is not imported.

    Raises CheckpointError when the file is missing or not of `BUNDLE_FORMAT`.
    """
    path = folder / "preset.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.pop("format", None) != BUNDLE_FORMAT:
        raise CheckpointError(f"{path} is not of the format {BUNDLE_FORMAT}.")
    try:
        return BundleInfo(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} lacks a value or has one too many: {error}") from error


def bundled_version(name: str) -> str:
    """The version of bundled weights, for example `tiny-1a2b3c4d`, without importing torch."""
    return read_bundle_info(bundled_weights(name)).version
