"""A tiny facebook-layout SAM 3 with deterministic weights, and the reference's outputs for it."""

import gzip
import json
import re
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Sam3Config

FOLDER = Path(__file__).parents[1] / "data" / "sam3_reference"


@lru_cache
def description() -> dict[str, Any]:
    return json.loads(gzip.decompress((FOLDER / "tiny.json.gz").read_bytes()))


@lru_cache
def full_keys() -> dict[str, list[tuple[str, list[int]]]]:
    return json.loads(gzip.decompress((FOLDER / "full_keys.json.gz").read_bytes()))


@lru_cache
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(FOLDER / "golden.npz"))


def _tensors(entries: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    tensors = {}
    for entry in entries:
        if entry.get("role") == "buffer":
            continue
        random = np.random.default_rng(zlib.crc32(entry["key"].encode()))
        values = entry["mean"] + entry["std"] * random.standard_normal(entry["shape"])
        tensors[entry["key"]] = torch.from_numpy(values.astype(np.float32))
    return tensors


@lru_cache
def tracker_description() -> dict[str, Any]:
    return json.loads(gzip.decompress((FOLDER / "tracker" / "tiny.json.gz").read_bytes()))


@lru_cache
def full_tracker_keys() -> list[tuple[str, list[int], str]]:
    """Of the tracker at full size: facebook's name, shape, transformers' name."""
    packed = (FOLDER / "tracker" / "full_tracker_keys.json.gz").read_bytes()
    return json.loads(gzip.decompress(packed))["tracker"]


@lru_cache
def tracker_golden() -> dict[str, np.ndarray]:
    return dict(np.load(FOLDER / "tracker" / "golden.npz"))


@lru_cache
def concept_description() -> dict[str, Any]:
    """How the concept was followed through the video: phrase, thresholds, other weights."""
    return json.loads((FOLDER / "tracker" / "pcs.json").read_text())


@lru_cache
def concept_golden() -> dict[str, np.ndarray]:
    return dict(np.load(FOLDER / "tracker" / "pcs_golden.npz"))


def concept_tensors() -> dict[str, torch.Tensor]:
    """All tensors of a `sam3.pt` whose detector finds several objects."""
    overrides = concept_description()["overrides"]
    entries = [
        entry | dict(zip(("mean", "std"), overrides.get(entry["key"], ()), strict=False))
        for entry in description()["tensors"]
    ]
    return _tensors(entries) | tracker_tensors()


def tracker_tensors() -> dict[str, torch.Tensor]:
    """The tracker's part of the same file, and its neck."""
    return _tensors(tracker_description()["tensors"])


def facebook_tensors() -> dict[str, torch.Tensor]:
    return _tensors(description()["tensors"])


# SAM 3's names of what answers clicks, and SAM 3.1's.
_IN_MULTIPLEX = (
    (".sam2_convs.", ".interactive_convs."),
    ("tracker.sam_prompt_encoder.", "tracker.model.interactive_sam_prompt_encoder."),
    ("tracker.sam_mask_decoder.", "tracker.model.interactive_sam_mask_decoder."),
    ("tracker.no_mem_embed", "tracker.model.interactivity_no_mem_embed"),
    ("tracker.obj_ptr_proj.", "tracker.model.interactive_obj_ptr_proj."),
    ("tracker.mask_downsample.", "tracker.model.interactive_mask_downsample."),
)


def multiplex_keys(sam3: Iterable[str]) -> dict[str, str | None]:
    """Names in `sam3.1_multiplex.pt`, and the tensor of `sam3.pt` that has the same shape.

    Of these it has three feature levels instead of four, its neck twice more, rotary frequencies,
    and in place of the memory one for sixteen objects (some of its tensors; None: another shape).
    """
    names: dict[str, str | None] = {}
    for key in sam3:
        if re.search(r"vision_backbone\.(sam2_)?convs\.3\.", key):
            continue
        for old, new in _IN_MULTIPLEX:
            if old in key:
                names[key.replace(old, new)] = key
        if key.startswith("detector.") and ".sam2_convs." not in key:
            names[key] = key
        if ".vision_backbone.convs." in key:
            names[key.replace(".convs.", ".propagation_convs.")] = key
        if key.endswith(".attn.qkv.bias"):
            names[key.replace("qkv.bias", "freqs_cis")] = None
    for rest in (
        "sam_mask_decoder.mask_tokens.weight",
        "maskmem_tpos_enc",
        "output_valid_embed",
        "transformer.encoder.norm.weight",
        "obj_ptr_proj.layers.0.weight",
        "image_pe_layer.positional_encoding_gaussian_matrix",
    ):
        names[f"tracker.model.{rest}"] = None
    return names


def multiplex_tensors() -> dict[str, torch.Tensor]:
    """The same weights with the layout of `sam3.1_multiplex.pt`."""
    sam3 = facebook_tensors() | tracker_tensors()
    return {
        name: torch.zeros(48, 7) if key is None else sam3[key].clone()
        for name, key in multiplex_keys(sam3).items()
    }


def write_facebook_checkpoint(folder: Path) -> Path:
    """A file with the layout of facebook's `sam3.pt`."""
    path = folder / "sam3.pt"
    torch.save({"model": facebook_tensors()}, path)
    return path


def adapter_tensors() -> dict[str, torch.Tensor]:
    return _tensors(description()["lora_tensors"])


def config() -> Sam3Config:
    size = description()["config"]
    detector = {
        "hidden_size": size["d"],
        "num_attention_heads": size["heads"],
        "intermediate_size": size["ff"],
    }
    return Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": size["vit"],
                "intermediate_size": 4 * size["vit"],
                "num_hidden_layers": size["vl"],
                "num_attention_heads": size["vh"],
                "image_size": size["img"],
                "patch_size": size["patch"],
                "window_size": size["win"],
                "global_attn_indexes": size["glob"],
                "pretrain_image_size": size["win"] * size["patch"],
            },
            "fpn_hidden_size": size["d"],
        },
        text_config={
            "model_type": "clip_text_model",
            "vocab_size": 49408,
            "hidden_size": size["tw"],
            "intermediate_size": 4 * size["tw"],
            "projection_dim": 512,
            "num_hidden_layers": size["tl"],
            "num_attention_heads": size["th"],
            "max_position_embeddings": 32,
            "hidden_act": "gelu",
        },
        geometry_encoder_config={**detector, "num_layers": size["gl"]},
        detr_encoder_config={**detector, "num_layers": size["dl"]},
        detr_decoder_config={**detector, "num_layers": size["dl"], "num_queries": size["q"]},
        mask_decoder_config={
            "hidden_size": size["d"],
            "num_attention_heads": size["heads"],
        },
    )


def video_config() -> dict[str, Any]:
    """The config.json of the detector with its tracker, as transformers' Sam3VideoConfig has it."""
    size, tracker = description()["config"], tracker_description()["tracker"]
    width = size["d"]
    return {
        "model_type": "sam3_video",
        "detector_config": config().to_dict(),
        "tracker_config": {
            "image_size": size["img"],
            "prompt_encoder_config": {
                "hidden_size": width,
                "image_size": size["img"],
                "patch_size": size["patch"],
            },
            "mask_decoder_config": {
                "hidden_size": width,
                "mlp_dim": tracker["decoder_mlp"],
                "num_attention_heads": tracker["decoder_heads"],
                "num_hidden_layers": tracker["decoder_layers"],
                "iou_head_hidden_dim": tracker["iou_hidden"],
            },
            "memory_attention_hidden_size": width,
            "memory_attention_num_layers": tracker["layers"],
            "memory_attention_num_attention_heads": tracker["heads"],
            "memory_attention_feed_forward_hidden_size": tracker["ff"],
            "memory_encoder_hidden_size": width,
            "memory_encoder_output_channels": tracker["mem"],
            "mask_downsampler_embed_dim": width,
            "memory_fuser_embed_dim": width,
            "memory_fuser_intermediate_dim": 4 * width,
            "memory_fuser_num_layers": tracker["fuser_layers"],
        },
    }
