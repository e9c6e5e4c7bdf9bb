"""What the spared images of a run decide, and what they are too few for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3_model.checkpoints.detectors import detector_state
from medsam3_model.predictor import MedSAM3
from medsam3_model.second_look import ROOMS
from medsam3_model.training import calibration
from medsam3_model.training.calibration import Calibration
from medsam3_model.training.data import TrainingData, TrainingImage
from medsam3_model.training.processes import Processes
from medsam3_model.training.thresholds import LEAST_IMAGES
from medsam3_model.types import Detections
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
    calibrate = Calibration(model, images, data, Processes(), lambda: None)
    thresholds, looks = calibrate.thresholds(model), calibrate.second_looks(model)
    assert (thresholds["polyp"], looks["polyp"]) == (0.32, 3.2)
    # With enough of them, nothing that is tried is better than the model's own threshold.
    assert thresholds.get("optic disc") == (0.31 if count < LEAST_IMAGES else None)
    # Nor is any square better than the one that the phrase had.
    assert looks["optic disc"] == 3.1


def test_the_square_that_agrees_best_is_chosen_where_it_is_better(
    model: MedSAM3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [absent_from(seed) for seed in range(LEAST_IMAGES)]
    data = TrainingData(model, images, cache_in(tmp_path))
    calibrate = Calibration(model, images, data, Processes(), lambda: None).second_looks
    looked = calibration.look_again

    def chosen(best: float) -> float | None:
        """Where the look in this square alone is right: 0: the first look is."""

        def look_again(*arguments: Any) -> Detections:
            answer = looked(*arguments)
            return replace(answer, phrase="right" if arguments[4] == best else "wrong")

        def agreement(answer: Detections, truth: NDArray[np.int32]) -> float:
            is_first = answer.phrase == "optic disc"
            return float(answer.phrase == "right" or (is_first and best == 0))

        monkeypatch.setattr(calibration, "look_again", look_again)
        monkeypatch.setattr(calibration, "agreement", agreement)
        return calibrate(model).get("optic disc")

    assert [chosen(best) for best in (*ROOMS, 3.1, 0)] == [*ROOMS, 3.1, None]
