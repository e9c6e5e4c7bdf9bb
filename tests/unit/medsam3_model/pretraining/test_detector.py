"""Pre-training of the detector on the frozen vision transformer: a short run."""

from pathlib import Path

import pytest
import torch

from medsam3_model import MedSAM3
from medsam3_model.pretraining.data import SourceImage
from medsam3_model.pretraining.detector import DetectorPretraining, DetectorTraining
from medsam3_model.pretraining.pretrain import detector_step
from medsam3_model.pretraining.validation import Validation
from medsam3_model.training.losses import PromptTarget
from medsam3_model.training.prompts import DrawnPrompt

SHORT = DetectorTraining(images_per_step=2, steps=2, warm_up=1, workers=1)


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
    taken: list[int] = []

    class Counted(DetectorPretraining):
        def one_step(self) -> dict[str, float]:
            taken.append(self.step)
            return super().one_step()

    Counted(config, sources, Validation({}, frozenset()), 0, tmp_path).run()
    assert taken == [0]
    assert (tmp_path / "bundle" / "preset.json").is_file()


def test_a_step_may_be_about_absence_alone(
    sources: dict[str, list[SourceImage]], tmp_path: Path
) -> None:
    """No prompt of it wants masks, and no box and no mask can be learned."""
    run = DetectorPretraining(SHORT, sources, Validation({}, frozenset()), 0, tmp_path)
    nothing = PromptTarget(torch.zeros(0, 4), torch.zeros(0, 72, 72), torch.zeros(72, 72))
    before = run.model.state_dict()["detr_decoder.presence_token.weight"].clone()
    terms = detector_step(
        run.model,
        run.tokenizer,
        run.optimiser,
        torch.zeros(1, 18 * 18, 192),
        [(0, DrawnPrompt("polyp", None, nothing, wants_masks=False))],
        rate=1e-3,
        weights=SHORT.loss,
        loudness_weight=2.0,
        clip_norm=5.0,
    )
    assert terms["presence"] > 0
    assert terms["mask_dice"] == terms["box_l1"] == 0
    assert "semantic_dice" not in terms
    after = run.model.state_dict()["detr_decoder.presence_token.weight"]
    assert not torch.equal(before, after)
