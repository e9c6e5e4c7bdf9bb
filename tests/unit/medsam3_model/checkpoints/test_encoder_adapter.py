"""An adapter of the vision transformer's last blocks: what it changes, and what it leaves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from medsam3_model import MedSAM3
from medsam3_model.checkpoints.detectors import detector_state, load_detector
from medsam3_model.checkpoints.encoder_adapter import (
    BLOCKS,
    RANK,
    adapted_backbone,
    adapter_part,
    untrained_adapter,
)
from medsam3_model.checkpoints.presets import tiny_config
from medsam3_model.detector import vision_hidden
from medsam3_model.errors import CheckpointError, PromptError
from medsam3_model.training.interpolation import model_between
from tests.support.discs import disc

RGB = disc(3)[0]
LAST = f"layers.{tiny_config().vision_config.backbone_config.num_hidden_layers - 1}."
PIXELS = torch.linspace(-1, 1, 3 * 216 * 216).view(1, 3, 216, 216)


@pytest.fixture(scope="module")
def model() -> MedSAM3:
    return MedSAM3.from_pretrained("tiny", device="cpu")


def adapter_of(model: MedSAM3, size: float) -> dict[str, torch.Tensor]:
    """One whose B is drawn."""
    drawn = torch.Generator().manual_seed(0)
    return {
        key: tensor + size * torch.randn(tensor.shape, generator=drawn) * key.endswith("lora_b")
        for key, tensor in untrained_adapter(model.model).items()
    }


def with_adapter(model: MedSAM3, size: float) -> MedSAM3:
    state = detector_state(model.model) | adapter_of(model, size)
    return model.with_weights(state, base="tiny", name="p", thresholds={}, second_looks={})


def hidden(model: MedSAM3) -> torch.Tensor:
    with torch.no_grad():
        return vision_hidden(model.model, PIXELS)


def test_an_untrained_adapter_changes_nothing(model: MedSAM3) -> None:
    adapter = untrained_adapter(model.model)
    assert len(adapter) == BLOCKS * 6 * 2, "four layers of attention and two of the perceptron each"
    assert {min(tensor.shape) for tensor in adapter.values()} == {RANK}
    a = adapter[f"vision_encoder.backbone.{LAST}attention.q_proj.lora_a"]
    torch.testing.assert_close(a @ a.T, torch.eye(RANK))
    assert torch.equal(hidden(with_adapter(model, 0)), hidden(model))


def test_a_merged_adapter_answers_as_one_that_learns(model: MedSAM3) -> None:
    adapter = adapter_of(model, 0.05)
    backbone = model.model.vision_encoder.backbone
    with torch.no_grad():
        merged = adapted_backbone(backbone, adapter)(PIXELS).last_hidden_state
        learning = adapted_backbone(backbone, adapter, learns=True)
        torch.testing.assert_close(learning(PIXELS).last_hidden_state, merged)
    assert (merged - hidden(model)).abs().max() > 0.01
    learned = [name for name, each in learning.named_parameters() if each.requires_grad]
    assert {name.rpartition(".")[2] for name in learned} == {"lora_b"}
    first, of_base = learning.layers[0], backbone.layers[0]
    assert first is of_base, "all before the last blocks is shared"


def test_a_version_with_an_adapter_comes_back_from_its_file(model: MedSAM3, tmp_path: Path) -> None:
    version, file = with_adapter(model, 0.05), tmp_path / "p.safetensors"
    version.save_detector(file, base="tiny", name="p")
    with safe_open(file, "pt") as opened:
        notes = opened.metadata()
    assert notes["format_version"] == "3", "programs that know no adapters refuse it by name"
    assert notes["encoder_hash"] == model.encoder_hash
    loaded = MedSAM3.from_pretrained(file, device="cpu")
    assert loaded.version == version.version != with_adapter(model, 0.06).version
    assert loaded.encoder_hash == version.encoder_hash != model.encoder_hash
    assert torch.equal(hidden(loaded), hidden(version))
    assert (
        adapter_part(detector_state(loaded.model)).keys() == untrained_adapter(model.model).keys()
    )


def test_image_embeddings_are_told_apart_and_text_is_shared(model: MedSAM3) -> None:
    version, text = with_adapter(model, 0.05), model.encode_text(["polyp"])
    assert version.detect_all(version.encode_image(RGB), text)
    for one, other in ((model, version), (version, model)):
        with pytest.raises(PromptError, match="another encoder"):
            one.detect_all(other.encode_image(RGB), text)


def test_clicks_go_through_the_adapted_encoder(model: MedSAM3) -> None:
    version = with_adapter(model, 0.05)
    assert version.tracker is not None
    assert model.tracker is not None
    assert version.tracker.model is model.tracker.model
    click = np.array([[30.0, 30.0]])
    answers = [each.tracker.ask(each.encode_image(RGB), click) for each in (model, version)]  # type: ignore[union-attr]
    assert not np.array_equal(answers[0].logits, answers[1].logits)
    with pytest.raises(PromptError, match="another encoder"):
        model.tracker.ask(version.encode_image(RGB), click)


def test_the_next_version_begins_at_the_base_again(model: MedSAM3, tmp_path: Path) -> None:
    version = with_adapter(model, 0.05)
    model.save_detector(tmp_path / "plain.safetensors", base="tiny", name="plain")
    plain = version.with_detector(load_detector(tmp_path / "plain.safetensors"))
    assert plain.encoder_hash == model.encoder_hash
    assert plain.tracker is model.tracker
    assert torch.equal(hidden(plain), hidden(model))
    again = with_adapter(version, 0.05)
    assert torch.equal(hidden(again), hidden(version)), "it is not merged twice"


def test_half_of_the_way_is_half_of_the_change(model: MedSAM3) -> None:
    end = with_adapter(model, 0.05)
    weight = LAST + "mlp.fc1.weight"

    def of(version: MedSAM3) -> torch.Tensor:
        return version.model.vision_encoder.backbone.state_dict()[weight]

    half = of(model_between(model, end, 0.5, base="tiny"))
    torch.testing.assert_close(half, (of(model) + of(end)) / 2)
    between = of(model_between(with_adapter(model, 0.05), end, 0.5, base="tiny"))
    torch.testing.assert_close(between, of(end))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda a: {k: v for k, v in a.items() if LAST + "mlp.fc1.lora_a" not in k},
            "does not fit",
        ),
        (lambda a: {k.replace(LAST, "layers.99."): v for k, v in a.items()}, "does not fit"),
        (lambda a: {k.replace("q_proj", "x_proj"): v for k, v in a.items()}, "does not fit"),
        (lambda a: {k.replace("fc1", "activation_fn"): v for k, v in a.items()}, "another shape"),
        (lambda a: {k: v[:, :3] if k.endswith("_b") else v[:3] for k, v in a.items()}, None),
        (lambda a: {k: v[:-1] if k.endswith("_b") else v for k, v in a.items()}, "another shape"),
        (lambda a: {k: v[:3] if k.endswith("_a") else v for k, v in a.items()}, "another shape"),
        (lambda a: {k: v.flatten() for k, v in a.items()}, "another shape"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    model: MedSAM3, tmp_path: Path, change: object, words: str | None
) -> None:
    with_adapter(model, 0.05).save_detector(tmp_path / "p", base="tiny", name="p")
    loaded = load_detector(tmp_path / "p")
    changed = change(loaded.adapter)  # type: ignore[operator]
    state = {key: value for key, value in loaded.state.items() if "lora" not in key} | changed
    if words is None:  # a smaller rank is as good
        assert model.with_detector(replace(loaded, state=state))
        return
    with pytest.raises(CheckpointError, match=words):
        model.with_detector(replace(loaded, state=state))
