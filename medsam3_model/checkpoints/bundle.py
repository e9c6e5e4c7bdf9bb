"""Bundles of weights: writes the folder that `presets.bundled_weights` points to."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medsam3_model.checkpoints.presets import BUNDLE_FORMAT, TRACKER_CONFIGS, BundleInfo

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Sam3Config

PIXEL_MEAN = PIXEL_STD = (0.5, 0.5, 0.5)


def write_bundle(
    folder: Path,
    preset: str,
    config: "Sam3Config",
    state: Mapping[str, Tensor],
    tokenizer: "PreTrainedTokenizerFast",
    tracker: Mapping[str, Tensor] | None = None,
) -> BundleInfo:
    """Write weights (as fp16), configuration, tokenizer and `preset.json`; returns the last.

    state: the state dict of a `Sam3Model` of `config`. tracker: the tensors of its tracker under
    the names of `tracker_keys`; None: there is none yet. Existing files are replaced.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    named = {f"detector_model.{key}": value for key, value in state.items()} | dict(tracker or {})
    halves = {key: value.detach().to(torch.float16).contiguous() for key, value in named.items()}
    metadata = {"format": "pt", "bundle": BUNDLE_FORMAT, "bundle_preset": preset}
    save_file(halves, str(weights), metadata=metadata)
    digest = sha256(weights.read_bytes()).hexdigest()
    sizes: dict[str, Any] = {"model_type": "sam3_video", "detector_config": config.to_dict()}
    if tracker:
        sizes["tracker_config"] = TRACKER_CONFIGS[preset]()
    text = json.dumps(sizes, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    info = BundleInfo(
        preset=preset,
        version=f"{preset}-{digest[:8]}",
        sha256=digest,
        input_size=config.image_size,
        mean=PIXEL_MEAN,
        std=PIXEL_STD,
        mask_threshold=0.5,
        score_threshold=0.5,
        use_presence=True,
        exemplars=False,
        semantic_share=0.5,
        mirrors=True,
    )
    text = json.dumps({"format": BUNDLE_FORMAT, **asdict(info)}, indent=2)
    (folder / "preset.json").write_text(text + "\n", encoding="utf-8")
    return info
