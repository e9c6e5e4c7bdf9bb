"""What the spared images of a run decide, and what they are too few for."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3_model.checkpoints.detectors import detector_state
from medsam3_model.predictor import MedSAM3
from medsam3_model.training.calibration import Calibration
from medsam3_model.training.data import TrainingData, TrainingImage
from medsam3_model.training.processes import Processes
from medsam3_model.training.thresholds import LEAST_IMAGES
from tests.support.discs import SIDE, cache_in, disc, small_model


@pytest.fixture(scope="module")
def model() -> MedSAM3:
    """It has figures of its own for a phrase that the run is about, and for another one."""
    plain = small_model()
    return plain.with_weights(
        detector_state(plain.model),
        base="b",
        name="s",
        thresholds={"optic disc": 0.31, "polyp": 0.32},
        second_looks={"optic disc": 3.1, "polyp": 3.2},
    )


def absent_from(seed: int) -> TrainingImage:
    """An image in which the right answer is nothing like what an untrained model finds."""
    image, _ = disc(seed)
    corner: NDArray[np.int32] = np.zeros((SIDE, SIDE), np.int32)
    corner[:3, :3] = 1
    return TrainingImage(f"image{seed}", lambda: image, lambda: {"optic disc": corner})


@pytest.mark.parametrize("count", [LEAST_IMAGES - 1, LEAST_IMAGES])
def test_too_few_images_keep_what_an_earlier_run_found(
    model: MedSAM3, tmp_path: Path, count: int
) -> None:
    images = [absent_from(seed) for seed in range(count)]
    data = TrainingData(model, images, cache_in(tmp_path))
    calibration = Calibration(model, images, data, Processes(), lambda: None)
    thresholds, looks = calibration.thresholds(model), calibration.second_looks(model)
    assert (thresholds["polyp"], looks["polyp"]) == (0.32, 3.2)
    # With enough of them, nothing that is tried is better than the model's own threshold, and than
    # no second look.
    kept = count < LEAST_IMAGES
    assert thresholds.get("optic disc") == (0.31 if kept else None)
    assert looks.get("optic disc") == (3.1 if kept else None)
