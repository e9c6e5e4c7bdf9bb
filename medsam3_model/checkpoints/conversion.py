"""Checkpoints described, checked and converted: `medsam3 models show|verify|convert`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from medsam3_model.checkpoints import loading, lora, pretrained
from medsam3_model.checkpoints.detectors import load_detector
from medsam3_model.checkpoints.hashes import WeightsHash
from medsam3_model.checkpoints.loading import Layout
from medsam3_model.checkpoints.weight_files import open_tensors, replacing
from medsam3_model.errors import CheckpointError
from medsam3_model.tracker import has_tracker

_FORMAT = "medsam3-model"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Description:
    """What a weights file holds.

    Attributes:
        path: the file.
        layout: in words, "facebook's sam3.pt".
        tensors, parameters: how many.
        file_bytes: size of the file (of the index, for shards).
        points: whether clicks can be answered (the file holds SAM 3's tracker).
        metadata: the file's notes; long ones (config) left out.
    """

    path: Path
    layout: str
    tensors: int
    parameters: int
    file_bytes: int
    points: bool
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verification:
    """Whether a checkpoint can be used.

    Attributes:
        path: the file.
        layout: in words.
        problems: what is wrong; empty for a good file.
        encoder_hash, detector_hash: of the weights, where they could be read.
    """

    path: Path
    layout: str
    problems: tuple[str, ...]
    encoder_hash: str | None = None
    detector_hash: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def describe(checkpoint: str | Path) -> Description:
    """What a bundled model, file, folder or hub id holds; nothing but headers is read.

    Raises CheckpointError where it is not a weights file; the message says what it seems to be.
    """
    path = pretrained.locate(checkpoint)
    file = open_tensors(path)
    return Description(
        path=path,
        layout=loading.layout_of(file).value,
        tensors=len(file.shapes),
        parameters=sum(prod(shape) for shape in file.shapes.values()),
        file_bytes=path.stat().st_size,
        points=has_tracker(file),
        metadata={key: value for key, value in file.metadata.items() if len(value) <= 200},
    )


def verify(checkpoint: str | Path, *, config: Any = None) -> Verification:
    """Read every tensor of a checkpoint and check names, shapes, values and stored hashes.

    Args:
        checkpoint: as for `MedSAM3.from_pretrained`; an adapter or a detector file, too.
        config: sizes of the architecture, where they do not come with the file.
    """
    path, layout = Path(checkpoint), Layout.UNKNOWN
    weights: WeightsHash | None = None
    problems: list[str] = []
    try:
        path = pretrained.locate(checkpoint)
        file = open_tensors(path)
        layout = loading.layout_of(file)
        tensors: Iterable[tuple[str, torch.Tensor]]
        if layout is Layout.ADAPTER:
            lora.Adapter(file)
            tensors = ((key, file.read(key)) for key in file.shapes)
        elif layout is Layout.DETECTOR:
            detector = load_detector(path)
            weights = WeightsHash(detector.encoder_hash, detector.detector_hash)
            tensors = detector.state.items()
        else:
            loaded = loading.load_model(path, config=pretrained.parse_config(config))
            weights = loaded.hashes
            tensors = loaded.model.state_dict().items()
            for name, hashed in (("encoder", weights.encoder), ("detector", weights.detector)):
                if loaded.file.metadata.get(f"{name}_hash", hashed) != hashed:
                    problems.append(f"the {name}'s weights are not those that were converted")
        unusable = [key for key, tensor in tensors if not torch.isfinite(tensor).all()]
    except CheckpointError as error:
        return Verification(path, layout.value, (str(error),))
    if unusable:
        first = ", ".join(unusable[:3])
        problems.insert(0, f"{len(unusable)} tensors hold infinities or not-a-numbers ({first})")
    hashes = (weights.encoder, weights.detector) if weights else (None, None)
    return Verification(path, layout.value, tuple(problems), *hashes)


def convert(
    source: str | Path,
    destination: str | Path,
    adapter: str | Path | None = None,
    *,
    config: Any = None,
    dtype: str = "float32",
) -> Description:
    """Rewrite a checkpoint as safetensors in the Hugging Face layout, an adapter merged in.

    Only the image model is kept: a video checkpoint loses its tracker, and with it clicks.

    The metadata hold the architecture's config, the preset (name and thresholds), and hashes: of
    the weights, of the base before the adapter, and of the adapter's file.

    Args:
        source: as for `MedSAM3.from_pretrained`.
        destination: a new `.safetensors` file, or a folder for `model.safetensors` and
            `config.json`.
        adapter: a LoRA file in facebook's key space.
        config: sizes of the architecture, where they do not come with the source.
        dtype: of the stored tensors: float32, bfloat16 or float16.

    Raises:
        CheckpointError: the source is not usable, or the destination exists.
        AdapterError: the adapter does not fit.
    """
    if dtype not in _DTYPES:
        raise CheckpointError(f"dtype is one of {', '.join(_DTYPES)}, not {dtype!r}")
    destination = Path(destination)
    in_folder = destination.suffix != ".safetensors"
    target = destination / "model.safetensors" if in_folder else destination
    if target.exists():
        raise CheckpointError(f"{target} exists already: remove it or name another destination")
    weights = pretrained.locate(source)
    sizes = pretrained.parse_config(config)
    adapter = None if adapter is None else Path(adapter).expanduser()
    loaded = loading.load_model(weights, adapter=adapter, config=sizes)
    # Merged weights no longer tell what they were made from: the base's hash is kept beside them.
    base = loaded.hashes if adapter is None else loading.load_model(weights, config=sizes).hashes
    architecture = json.dumps(loaded.model.config.to_dict(), sort_keys=True)
    stored_config = {**json.loads(architecture), "model_type": "sam3"}
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(stored_config, sort_keys=True),
        "preset": pretrained.preset_of(weights, loaded.file.metadata, adapter).to_json(),
        "base_hash": base.combined,
        **({} if adapter is None else {"adapter_hash": _file_hash(adapter)}),
    }
    if dtype == "float32":  # a rounded copy has other weights, so their hash would not be its own
        metadata |= {"encoder_hash": loaded.hashes.encoder, "detector_hash": loaded.hashes.detector}
    state = {
        key: tensor.to(_DTYPES[dtype]).contiguous()
        for key, tensor in loaded.model.state_dict().items()
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as unfinished:
        save_file(state, unfinished, metadata)
        if in_folder:
            (destination / "config.json").write_text(metadata["config"], encoding="utf-8")
            if (tokenizer := weights.parent / "tokenizer.json").is_file():
                shutil.copy(tokenizer, destination)
    return describe(target)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
