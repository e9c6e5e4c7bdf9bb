"""Pre-training of encoder, detector and tracker together: a short run."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import Sam3Model

from medsam3_model import MedSAM3
from medsam3_model.checkpoints.bundle import write_bundle
from medsam3_model.checkpoints.presets import bundled_weights, tiny_config
from medsam3_model.checkpoints.tokenizer import load_tokenizer
from medsam3_model.detector import vision_hidden
from medsam3_model.errors import CheckpointError
from medsam3_model.pretraining.data import SourceImage
from medsam3_model.pretraining.initialisation import deepened
from medsam3_model.pretraining.teacher import features_of
from medsam3_model.pretraining.validation import Validation
from medsam3_model.pretraining.whole import WholePretraining, WholeTraining

SHORT = WholeTraining(images_per_step=2, steps=3, warm_up=1, workers=1, layers=12)


def test_a_short_run_moves_every_part_and_goes_on_where_it_stopped(
    sources: dict[str, list[SourceImage]], tmp_path: Path
) -> None:
    samples = tuple(sources["shapes"])
    validation = Validation({"isic2017": samples}, boxed=frozenset({"isic2017"}))
    run = WholePretraining(SHORT, sources, validation, 0, tmp_path)
    run.run()
    bundled = MedSAM3.from_pretrained("tiny", device="cpu")
    model = MedSAM3.from_pretrained(tmp_path / "bundle", device="cpu")
    assert model.encoder_hash != bundled.encoder_hash
    assert len(model.model.vision_encoder.backbone.layers) == SHORT.layers
    assert bundled.tracker is not None
    assert model.tracker is not None
    for before, after in (
        (bundled.model.vision_encoder.backbone, model.model.vision_encoder.backbone),
        (bundled.model.detr_decoder, model.model.detr_decoder),
        (bundled.tracker.model, model.tracker.model),
        (bundled.tracker.neck, model.tracker.neck),
    ):
        kept = before.state_dict()
        assert any(not torch.equal(kept[key], value) for key, value in after.state_dict().items())
    log = (tmp_path / "log.jsonl").read_text()
    assert '"T_' in log
    assert '"clicks": {"isic2017": [' in log
    again = WholePretraining(SHORT, sources, validation, 0, tmp_path)
    assert again.step == 3
    torch.testing.assert_close(again.parts.state_dict(), run.parts.state_dict())


def test_a_deeper_transformer_answers_as_before_and_can_learn_more() -> None:
    shallow = Sam3Model(tiny_config(72, layers=6)).eval()
    deep = deepened(shallow, tiny_config(72, layers=9))
    pixels = torch.randn(1, 3, 72, 72, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(vision_hidden(deep, pixels), vision_hidden(shallow, pixels))
    vision_hidden(deep, pixels).square().sum().backward()
    added = deep.vision_encoder.backbone.layers[8].mlp.fc2.weight
    assert added.grad is not None
    assert added.grad.abs().max() > 0


def test_without_a_tracker_the_run_says_what_is_missing(
    sources: dict[str, list[SourceImage]], tmp_path: Path
) -> None:
    bundled = MedSAM3.from_pretrained("tiny", device="cpu")
    bare, tokenizer = tmp_path / "bare", load_tokenizer(bundled_weights("tiny"))
    write_bundle(bare, "tiny", bundled.config, bundled.model.state_dict(), tokenizer)
    config = dataclasses.replace(SHORT, base=str(bare))
    with pytest.raises(CheckpointError, match="no tracker"):
        WholePretraining(config, sources, Validation({}, frozenset()), 0, tmp_path)


def test_the_transformer_imitates_a_teacher_and_learns_nothing_from_painted_views(
    sources: dict[str, list[SourceImage]], tmp_path: Path
) -> None:
    samples = [sample for of in sources.values() for sample in of]
    save_file(
        features_of(samples, lambda pixels: F.avg_pool2d(pixels, 4)),
        tmp_path / "teacher.safetensors",
    )
    config = dataclasses.replace(SHORT, teacher=tmp_path / "teacher.safetensors")
    run = WholePretraining(config, sources, Validation({}, frozenset()), 0, tmp_path)
    drawn = run._draw(np.random.default_rng(0))
    weight = run.model.vision_encoder.backbone.layers[0].mlp.fc2.weight
    said = run._imitation(run._hidden(drawn), drawn.views)
    assert said is not None
    said.backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0
    painted = [
        dataclasses.replace(view, sample=dataclasses.replace(view.sample, painted=True))
        for view in drawn.views
    ]
    weight.grad = None
    run._hidden(dataclasses.replace(drawn, views=painted)).sum().backward()
    assert not weight.grad.any()
    assert run.one_step()["imitation"] > 0


def test_a_teacher_of_other_images_is_refused(
    sources: dict[str, list[SourceImage]], tmp_path: Path
) -> None:
    file = tmp_path / "teacher.safetensors"
    save_file({"another": torch.zeros(2, 4, 4)}, file)
    config = dataclasses.replace(SHORT, teacher=file)
    with pytest.raises(CheckpointError, match="knows none of the training images"):
        WholePretraining(config, sources, Validation({}, frozenset()), 0, tmp_path)
