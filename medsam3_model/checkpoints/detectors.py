"""Detector checkpoints, the project's own: the detector and its neck, for a known frozen encoder.

Fine-tuning changes the detector and the neck through which it reads the vision transformer, a small
part of the model, so a version is a small safetensors file. Where a project wants one, a low-rank
adapter of the vision transformer's last blocks is part of it (`encoder_adapter`). The metadata name
the encoder that it was trained on; another one is refused, for the detector would read features
that mean something else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Sam3Model

from medsam3_model.checkpoints import hashes
from medsam3_model.checkpoints.encoder_adapter import BACKBONE, adapted_backbone, adapter_part
from medsam3_model.checkpoints.hashes import is_adapter, is_detector, is_neck, is_tuned
from medsam3_model.checkpoints.loading import DETECTOR_FORMAT, Layout, empty_model, layout_of
from medsam3_model.checkpoints.weight_files import open_tensors, replacing
from medsam3_model.errors import CheckpointError

# In the first format the neck was the base's; the third has an adapter.
_READ_FORMATS = ("1", "2", "3")
LARGEST_LOOK = 20.0
"""More around an object than this is the whole image."""


@dataclass(frozen=True)
class DetectorCheckpoint:
    """A detector's parameters and where they belong.

    Attributes:
        state: the detector's and the neck's tensors, float32, named as in `Sam3Model`, and the
            adapter's; without any of the neck the base's serves.
        encoder_hash: of the frozen encoders it was trained on, without the adapter.
        detector_hash: of `state`.
        base: the checkpoint that holds that encoder, as it was given ("tiny", a path, a hub id).
        name: first part of the version it gives a model.
        notes: whatever the training run wrote down (concepts, figures); JSON values.
        thresholds: lowest score of a shown instance by phrase, 0 to 1, where it is not the model's
            own.
        second_looks: sides of the square in which a phrase's object is looked at again, as
            multiples of the object's longer side, see `second_look`; other phrases have none.
    """

    state: Mapping[str, torch.Tensor]
    encoder_hash: str
    detector_hash: str
    base: str
    name: str
    notes: Mapping[str, Any] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    second_looks: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_neck(self) -> bool:
        """Whether it has a neck of its own."""
        return any(is_neck(key) for key in self.state)

    @property
    def adapter(self) -> dict[str, torch.Tensor]:
        """The tensors of its adapter; empty where it has none."""
        return adapter_part(self.state)


def detector_state(model: Sam3Model) -> dict[str, torch.Tensor]:
    """Copies of what a version has of its own (`hashes.is_tuned`), float32 on the CPU."""
    return {
        key: tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        for key, tensor in model.state_dict().items()
        if is_tuned(key)
    }


def adapter_of(model: Sam3Model) -> dict[str, torch.Tensor]:
    """The tensors of a model's adapter; empty where it has none."""
    backbone = model.vision_encoder.backbone
    return adapter_part({f"{BACKBONE}{key}": value for key, value in backbone.state_dict().items()})


def save_detector(
    path: Path | str,
    state: Mapping[str, torch.Tensor],
    *,
    encoder_hash: str,
    base: str,
    name: str,
    notes: Mapping[str, Any] | None = None,
    thresholds: Mapping[str, float] | None = None,
    second_looks: Mapping[str, float] | None = None,
) -> DetectorCheckpoint:
    """Write a detector; the file appears complete or not at all.

    Args:
        path: the safetensors file to write.
        state: from `detector_state`.
        encoder_hash: `MedSAM3.base_hash` of the model it was trained in.
        base: the checkpoint that holds the encoder, for `from_pretrained` of the file alone.
        name: first part of the version.
        notes: JSON values to keep with it.
        thresholds, second_looks: by phrase, see `DetectorCheckpoint`.
    """
    path = Path(path)
    detector_hash = hashes.of_detector(state)
    metadata = {
        "format": DETECTOR_FORMAT,
        "format_version": "3" if adapter_part(state) else "2",
        "encoder_hash": encoder_hash,
        "detector_hash": detector_hash,
        "base": base,
        "name": name,
        "notes": json.dumps(dict(notes or {}), sort_keys=True),
        "thresholds": json.dumps(dict(thresholds or {}), sort_keys=True),
        "second_looks": json.dumps(dict(second_looks or {}), sort_keys=True),
    }
    with replacing(path) as unfinished:
        save_file(dict(state), unfinished, metadata)
    return DetectorCheckpoint(
        dict(state),
        encoder_hash,
        detector_hash,
        base,
        name,
        notes or {},
        thresholds or {},
        second_looks or {},
    )


def load_detector(path: Path | str) -> DetectorCheckpoint:
    """Read a detector.

    Raises:
        CheckpointError: it is another kind of file, damaged, of a newer format, or its weights
            are not those that were saved.
    """
    path = Path(path)
    file = open_tensors(path)
    layout = layout_of(file)
    if layout is not Layout.DETECTOR:
        raise CheckpointError(
            f"{path.name} seems to be {layout.value}, not a detector of this project"
        )
    notes = file.metadata
    if notes.get("format_version") not in _READ_FORMATS:
        raise CheckpointError(
            f"{path.name} has format version {notes.get('format_version')}, this program reads "
            f"{', '.join(_READ_FORMATS)}: use the program that wrote it, or a newer one"
        )
    try:
        state = {key: file.read(key).to(torch.float32, copy=True) for key in file.shapes}
        loaded = DetectorCheckpoint(
            state,
            notes["encoder_hash"],
            notes["detector_hash"],
            notes["base"],
            notes["name"],
            json.loads(notes["notes"]),
            _by_phrase("thresholds", notes, 0, 1),
            _by_phrase("second_looks", notes, 1, LARGEST_LOOK),
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path.name} lacks a part of its metadata: {error}") from error
    if hashes.of_detector(state) != loaded.detector_hash:
        raise CheckpointError(f"{path.name} is damaged: its weights are not those that were saved")
    return loaded


def _by_phrase(name: str, notes: Mapping[str, str], low: float, high: float) -> dict[str, float]:
    """Raises ValueError for anything but numbers between two by phrase."""
    text = notes.get(name, "{}")
    values = json.loads(text)
    if not isinstance(values, dict) or not all(
        isinstance(value, int | float) and low <= value <= high for value in values.values()
    ):
        raise ValueError(f"{name} {text[:80]!r} are not numbers from {low} to {high} by phrase")
    return {phrase: float(value) for phrase, value in values.items()}


def with_detector(base: Sam3Model, detector: DetectorCheckpoint, encoder_hash: str) -> Sam3Model:
    """A model with another detector, its neck and its adapter on the same encoders, shared.

    Args:
        base: the model whose encoders are used, without an adapter; it stays as it is.
        detector: from `load_detector`.
        encoder_hash: of `base`'s encoders.

    Raises:
        CheckpointError: the detector was trained on another encoder, or has other tensors.
    """
    if detector.encoder_hash != encoder_hash:
        raise CheckpointError(
            f"the detector {detector.name!r} was trained on the encoder "
            f"{detector.encoder_hash[:8]} of {detector.base!r}, this model's is "
            f"{encoder_hash[:8]}: load it with its own base"
        )
    model = empty_model(base.config)
    for name in ("text_encoder", "text_projection"):
        setattr(model, name, getattr(base, name))
    vision, of_base = model.vision_encoder, base.vision_encoder
    vision.backbone = of_base.backbone
    if detector.adapter:
        vision.backbone = adapted_backbone(of_base.backbone, detector.adapter)
    # A detector of another size would be a different architecture, whatever its encoder hash says.
    its_own = is_tuned if detector.has_neck else is_detector
    expected = {
        key: value.shape
        for key, value in model.state_dict().items()
        if its_own(key) or is_adapter(key)
    }
    for key in expected.keys() ^ detector.state.keys():
        kind = "lacks" if key in expected else "has an unknown"
        raise CheckpointError(f"the detector {detector.name!r} {kind} {key}")
    for key, shape in expected.items():
        if detector.state[key].shape != shape:
            raise CheckpointError(f"the detector {detector.name!r} has another shape of {key}")
    if detector.has_neck:
        read = {int(key.split(".")[3]) for key in expected if is_neck(key)}
        for level in set(range(len(vision.neck.fpn_layers))) - read:
            vision.neck.fpn_layers[level] = of_base.neck.fpn_layers[level]
    else:
        vision.neck = of_base.neck
    device = next(base.parameters()).device
    state = {key: tensor.to(device) for key, tensor in detector.state.items()}
    # Not strict: the encoders' tensors are there already, and the detector's keys were compared.
    model.load_state_dict(state, strict=False, assign=True)
    return model.eval().requires_grad_(False)
