"""Weights between two detectors: they often keep more of the old and lose little of the new.

Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903, equation 1.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medsam3_model.checkpoints.detectors import detector_state
from medsam3_model.checkpoints.encoder_adapter import adapter_part
from medsam3_model.checkpoints.hashes import ADAPTER_ENDINGS

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3


def between(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """The weights that are this share of the way from one detector to another, 0 to 1.

    An adapter that the start lacks begins with changing nothing.
    """
    lacking = {
        key: tensor if key.endswith(ADAPTER_ENDINGS[0]) else torch.zeros_like(tensor)
        for key, tensor in adapter_part(end).items()
    }
    start = {**lacking, **start}
    return {key: start[key].lerp(end[key], share) for key in end}


def model_between(start: "MedSAM3", end: "MedSAM3", share: float, *, base: str) -> "MedSAM3":
    """The version that is this share of the way from one to another.

    Args:
        start: a version.
        end: one that was trained from it; its name, thresholds and second looks are kept.
        share: 0 is `start`, 1 is `end`.
        base: the checkpoint that holds the encoders, see `DetectorCheckpoint.base`.
    """
    state = between(detector_state(start.model), detector_state(end.model), share)
    return start.with_weights(
        state,
        base=base,
        name=end.name,
        thresholds=end.thresholds,
        second_looks=end.second_looks,
    )
