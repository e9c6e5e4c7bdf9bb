"""Hashes of weights: one for the frozen encoders, one for what fine-tuning changes.

The hash is over names, shapes and float32 values in the Hugging Face layout, so a model has the
same hash whichever layout or lossless storage type it was loaded from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from medsam3_model.device import available_cpus

DETECTOR_MODULES = (
    "geometry_encoder",
    "detr_encoder",
    "detr_decoder",
    "mask_decoder",
    "dot_product_scoring",
)
"""The parts of `Sam3Model` that MedSAM-3 trains."""
_NECK = "vision_encoder.neck.fpn_layers."
_LEVELS_READ = ("0.", "1.", "2.")  # SAM 3's fourth level is never read
ADAPTER_ENDINGS = (".lora_a", ".lora_b")
"""Of the tensors of an `encoder_adapter`."""


def is_detector(key: str) -> bool:
    """Whether a parameter's name belongs to the detector."""
    return key.split(".", 1)[0] in DETECTOR_MODULES


def is_neck(key: str) -> bool:
    """Whether a parameter belongs to the neck through which the detector reads the encoder."""
    return key.startswith(_NECK) and key.removeprefix(_NECK).startswith(_LEVELS_READ)


def is_adapter(key: str) -> bool:
    """Whether a tensor belongs to an adapter of the vision transformer (`encoder_adapter`)."""
    return key.startswith("vision_encoder.backbone.") and key.endswith(ADAPTER_ENDINGS)


def is_tuned(key: str) -> bool:
    """Whether a version of a project has a tensor of its own: the detector's, the neck's and, where
    it has one, the adapter's; the rest is frozen.

    The neck is small, comes after what embeddings keep, and nothing but the detector reads it: the
    tracker has one of its own.
    """
    return is_detector(key) or is_neck(key) or is_adapter(key)


@dataclass(frozen=True)
class WeightsHash:
    """SHA-256 of the frozen encoders and of the detector, hexadecimal."""

    encoder: str
    detector: str

    @property
    def combined(self) -> str:
        """One hash of the whole model."""
        return hashlib.sha256(f"{self.encoder}{self.detector}".encode()).hexdigest()


def of_tensor(name: str, tensor: torch.Tensor) -> bytes:
    """Digest of one named tensor."""
    digest = hashlib.sha256(f"{name}{list(tensor.shape)}".encode())
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    digest.update(values.numpy().data)
    return digest.digest()


def of_digests(digests: Mapping[str, bytes]) -> WeightsHash:
    """The model's hash from its tensors' digests, whatever their order."""
    encoder, detector = hashlib.sha256(), hashlib.sha256()
    for key, digest in sorted(digests.items()):
        (detector if is_detector(key) else encoder).update(digest)
    return WeightsHash(encoder.hexdigest(), detector.hexdigest())


def of_adapted(encoder_hash: str, adapter: Mapping[str, torch.Tensor]) -> str:
    """Of frozen encoders with an adapter on them; `encoder_hash` itself without one."""
    if not adapter:
        return encoder_hash
    return hashlib.sha256(f"{encoder_hash}{of_detector(adapter)}".encode()).hexdigest()


def of_detector(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a detector's tensors, with those of its own neck and adapter where it has them."""
    digest = hashlib.sha256()
    for _, each in sorted(_digests(state).items()):
        digest.update(each)
    return digest.hexdigest()


def of_state(state: Mapping[str, torch.Tensor]) -> WeightsHash:
    """The hash of a state dict in the Hugging Face layout."""
    return of_digests(_digests(state))


def _digests(state: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    # hashlib releases the interpreter's lock, so threads do help.
    with ThreadPoolExecutor(available_cpus()) as pool:
        digests = pool.map(of_tensor, state.keys(), state.values())
        return dict(zip(state.keys(), digests, strict=True))
