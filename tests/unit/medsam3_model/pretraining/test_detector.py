"""Pre-training of the detector on the frozen vision transformer: a short run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from medsam3_model import MedSAM3
from medsam3_model.pretraining import detector
from medsam3_model.pretraining.data import SourceImage, phantom_image
from medsam3_model.pretraining.detector import DetectorPretraining, DetectorTraining
from medsam3_model.pretraining.validation import Validation

SHORT = DetectorTraining(images_per_step=2, steps=2, warm_up=1, workers=1)


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[SourceImage]]]:
    monkeypatch.setattr(detector, "_FIRST_VIEWS", 3)
    threads = torch.get_num_threads()
    yield {kind: [phantom_image(kind, seed) for seed in (0, 1)] for kind in ("shapes", "fundus")}
    torch.set_num_threads(threads)


def test_the_rate_warms_up_and_falls_to_a_hundredth() -> None:
    config = DetectorTraining(warm_up=10, learning_rate=1e-3)
    rates = [config.rate(0.0, 0), config.rate(0.5, 50), config.rate(1.0, 100)]
    assert rates == pytest.approx([1e-4, 5.05e-4, 1e-5])


def test_a_short_run_writes_a_bundle_whose_tracker_and_transformer_are_as_before(
    sources: dict[str, list[SourceImage]], tmp_path: Path
) -> None:
    validation = Validation({"fundus": tuple(sources["fundus"])}, boxed=frozenset({"fundus"}))
    run = DetectorPretraining(SHORT, sources, validation, 0, tmp_path)
    run.run()
    bundled = MedSAM3.from_pretrained("tiny", device="cpu")
    model = MedSAM3.from_pretrained(tmp_path / "bundle", device="cpu")
    before, after = bundled.model.state_dict(), model.model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert not any(key.startswith("vision_encoder.backbone.") for key in moved)
    assert any(key.startswith("mask_decoder.") for key in moved)
    assert any(key.startswith("text_encoder.") for key in moved)
    assert bundled.tracker is not None
    assert model.tracker is not None
    for key, value in bundled.tracker.model.state_dict().items():
        assert torch.equal(model.tracker.model.state_dict()[key], value)
    assert '"validation": {"fundus": {' in (tmp_path / "log.jsonl").read_text()
    again = DetectorPretraining(SHORT, sources, validation, 0, tmp_path)
    assert again.step == 2
    torch.testing.assert_close(again.model.state_dict(), run.model.state_dict())


def test_a_run_ends_with_its_minutes(sources: dict[str, list[SourceImage]], tmp_path: Path) -> None:
    config = DetectorTraining(images_per_step=2, steps=1000, minutes=1e-4, workers=1)
    run = DetectorPretraining(config, sources, Validation({}, frozenset()), 0, tmp_path)
    run.run()
    assert run.average
    assert np.isfinite(float(sum(value.float().sum() for value in run.average.values())))
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) < 5
