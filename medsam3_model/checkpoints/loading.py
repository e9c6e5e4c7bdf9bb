"""Loading SAM 3 weights of any published layout into transformers' `Sam3Model`, strictly.

Every tensor of the model must be found with its shape, and every tensor of the file must be used
or known to have no counterpart; transformers' own loader accepts files of which it uses nothing.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Sam3Config, Sam3Model
from transformers.models.sam3.modeling_sam3 import Sam3ViTLayer, Sam3ViTRotaryEmbedding

from medsam3_model.checkpoints import hashes, key_mapping, lora, tracker_keys
from medsam3_model.checkpoints.key_mapping import Operation
from medsam3_model.checkpoints.weight_files import (
    INDEX_NAME,
    TensorFile,
    misfits,
    open_tensors,
    some_names,
)
from medsam3_model.device import available_cpus
from medsam3_model.errors import CheckpointError

DETECTOR_FORMAT = "medsam3-detector"
_LEVEL = re.compile(r"^(?:detector\.)?backbone\.vision_backbone\.convs\.(\d+)\.")
# The first that a folder holds is taken.
_WEIGHTS_NAMES = (
    "model.safetensors",
    INDEX_NAME,
    "sam3.pt",
    "pytorch_model.bin",
    "sam3.1_multiplex.pt",
    "checkpoint_2D.pt",
    "checkpoint_3D.pt",
    "checkpoint.pt",
)


class Layout(Enum):
    """What a weights file seems to be, in words for messages."""

    FACEBOOK = "facebook's sam3.pt"
    SAM31 = "facebook's SAM 3.1 (sam3.1_multiplex.pt)"
    HUGGING_FACE = "a Hugging Face Sam3Model"
    HUGGING_FACE_VIDEO = "a Hugging Face Sam3Video model"
    DETECTOR = "a MedSAM-3 detector of this project"
    ADAPTER = "a LoRA adapter"
    SAM1 = "SAM 1 or MedSAM"
    SAM2 = "SAM 2"
    UNKNOWN = "an unknown model"


_LOADED = (Layout.FACEBOOK, Layout.SAM31, Layout.HUGGING_FACE, Layout.HUGGING_FACE_VIDEO)


def layout_of(file: TensorFile) -> Layout:
    """What the file seems to be, from its tensors' names."""
    keys = file.shapes
    if file.metadata.get("format") == DETECTOR_FORMAT:
        return Layout.DETECTOR
    if lora.is_adapter(keys):
        return Layout.ADAPTER
    if any(key.startswith("detector_model.") for key in keys):
        return Layout.HUGGING_FACE_VIDEO
    if any(key.startswith("vision_encoder.backbone.") for key in keys):
        return Layout.HUGGING_FACE
    if tracker_keys.is_multiplex(keys):
        return Layout.SAM31
    plain = [key_mapping.without_prefix(key) for key in keys]
    if any(key.startswith(("backbone.vision_backbone.", "dot_prod_scoring.")) for key in plain):
        return Layout.FACEBOOK
    if any(key.startswith(("memory_attention.", "image_encoder.trunk.")) for key in keys):
        return Layout.SAM2
    if any(key.startswith(("image_encoder.", "prompt_encoder.")) for key in keys):
        return Layout.SAM1
    return Layout.UNKNOWN


def is_detector_file(weights: Path) -> bool:
    """Whether a file is one of this project's detectors."""
    return layout_of(open_tensors(weights)) is Layout.DETECTOR


@dataclass(frozen=True)
class LoadedModel:
    """A `Sam3Model` with everything that came with it.

    Attributes:
        model: on its device, parameters in their final precision.
        hashes: of the weights as stored, adapter included.
        file: still open, for its notes and for what is not the image model.
    """

    model: Sam3Model
    hashes: hashes.WeightsHash
    file: TensorFile


def find_weights(checkpoint: Path) -> Path:
    """The weights file of a folder, or the file itself.

    Raises CheckpointError where there is none.
    """
    if checkpoint.is_file():
        return checkpoint
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint} does not exist")
    for name in _WEIGHTS_NAMES:
        if (checkpoint / name).is_file():
            return checkpoint / name
    raise CheckpointError(
        f"{checkpoint} holds no weights: none of {', '.join(_WEIGHTS_NAMES)} is there"
    )


def find_config(weights: Path, file: TensorFile) -> Sam3Config | None:
    """The architecture's sizes, from the file's notes or a config.json beside it.

    Raises CheckpointError where the config is not one of SAM 3.
    """
    beside = weights.parent / "config.json"
    try:
        if "config" in file.metadata:
            return image_config(json.loads(file.metadata["config"]))
        if beside.is_file():
            return image_config(json.loads(beside.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"the config.json of {weights.name} cannot be read") from error
    return None


def image_config(config: Mapping[str, Any]) -> Sam3Config:
    """A `Sam3Config` from the dict of an image or video model's config.json.

    Raises CheckpointError where it is another model's.
    """
    if isinstance(config.get("detector_config"), Mapping):
        config = config["detector_config"]
    kind = config.get("model_type", "sam3")
    if kind != "sam3":
        raise CheckpointError(f"config.json is of a {kind!r} model, not of sam3 or sam3_video")
    return Sam3Config.from_dict(dict(config))


def empty_model(config: Sam3Config) -> Sam3Model:
    """A `Sam3Model` whose parameters have shapes but no memory yet."""
    with torch.device("meta"):
        model = Sam3Model(config)
    _compute_buffers(model)
    return model.eval().requires_grad_(False)


def _compute_buffers(model: nn.Module) -> None:
    """Fill what no checkpoint stores: positions and rotary frequencies."""
    for module in model.modules():
        if isinstance(module, Sam3ViTLayer):
            positions = module.precompute_positions(module.config, module.window_size)
            module.register_buffer("position_ids", positions, persistent=False)
        elif isinstance(module, Sam3ViTRotaryEmbedding):
            frequencies, _ = module.compute_axial_rope_parameters(module.config)
            module.register_buffer("inv_freq", frequencies, persistent=False)
            module.register_buffer("original_inv_freq", frequencies.clone(), persistent=False)
        elif isinstance(ids := getattr(module, "position_ids", None), torch.Tensor):
            positions = torch.arange(ids.shape[-1])[None]
            module.register_buffer("position_ids", positions, persistent=False)
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if left:
        raise CheckpointError(
            f"this version of transformers has buffers that are not known here: {left[:3]}"
        )


def load_model(
    weights: Path,
    *,
    adapter: Path | None = None,
    config: Sam3Config | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Load a checkpoint of any layout.

    Args:
        weights: a file, or the index of shards.
        adapter: a LoRA file in facebook's key space to add.
        config: sizes of the architecture; default those that come with the file, else the full
            model's.
        device: where the parameters go; default the CPU.
        dtype: of the frozen encoders' parameters; the detector's are always float32.

    Raises:
        CheckpointError: the file is damaged, or of another model.
        AdapterError: the adapter does not fit.
    """
    file = open_tensors(weights)
    layout = layout_of(file)
    known_config = config or _config_beside(weights, file, layout)
    model = empty_model(_with_levels(known_config or Sam3Config(), file, layout))
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    sources = match(file, layout, shapes, sizes_known=known_config is not None)
    delta = lora.Adapter(open_tensors(adapter)) if adapter is not None else None
    if delta:
        delta.check_fits(shapes)

    def prepare(item: tuple[str, torch.Tensor]) -> tuple[str, torch.Tensor, bytes]:
        key, tensor = item
        digest = hashes.of_tensor(key, tensor)
        kept = torch.float32 if hashes.is_detector(key) else dtype
        return key, tensor.to(device or "cpu", kept), digest

    def stored() -> Iterable[tuple[str, torch.Tensor]]:
        for key, (source, operation) in sources.items():
            tensor = operation.apply(file.read(source))
            if delta:
                tensor = delta.add_to(key, tensor.to(torch.float32))
            yield key, tensor

    # Hashing and copying let go of the interpreter's lock: the threads share that work.
    state, digests = {}, {}
    with ThreadPoolExecutor(available_cpus()) as pool:
        pending = iter(stored())
        # A few at a time: the file's mapping is given back as soon as they are done.
        while batch := list(islice(pending, 16)):
            for key, tensor, digest in pool.map(prepare, batch):
                state[key], digests[key] = tensor, digest
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False)
    nn.Module.to(model, device or "cpu")  # the buffers
    return LoadedModel(model, hashes.of_digests(digests), file)


def match(
    file: TensorFile,
    layout: Layout,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    sizes_known: bool = True,
) -> dict[str, tuple[str, Operation]]:
    """Which tensor of the file becomes which of the model.

    Args:
        file: the checkpoint.
        layout: its layout.
        shapes: the model's tensors.
        sizes_known: whether the architecture's sizes came with the file or were given.

    Returns:
        For each of the model's names, the file's name and what to do with the tensor.

    Raises:
        CheckpointError: a tensor is missing, unexpected, doubled or of another shape.
    """
    name = file.path.name
    if layout not in _LOADED:
        raise CheckpointError(
            f"{name} seems to be {layout.value}, not a SAM 3 checkpoint: "
            f"{_advice(layout)}; its first tensors are {some_names(file.shapes)}"
        )
    sources: dict[str, tuple[str, Operation]] = {}
    unexpected, mismatched = [], []
    # From the file's side, so that a tensor of which nothing is used cannot be overlooked.
    for key, shape in file.shapes.items():
        targets = _targets(key, layout)
        if targets is None:
            continue
        if not targets or any(target.key not in shapes for target in targets):
            unexpected.append(key)
            continue
        for target in targets:
            if target.key in sources:
                raise CheckpointError(
                    f"{name} holds {target.key} twice: {key} and {sources[target.key][0]}"
                )
            if _converted_shape(target.operation, shape) != shapes[target.key]:
                mismatched.append(f"{key} {list(shape)}")
            sources[target.key] = (key, target.operation)
    missing = [key for key in shapes if key not in sources]
    if problems := misfits(missing, unexpected, mismatched):
        assumed = "; the full size was assumed: pass config= for another one"
        hint = assumed if mismatched and not sizes_known else ""
        raise CheckpointError(
            f"{name} seems to be {layout.value}, but does not fit the model: {problems}{hint}"
        )
    return {key: sources[key] for key in shapes}


def _config_beside(weights: Path, file: TensorFile, layout: Layout) -> Sam3Config | None:
    try:
        return find_config(weights, file)
    except CheckpointError:
        if layout is not Layout.SAM31:
            raise
        return None  # of its video model, which transformers does not have: the full size is tried


def _with_levels(config: Any, file: TensorFile, layout: Layout) -> Any:
    """The config with as many feature levels as the file has: SAM 3.1 lacks SAM 3's fourth."""
    if layout is not Layout.SAM31:
        return config
    found = {match.group(1) for key in file.shapes if (match := _LEVEL.match(key))}
    if len(found) != 3:
        return config
    config = copy.deepcopy(config)
    config.vision_config.scale_factors = config.vision_config.scale_factors[:3]
    return config


def _targets(key: str, layout: Layout) -> tuple[key_mapping.Target, ...] | None:
    """The model's tensors for one of the file's; None for what is knowingly left out."""
    if layout in (Layout.FACEBOOK, Layout.SAM31):
        return None if key_mapping.has_no_counterpart(key) else key_mapping.targets(key)
    if layout is Layout.HUGGING_FACE_VIDEO:
        if key.startswith(("tracker_model.", "tracker_neck.")):
            return None
        if not key.startswith("detector_model."):
            return ()
        key = key.removeprefix("detector_model.")
    if key.endswith(".position_ids"):  # older versions of transformers stored this buffer
        return None
    return (key_mapping.Target(key),)


def _converted_shape(operation: Operation, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return operation.shape(shape)
    except (IndexError, RuntimeError):
        return None


def _advice(layout: Layout) -> str:
    return {
        Layout.ADAPTER: "pass it as adapter=, with SAM 3 as the checkpoint",
        Layout.DETECTOR: "pass it as detector=, with its base as the checkpoint",
    }.get(layout, "SAM 3 is needed (facebook/sam3)")
