"""Pretrained models: from a checkpoint's name to all that `MedSAM3.from_pretrained` needs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import Sam3Config, Sam3TrackerVideoConfig

from medsam3_model.checkpoints import clip_tokenizer, hub, loading, presets, published
from medsam3_model.checkpoints.tokenizer import load_tokenizer
from medsam3_model.detector import vision_hidden
from medsam3_model.errors import CheckpointError
from medsam3_model.postprocessing import (
    MEDICAL_SAM3_SETTINGS,
    MEDSAM3_V1_SETTINGS,
    SAM3_SETTINGS,
    DetectionSettings,
)
from medsam3_model.tracker import Tracker, TrackerTraits, has_tracker, load_tracker

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Preset:
    """What a checkpoint says about itself besides its weights.

    Attributes:
        name: first part of the model's version.
        settings: thresholds it is to be used with.
        version: where the weights came with one; else it follows from their hash.
        exemplars: a box shows what is meant all over the image, as SAM 3 takes it; else it asks
            for the object in it.
        second_looks: by phrase, see `second_look`.
        mirrors: see `MedSAM3.mirrors`.
    """

    name: str
    settings: DetectionSettings
    version: str | None = None
    exemplars: bool = True
    second_looks: Mapping[str, float] = field(default_factory=dict)
    mirrors: bool = False

    def to_json(self) -> str:
        """For a file's metadata; `preset_from_json` reads it."""
        content = {
            "name": self.name,
            "settings": asdict(self.settings),
            "exemplars": self.exemplars,
            "second_looks": dict(self.second_looks),
            "mirrors": self.mirrors,
        }
        return json.dumps(content, sort_keys=True)


def preset_from_json(text: str) -> Preset:
    """Read a preset, ignoring what other versions may have added.

    Raises CheckpointError where it is not a preset, or a setting is out of range.
    """
    try:
        content = json.loads(text)
        known = {field.name for field in fields(DetectionSettings)}
        given = {k: v for k, v in content.get("settings", {}).items() if k in known}
        exemplars = bool(content.get("exemplars", True))
        looks = {str(name): float(v) for name, v in content.get("second_looks", {}).items()}
        return Preset(
            str(content["name"]),
            DetectionSettings(**given),
            exemplars=exemplars,
            second_looks=looks,
            mirrors=bool(content.get("mirrors", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the preset of the checkpoint cannot be read: {error}") from error


def locate(checkpoint: str | Path) -> Path:
    """The weights file of a checkpoint, fetched from the hub where it is a hub id.

    Args:
        checkpoint: name of a bundled model ("tiny"), a file, a folder, or a hub id.

    Raises:
        CheckpointError: there is no such checkpoint; the message says what was looked for.
    """
    name = str(checkpoint)
    if name in presets.bundled():
        return loading.find_weights(presets.bundled_weights(name))
    path = Path(checkpoint).expanduser()
    if path.exists():
        return loading.find_weights(path)
    if isinstance(checkpoint, str) and hub.is_repository(checkpoint):
        folder = hub.cached(checkpoint)
        if folder is not None:
            try:
                return loading.find_weights(folder)
            except CheckpointError:
                pass  # an interrupted download left only small files
        return loading.find_weights(hub.download(checkpoint))
    raise CheckpointError(
        f"{name} is neither a bundled model ({', '.join(presets.bundled()) or 'none'}), nor an "
        "existing file or folder, nor a hub id like facebook/sam3"
    )


def preset_of(weights: Path, metadata: Mapping[str, str], adapter: Path | None) -> Preset:
    """The preset that comes with a checkpoint, else the published defaults of its kind."""
    if "preset" in metadata and "bundle" not in metadata:
        preset = preset_from_json(metadata["preset"])
    elif (weights.parent / "preset.json").is_file():
        preset = _bundle_preset(weights.parent)
    elif published.is_medical_sam3(weights):
        preset = Preset("medical-sam3", MEDICAL_SAM3_SETTINGS)
    else:
        preset = Preset(_name_of(weights), SAM3_SETTINGS)
    if adapter is not None:
        name = f"{preset.name}+{_clean(adapter.stem)}"
        return Preset(name, MEDSAM3_V1_SETTINGS, exemplars=preset.exemplars, mirrors=preset.mirrors)
    return preset


def _bundle_preset(folder: Path) -> Preset:
    info = presets.read_bundle_info(folder)
    if (*info.mean, *info.std) != (0.5,) * 6:
        raise CheckpointError(f"{folder.name} needs another scaling of pixels than SAM 3's -1..1")
    settings = DetectionSettings(
        score_threshold=info.score_threshold,
        use_presence=info.use_presence,
        mask_threshold=info.mask_threshold,
        semantic_share=info.semantic_share,
    )
    return Preset(
        info.preset, settings, info.version, info.exemplars, info.second_looks, info.mirrors
    )


def tokenizer_of(weights: Path, config: Sam3Config) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights, else CLIP's, which all published SAM 3 models use.

    Raises CheckpointError where there is none, and the model's vocabulary is not CLIP's.
    """
    if (weights.parent / "tokenizer.json").is_file():
        return load_tokenizer(weights.parent)
    entries = cast(Any, config.text_config).vocab_size
    if entries != clip_tokenizer.VOCABULARY_SIZE:
        raise CheckpointError(
            f"{weights.name} has a vocabulary of {entries} entries, which is not CLIP's: its "
            "tokenizer.json must be beside it"
        )
    return clip_tokenizer.clip_tokenizer()


def tracker_of(
    weights: Path,
    loaded: loading.LoadedModel,
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
) -> Tracker | None:
    """The tracker of a checkpoint, None where it holds none or where its sizes are not known.

    The sizes are those of `config` or of the config.json beside the weights; without either they
    are the full model's where the detector has the full model's.

    Raises CheckpointError where it is incomplete.
    """
    if not has_tracker(loaded.file):
        return None
    sizes = _tracker_sizes(weights, config, loaded.model.config)
    if sizes is None:
        return None
    trunk = partial(vision_hidden, loaded.model)
    vision: Any = loaded.model.config.vision_config
    given = _as_mapping(config) or _as_mapping(weights.parent / "config.json") or {}
    try:
        return load_tracker(
            loaded.file,
            sizes,
            vision,
            trunk,
            device,
            dtype,
            loaded.hashes.encoder,
            TrackerTraits(**given.get("tracker_config", {}).get("traits", {})),
        )
    except CheckpointError as error:
        if loading.layout_of(loaded.file) is not loading.Layout.SAM31:
            raise
        raise CheckpointError(
            f"{error}. It is SAM 3.1, and its weights for clicks have other names than are known "
            "here; its image detector is complete: keep that alone with `medsam3 models convert`, "
            "or use facebook/sam3, whose clicks work"
        ) from error


def _tracker_sizes(weights: Path, config: Any, detector: Any) -> Any:
    given = _as_mapping(config) or _as_mapping(weights.parent / "config.json") or {}
    full: Any = Sam3Config().vision_config
    # SAM 3.1 has three of SAM 3's four feature levels; nothing reads the fourth.
    same_levels = {"scale_factors": full.scale_factors}
    is_full = full.to_dict() == detector.vision_config.to_dict() | same_levels
    if "tracker_config" not in given and not is_full:
        return None
    return tracker_sizes(given.get("tracker_config", {}), detector)


def tracker_sizes(values: Mapping[str, Any], detector: Any) -> Sam3TrackerVideoConfig:
    """A tracker's sizes from a config.json's `tracker_config`, on the encoder of a `Sam3Config`."""
    sizes: Any = Sam3TrackerVideoConfig(
        **{**values, "vision_config": detector.vision_config.to_dict()}
    )
    sizes.prompt_encoder_config.patch_size = detector.vision_config.backbone_config.patch_size
    sizes.prompt_encoder_config.image_size = detector.image_size
    sizes.image_size = detector.image_size
    return cast(Sam3TrackerVideoConfig, sizes)


def _as_mapping(config: Any) -> Mapping[str, Any] | None:
    """A config.json's content, of a dict or of the file's path."""
    if isinstance(config, str | Path) and Path(config).is_file():
        config = json.loads(Path(config).read_text(encoding="utf-8"))
    return config if isinstance(config, Mapping) else None


def _name_of(weights: Path) -> str:
    generic = weights.stem in ("model", "pytorch_model", "model.safetensors.index")
    if not generic:
        return _clean(weights.stem)
    folder = weights.parent
    # In the hub's cache a snapshot is in models--owner--name/snapshots/<commit>/.
    if folder.parent.name == "snapshots":
        return _clean(folder.parent.parent.name.rsplit("--", 1)[-1])
    return _clean(folder.name)


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-").lower()[:40] or "model"


def parse_config(config: Any) -> Any:
    """A `Sam3Config` from what `from_pretrained` takes: one, a dict, a config.json, or None."""
    if config is None or not isinstance(config, str | Path | Mapping):
        return config
    if isinstance(config, Mapping):
        return loading.image_config(config)
    try:
        return loading.image_config(json.loads(Path(config).read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{config} is not a readable config.json") from error
