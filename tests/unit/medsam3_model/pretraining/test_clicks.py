"""Pre-training of the tracker: a short run."""

from pathlib import Path

import pytest
import torch

from medsam3_model import MedSAM3
from medsam3_model.pretraining.clicks import ClickTraining, TrackerPretraining
from medsam3_model.pretraining.data import SourceImage

SHORT = ClickTraining(images_per_step=2, steps=2, warm_up=1, workers=1, single_steps=1)


def test_the_rate_warms_up_and_falls_to_a_hundredth() -> None:
    config = ClickTraining(steps=100, warm_up=10, learning_rate=1e-3)
    rates = [config.rate(step) for step in (0, 50, 100)]
    assert rates == pytest.approx([1e-4, 5.05e-4, 1e-5], rel=0.02)


def test_a_short_run_writes_a_bundle_and_goes_on_where_it_stopped(
    sources: dict[str, list[SourceImage]], tmp_path: Path
) -> None:
    validation = {"fundus": sources["fundus"]}
    first = TrackerPretraining(SHORT, sources, validation, 0, tmp_path)
    before = first.parts.state_dict()["neck.fpn_layers.0.proj1.weight"].clone()
    first.run()
    after = first.parts.state_dict()["neck.fpn_layers.0.proj1.weight"]
    assert not torch.equal(before, after)
    again = TrackerPretraining(SHORT, sources, validation, 0, tmp_path)
    assert again.step == 2
    torch.testing.assert_close(again.parts.state_dict(), first.parts.state_dict())
    bundled = MedSAM3.from_pretrained("tiny", device="cpu")
    model = MedSAM3.from_pretrained(tmp_path / "bundle", device="cpu")
    assert model.encoder_hash == bundled.encoder_hash
    assert model.tracker is not None
    assert not model.tracker.has_memory
    assert model.tracker.traits.paints_clicks
    assert '"fundus": [' in (tmp_path / "log.jsonl").read_text()


def test_a_run_goes_on_from_the_bundled_tracker(
    sources: dict[str, list[SourceImage]], tmp_path: Path
) -> None:
    config = ClickTraining(images_per_step=2, steps=1, warm_up=1, workers=1, go_on=True)
    run = TrackerPretraining(config, sources, {}, 0, tmp_path)
    bundled = MedSAM3.from_pretrained("tiny", device="cpu").tracker
    assert bundled is not None
    for name, value in bundled.model.state_dict().items():
        assert torch.equal(run.tracker.model.state_dict()[name], value)
