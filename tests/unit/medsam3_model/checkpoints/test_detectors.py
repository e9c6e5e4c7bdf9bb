"""One frozen encoder, many detectors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medsam3_model import MedSAM3
from medsam3_model.checkpoints.detectors import load_detector, save_detector
from medsam3_model.checkpoints.hashes import is_detector, of_state
from medsam3_model.errors import CheckpointError, PromptError
from medsam3_model.postprocessing import DetectionSettings
from tests.support import sam3_reference

EVERYTHING = DetectionSettings(score_threshold=0, nms_iou_threshold=None)


@pytest.fixture(scope="module")
def model(facebook_checkpoint: Path) -> MedSAM3:
    return MedSAM3.from_pretrained(
        facebook_checkpoint, config=sam3_reference.config(), device="cpu"
    )


@pytest.fixture
def saved(model: MedSAM3, facebook_checkpoint: Path, tmp_path: Path) -> Path:
    """A detector that differs from the model's."""
    path = tmp_path / "tuned.safetensors"
    state = {key: tensor + 0.01 for key, tensor in load_state(model).items()}
    save_detector(
        path,
        state,
        encoder_hash=model.encoder_hash,
        base=str(facebook_checkpoint),
        name="polyps",
        notes={"concepts": ["polyp"], "dice": 0.9},
    )
    return path


def load_state(model: MedSAM3) -> dict[str, torch.Tensor]:
    from medsam3_model.checkpoints.detectors import detector_state

    return detector_state(model.model)


def answer(model: MedSAM3) -> np.ndarray:
    rgb = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    found = model.detect_all(
        model.encode_image(rgb), model.encode_text(["polyp"]), settings=EVERYTHING
    )
    return found[0].semantic


def test_file_holds_the_detector_and_the_neck_it_reads_through(saved: Path, model: MedSAM3) -> None:
    keys = set(load_file(saved))
    neck = {key for key in keys if key.startswith("vision_encoder.neck.fpn_layers.")}
    assert {key.split(".")[3] for key in neck} == {"0", "1", "2"}
    assert {key.split(".")[0] for key in keys - neck} == {
        "geometry_encoder",
        "detr_encoder",
        "detr_decoder",
        "mask_decoder",
        "dot_product_scoring",
    }
    loaded = load_detector(saved)
    assert loaded.encoder_hash == model.encoder_hash
    assert loaded.notes == {"concepts": ["polyp"], "dice": 0.9}


def test_thresholds_of_phrases_come_with_a_detector(model: MedSAM3, saved: Path) -> None:
    """They hold by default, give way to what the caller says, and are kept in the file."""
    path = saved.with_name("calibrated.safetensors")
    plain = model.with_detector(load_detector(saved))
    made = plain.with_detector(replace(load_detector(saved), thresholds={"polyp": 0.0}))
    made.save_detector(path, base="b", name="polyps")
    tuned = model.with_detector(load_detector(path))
    assert tuned.version == plain.version
    assert (tuned.threshold_of("polyp"), plain.threshold_of("polyp")) == (0.0, 0.5)
    assert tuned.threshold_of("cyst") == 0.5
    rgb = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    image, text = tuned.encode_image(rgb), tuned.encode_text(["polyp", "cyst"])
    polyps, cysts = tuned.detect_all(image, text)
    assert len(polyps) > len(plain.detect_all(image, text)[0])
    assert len(cysts) == len(plain.detect_all(image, text)[1])
    strict = DetectionSettings(score_threshold=1.0)
    assert model.with_detector(load_detector(path), settings=strict).threshold_of("polyp") == 1.0
    assert [len(one) for one in tuned.detect_all(image, text, settings=strict)] == [0, 0]


def test_second_looks_come_with_a_detector(model: MedSAM3, saved: Path) -> None:
    path = saved.with_name("looks.safetensors")
    model.with_detector(replace(load_detector(saved), second_looks={"Polyp": 1.6})).save_detector(
        path, base="b", name="polyps"
    )
    tuned = model.with_detector(load_detector(path))
    assert [tuned.second_look_of(phrase) for phrase in ("polyp", "POLYP", "cyst")] == [
        1.6,
        1.6,
        None,
    ]


@pytest.mark.parametrize("name", ["thresholds", "second_looks"])
@pytest.mark.parametrize("text", ['{"a": 21}', '{"polyp": "high"}', "[0.5]", "{", '{"a": NaN}'])
def test_figures_of_phrases_that_are_none_are_refused(saved: Path, name: str, text: str) -> None:
    with safe_open(saved, "pt") as file:
        metadata = file.metadata() | {name: text}
    save_file(load_file(saved), saved, metadata)
    with pytest.raises(CheckpointError, match=r"tuned\.safetensors"):
        load_detector(saved)


def test_detectors_are_swapped_without_touching_the_encoder(model: MedSAM3, saved: Path) -> None:
    before = answer(model)
    tuned = model.with_detector(load_detector(saved))
    back = tuned.with_detector(
        tuned.save_detector(saved.with_name("same.safetensors"), base="b", name="n")
    )

    assert tuned.model.vision_encoder.backbone is model.model.vision_encoder.backbone
    assert tuned.model.text_encoder is model.model.text_encoder
    assert tuned.version.startswith("polyps-")
    assert tuned.version != model.version
    assert not np.allclose(answer(tuned), before)
    np.testing.assert_array_equal(answer(back), answer(tuned))
    np.testing.assert_array_equal(answer(model), before)


def test_a_file_without_a_neck_reads_through_the_base_s(model: MedSAM3, saved: Path) -> None:
    """As earlier releases wrote them; their hash was taken without it, too."""
    whole = load_detector(saved)
    alone = {key: tensor for key, tensor in whole.state.items() if is_detector(key)}
    earlier = saved.with_name("earlier.safetensors")
    encoder = model.encoder_hash
    save_detector(earlier, alone, encoder_hash=encoder, base=whole.base, name="polyps")
    with safe_open(earlier, "pt") as file:
        metadata = file.metadata() | {"format_version": "1"}
    assert metadata["detector_hash"] == of_state(alone).detector
    save_file(load_file(earlier), earlier, metadata)

    loaded = load_detector(earlier)
    old = model.with_detector(loaded)
    assert old.model.vision_encoder.neck is model.model.vision_encoder.neck
    tuned = model.with_detector(whole)
    assert not np.allclose(answer(old), answer(tuned))
    with pytest.raises(CheckpointError, match="load it with its own base"):
        tuned.with_detector(loaded)


def test_a_version_without_a_neck_of_its_own_is_saved_without(model: MedSAM3, saved: Path) -> None:
    whole = load_detector(saved)
    alone = {key: tensor for key, tensor in whole.state.items() if is_detector(key)}
    old = model.with_detector(replace(whole, state=alone, detector_hash=of_state(alone).detector))
    again = old.save_detector(saved.with_name("again.safetensors"), base="b", name="polyps")
    assert not again.has_neck
    assert model.with_detector(again).version == old.version


def test_embeddings_serve_every_detector(model: MedSAM3, saved: Path) -> None:
    tuned = model.with_detector(load_detector(saved))
    rgb = np.zeros((50, 70, 3), np.uint8)
    image, text = model.encode_image(rgb), model.encode_text(["polyp"])
    by_own = tuned.detect(tuned.encode_image(rgb), tuned.encode_text(["polyp"]))
    by_shared = tuned.detect(image, text)
    np.testing.assert_array_equal(by_own.semantic, by_shared.semantic)


def test_file_alone_brings_its_base(saved: Path, model: MedSAM3) -> None:
    alone = MedSAM3.from_pretrained(saved, config=sam3_reference.config(), device="cpu")
    given = MedSAM3.from_pretrained(
        load_detector(saved).base, config=sam3_reference.config(), device="cpu", detector=saved
    )
    swapped = model.with_detector(load_detector(saved))
    assert alone.version == given.version == swapped.version
    np.testing.assert_array_equal(answer(alone), answer(swapped))


def test_another_base_is_refused(
    saved: Path, facebook_checkpoint: Path, adapter_file: Path
) -> None:
    other = MedSAM3.from_pretrained(
        facebook_checkpoint, adapter_file, sam3_reference.config(), device="cpu"
    )
    with pytest.raises(CheckpointError, match="'polyps' was trained on the encoder"):
        other.with_detector(load_detector(saved))


def test_embedding_of_another_encoder_is_refused(
    model: MedSAM3, facebook_checkpoint: Path, adapter_file: Path
) -> None:
    other = MedSAM3.from_pretrained(
        facebook_checkpoint, adapter_file, sam3_reference.config(), device="cpu"
    )
    image = other.encode_image(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(PromptError, match="ImageEmbedding of another encoder"):
        model.detect(image, model.encode_text(["polyp"]))


def test_changed_weights_are_noticed(saved: Path) -> None:
    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(saved)
    tensors["detr_decoder.presence_token.weight"] += 1
    save_file(tensors, saved, metadata)
    with pytest.raises(CheckpointError, match="not those that were saved"):
        load_detector(saved)


def test_other_files_and_newer_formats_are_refused(
    saved: Path, facebook_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"seems to be facebook's sam3\.pt, not a detector"):
        load_detector(facebook_checkpoint)
    with safe_open(saved, "pt") as file:
        metadata = {**file.metadata(), "format_version": "9"}
    save_file(load_file(saved), tmp_path / "newer.safetensors", metadata)
    with pytest.raises(CheckpointError, match="format version 9"):
        load_detector(tmp_path / "newer.safetensors")


def test_missing_or_foreign_tensors_are_refused(model: MedSAM3, saved: Path) -> None:
    loaded = load_detector(saved)
    fewer = dict(loaded.state)
    del fewer["detr_decoder.presence_token.weight"]
    with pytest.raises(CheckpointError, match=r"lacks detr_decoder\.presence_token\.weight"):
        model.with_detector(replace(loaded, state=fewer))
    more = {**loaded.state, "mask_decoder.extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"unknown mask_decoder\.extra"):
        model.with_detector(replace(loaded, state=more))


def test_unfinished_file_never_appears(model: MedSAM3, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="str"):  # notes must be JSON; nothing is left behind
        model.save_detector(tmp_path / "d.safetensors", base=3, name="x")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
