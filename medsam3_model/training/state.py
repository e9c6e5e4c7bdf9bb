"""The state of a fine-tuning run as a file: a run that was killed goes on from it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsam3_model.checkpoints.weight_files import replacing

_FORMAT = 4


@dataclass
class TrainingState:
    """What a run has to know besides its settings and data.

    No state of a random generator is in it: all that is drawn follows from seed and step.

    Attributes:
        step: optimiser steps done.
        bad: validations since the best one.
        seconds: of training so far, over all its processes.
        losses: of the latest steps.
        history: (step, mean loss, validation Dice or None).
        average: the moving average of the detector's tensors.
        scores: of each validation, by which the weights that it looked at are compared.
        best: the best mean of these, and the detector's tensors, once there was a validation.
    """

    step: int = 0
    bad: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    history: list[tuple[int, float, float | None]] = field(default_factory=list)
    average: Mapping[str, Tensor] = field(default_factory=dict)
    scores: list[list[float]] = field(default_factory=list)
    best: tuple[float, Mapping[str, Tensor]] | None = None


def save_state(
    path: Path,
    run: str,
    state: TrainingState,
    detector: Mapping[str, Tensor],
    optimiser: Mapping[str, Any],
) -> None:
    """Replace the state's file.

    Args:
        path: the file.
        run: what identifies the run: the same data, settings and start.
        state: where it stands.
        detector: the weights of this step.
        optimiser: its `state_dict`.
    """
    content = {
        "format": _FORMAT,
        "run": run,
        **vars(state),
        "detector": dict(detector),
        "optimiser": optimiser,
    }
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def load_state(
    path: Path, run: str
) -> tuple[TrainingState, Mapping[str, Tensor], Mapping[str, Any]] | None:
    """State, detector and optimiser of the run, or None where the file is not there or another's.

    What was left unfinished by processes that died is removed.
    """
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink(missing_ok=True)
    if not path.is_file():
        return None
    content = torch.load(path, weights_only=True, map_location="cpu")
    if content.pop("format") != _FORMAT or content.pop("run") != run:
        return None
    detector, optimiser = content.pop("detector"), content.pop("optimiser")
    return TrainingState(**content), detector, optimiser
