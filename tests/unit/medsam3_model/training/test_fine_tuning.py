"""Fine-tuning: what is learned, what stays as it is, and what is asked."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medsam3_model.checkpoints.detectors import load_detector
from medsam3_model.checkpoints.hashes import is_tuned
from medsam3_model.errors import DatasetError
from medsam3_model.predictor import MedSAM3
from medsam3_model.pretraining.phrases import EVERYDAY_PHRASES, GENERIC_PHRASES
from medsam3_model.training import fine_tuning, making_way
from medsam3_model.training.data import TrainingData, TrainingImage
from medsam3_model.training.fine_tuning import (
    FineTuned,
    TrainingProgress,
    fine_tune,
)
from medsam3_model.training.prompts import correction_prompt
from medsam3_model.training.settings import TrainingSettings
from tests.support.discs import SIDE, cache_in, disc, disc_image, small_model
from tests.support.masks import dice

FEW = TrainingSettings(steps=4, views=1, images_per_step=2, learning_rate=1e-3, warm_up=1)
IMAGES = [disc_image(seed) for seed in range(6)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors this small threads wait for one another more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> MedSAM3:
    return small_model()


def tensors(model: MedSAM3) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.model.state_dict().items()}


def losses(model: MedSAM3, folder: Path | None, settings: TrainingSettings = FEW) -> list[float]:
    seen: list[float] = []

    def note(progress: TrainingProgress) -> None:
        seen.append(progress.loss)

    fine_tune(
        model,
        IMAGES,
        name="s",
        base="b",
        cache=cache_in(folder),
        settings=settings,
        on_progress=note,
    )
    return seen


def run(model: MedSAM3, folder: Path, **changes: object) -> FineTuned:
    arguments: dict[str, object] = {"settings": FEW, **changes}
    images = arguments.pop("images", IMAGES)
    return fine_tune(model, images, name="s", base="b", cache=cache_in(folder), **arguments)  # type: ignore[arg-type]


def test_only_detector_and_neck_change_and_only_in_the_copy(model: MedSAM3, tmp_path: Path) -> None:
    before = tensors(model)
    tuned = run(model, tmp_path / "cache").model
    after_start, after = tensors(model), tensors(tuned)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after_start[key]) for key in before)
    frozen = [key for key in before if not is_tuned(key)]
    assert frozen
    assert all(torch.equal(before[key], after[key]) for key in frozen)
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert len(moved) > 100
    assert all(is_tuned(key) for key in moved)
    assert tuned.encoder_hash == model.encoder_hash
    assert tuned.detector_hash != model.detector_hash


def test_the_saved_detector_loads_with_the_same_answers(model: MedSAM3, tmp_path: Path) -> None:
    tuned = run(model, tmp_path / "cache").model
    tuned.save_detector(tmp_path / "detector.safetensors", base="b", name="s")
    loaded = model.with_detector(load_detector(tmp_path / "detector.safetensors"))
    assert loaded.version == tuned.version
    text = model.encode_text(["optic disc"])
    image = model.encode_image(disc(50)[0])
    first, second = tuned.detect_all(image, text)[0], loaded.detect_all(image, text)[0]
    np.testing.assert_array_equal(first.semantic, second.semantic)
    np.testing.assert_array_equal(first.scores, second.scores)


DISCS = [disc_image(seed) for seed in range(14)]


def on_unseen_discs(model: MedSAM3) -> float:
    unseen = [disc(seed) for seed in range(100, 106)]
    text = model.encode_text(["optic disc"])
    found = [model.detect_all(model.encode_image(image), text)[0] for image, _ in unseen]
    pairs = zip(found, unseen, strict=True)
    return float(np.mean([dice(one.concept_mask()[0], mask) for one, (_, mask) in pairs]))


def test_a_new_concept_is_learned(model: MedSAM3, tmp_path: Path) -> None:
    settings = TrainingSettings(
        steps=80, views=1, learning_rate=4e-3, validate_every=40, images_per_step=4
    )
    tuned = run(model, tmp_path, settings=settings, images=DISCS)
    assert on_unseen_discs(tuned.model) > on_unseen_discs(model) + 0.3
    assert [row[0] for row in tuned.history] == [40, 80]
    assert tuned.stopped == "steps"  # the ceiling: it was still learning


def test_what_is_taught_anew_does_not_count_as_forgotten(model: MedSAM3, tmp_path: Path) -> None:
    text = model.encode_text(["optic disc"])

    def elsewhere(number: int) -> TrainingImage:
        """An image about which the model is right, as far as it goes."""
        image, _ = disc(200 + number)
        answer = model.detect_all(model.encode_image(image), text)[0].concept_mask()[0]
        layers = {"optic disc": answer.astype(np.int32)}
        return TrainingImage(f"old-{number}", lambda: image, lambda: layers)

    settings = TrainingSettings(
        steps=100,
        views=1,
        learning_rate=1e-3,
        validate_every=1,  # at the first step nothing is forgotten, and nothing learned
        unjudged_steps=1,
        patience=99,
        images_per_step=4,
        replay_share=0,
    )
    replay = [elsewhere(number) for number in range(12)]
    tuned = run(model, tmp_path, settings=settings, images=DISCS, replay=replay)
    assert on_unseen_discs(tuned.model) > on_unseen_discs(model) + 0.3


def test_cached_embeddings_give_the_losses_of_encoding_each_step(
    model: MedSAM3, tmp_path: Path
) -> None:
    first = losses(model, tmp_path / "cache")
    from_disk = losses(model, tmp_path / "cache")
    encoded = losses(model, None)
    assert len(first) == FEW.steps
    np.testing.assert_allclose(first, encoded, rtol=1e-4)
    np.testing.assert_allclose(from_disk, encoded, rtol=1e-4)


def test_every_view_is_encoded_once(model: MedSAM3, tmp_path: Path) -> None:
    reads: list[str] = []

    def counted(one: TrainingImage) -> TrainingImage:
        def read() -> np.ndarray:
            reads.append(one.key)
            return one.read()

        return TrainingImage(one.key, read, one.layers)

    run(
        model,
        tmp_path,
        images=[counted(one) for one in IMAGES[:2]],
        settings=TrainingSettings(steps=8, views=1, images_per_step=2),
    )
    assert sorted(reads) == ["disc-0", "disc-0", "disc-1", "disc-1"]


def test_another_seed_is_another_run_and_the_same_is_the_same(
    model: MedSAM3, tmp_path: Path
) -> None:
    settings = TrainingSettings(steps=4, views=1, images_per_step=2, learning_rate=1e-3, seed=1)
    first = run(model, tmp_path).model.detector_hash
    assert run(model, tmp_path).model.detector_hash == first
    assert run(model, tmp_path, settings=settings).model.detector_hash != first


def test_making_way_within_steps_changes_nothing_of_what_is_learned(
    model: MedSAM3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making_way, "EVERY_S", 0.0)
    asked: list[None] = []
    plain = run(model, tmp_path).model.detector_hash
    paused = run(model, tmp_path, make_way_within_step=lambda: asked.append(None))
    assert paused.model.detector_hash == plain
    assert len(asked) > 20 * FEW.steps  # forward and backward, layer by layer


def test_replayed_images_are_asked_about(model: MedSAM3, tmp_path: Path) -> None:
    reads: list[str] = []

    def read() -> np.ndarray:
        reads.append("old")
        return disc(77)[0]

    mask = disc(77)[1].astype(np.int32)
    old = TrainingImage("old", read, lambda: {"brain": mask})
    settings = TrainingSettings(steps=6, views=0, images_per_step=2, replay_share=0.5)
    run(model, tmp_path, settings=settings, replay=[old])
    assert reads == ["old"]


def test_what_on_progress_raises_ends_the_run_and_a_later_one_goes_on(
    model: MedSAM3, tmp_path: Path
) -> None:
    state = tmp_path / "state.pt"
    whole = run(model, tmp_path / "cache").model.detector_hash

    def cancel(progress: TrainingProgress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "cache", state=state, on_progress=cancel)
    steps: list[int] = []
    resumed = run(
        model,
        tmp_path / "cache",
        state=state,
        on_progress=lambda progress: steps.append(progress.step),
    )
    assert steps == [3, 4]
    assert resumed.model.detector_hash == whole


def test_a_state_of_other_data_is_not_used(model: MedSAM3, tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    run(model, tmp_path / "cache", state=state)
    steps: list[int] = []
    run(
        model,
        tmp_path / "cache",
        state=state,
        images=IMAGES[:3],
        on_progress=lambda progress: steps.append(progress.step),
    )
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize(("unjudged", "ends"), [(1, 3), (10, 12)])
def test_it_stops_when_validation_no_longer_improves(
    model: MedSAM3, tmp_path: Path, unjudged: int, ends: int
) -> None:
    settings = TrainingSettings(
        steps=50,
        unjudged_steps=unjudged,
        views=0,
        images_per_step=1,
        learning_rate=0.0,
        validate_every=1,
        patience=2,
    )
    images = [disc_image(seed) for seed in range(12)]
    tuned = run(model, tmp_path, settings=settings, images=images)
    assert tuned.stopped == "patience"
    assert tuned.steps == ends, "no sooner than it would without spared images"
    assert tuned.model.detector_hash == model.detector_hash


def test_the_learning_rate_rises_and_suits_the_width() -> None:
    settings = TrainingSettings(warm_up=10)
    assert settings.rate(9, 64) == settings.rate(500, 64) == pytest.approx(4e-4)
    assert settings.rate(0, 64) == pytest.approx(4e-5)
    assert settings.rate(9, 256) == pytest.approx(1e-4)
    assert TrainingSettings(learning_rate=0.5).rate(99, 256) == 0.5


def test_the_average_spans_more_steps_as_there_are_more() -> None:
    settings = TrainingSettings(average=0.9)
    assert settings.kept(0) == pytest.approx(0.1)
    assert settings.kept(10) == pytest.approx(0.55)
    assert settings.kept(1000) == 0.9


def test_few_images_take_a_fixed_number_of_steps(model: MedSAM3, tmp_path: Path) -> None:
    settings = replace(FEW, steps=9, unjudged_steps=2)
    tuned = run(model, tmp_path, settings=settings)
    assert (tuned.stopped, tuned.steps) == ("unjudged", 2)
    assert tuned.model.detector_hash != model.detector_hash


def test_few_images_of_what_is_known_move_it_a_part_of_the_way(
    model: MedSAM3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tuned_where_known_is(dice: float) -> dict[str, torch.Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(fine_tuning, "_KNOWN", dice)
            return tensors(run(model, tmp_path).model)

    start, all_of_it = tensors(model), tuned_where_known_is(2.0)
    for key, value in tuned_where_known_is(0.0).items():
        torch.testing.assert_close(value, start[key].lerp(all_of_it[key], 0.7))


def test_the_ceiling_of_minutes_ends_a_run(model: MedSAM3, tmp_path: Path) -> None:
    tuned = run(model, tmp_path, settings=replace(FEW, minutes=1e-6))
    assert (tuned.stopped, tuned.steps) == ("minutes", 1)
    assert tuned.history[-1][2] is None, "nothing is spared"
    images = [disc_image(seed) for seed in range(12)]
    tuned = run(model, tmp_path, settings=replace(FEW, steps=9, minutes=1e-6), images=images)
    assert (tuned.stopped, tuned.steps) == ("minutes", 1)
    assert tuned.history[-1][2] is not None, "what came of it is judged all the same"


def test_no_images_is_an_error(model: MedSAM3, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no images"):
        run(model, tmp_path, images=[])


def test_prompts_of_an_image(model: MedSAM3) -> None:
    labels = torch.zeros(48, 48, dtype=torch.long)
    labels[4:16, 4:20] = 1
    labels[24:40, 24:40] = 2
    layers = {"cell nucleus": labels, "polyp": torch.zeros_like(labels)}
    prompts = [correction_prompt(layers, 24, np.random.default_rng(seed)) for seed in range(200)]
    absent = [one for one in prompts if not one.target.present]
    boxed = [one for one in prompts if one.box is not None]
    by_text = [one for one in prompts if one.target.present and one.box is None]
    assert 25 < len(absent) < 57
    assert all(one.box is None for one in absent)
    foreign = [one for one in absent if one.phrase != "polyp"]
    assert 4 < len(foreign) < 22
    assert all(one.phrase in EVERYDAY_PHRASES for one in foreign)
    assert not any(one.wants_masks for one in foreign)
    assert not any(one.target.semantic.any() for one in absent)
    assert 32 < len(boxed) < 66
    # A box asks for its own object alone, text for all of that name.
    assert all(len(one.target.boxes) == 1 for one in boxed)
    assert all((one.box - one.target.boxes[0]).abs().max() < 0.2 for one in boxed)
    assert 3 < sum(one.phrase in GENERIC_PHRASES for one in boxed) < 25
    assert all(one.phrase == "cell nucleus" for one in by_text)
    assert all(len(one.target.boxes) == 2 for one in by_text)
    assert all(one.wants_masks for one in (*boxed, *by_text))
    assert 1 < sum(one.wants_masks for one in absent) < 22


def test_what_is_only_looked_for_is_asked(model: MedSAM3) -> None:
    nothing = {"polyp": torch.zeros(48, 48, dtype=torch.long)}
    prompt = correction_prompt(nothing, 24, np.random.default_rng(0))
    assert (prompt.phrase, prompt.box, prompt.target.present) == ("polyp", None, False)


def test_views_of_left_and_right_are_not_mirrored(model: MedSAM3, tmp_path: Path) -> None:
    half = np.zeros((SIDE, SIDE), np.int32)
    half[:, : SIDE // 2] = 1
    image = TrainingImage("x", lambda: disc(1)[0], lambda: {"left lung": half})
    data = TrainingData(model, [image], cache_in(tmp_path))
    for number in range(1, 5):
        (a, b, _), (c, d, _) = data.view(image, number)[0].matrix
        assert a * d - b * c > 0


def test_from_the_second_view_on_a_small_object_is_enlarged(model: MedSAM3, tmp_path: Path) -> None:
    small = np.zeros((SIDE, SIDE), np.int32)
    small[30:38, 40:46] = 1
    source = disc_image(1)
    image = TrainingImage("x", source.read, lambda: {"optic disc": small})
    data = TrainingData(model, [image], cache_in(tmp_path))
    seen = []
    for number in range(2, 8):
        view, _ = data.view(image, number)
        labels = data.labels(image, view)["optic disc"]
        shares = [(labels > 0).float().mean().sqrt().item(), view.pixels_per_pixel]
        seen.append(shares)
        # 8 pixels of 72 are a ninth of the side; at 4.4 times their length around them, a quarter.
        assert shares[0] > 0.15
        assert 0.15 < shares[1] < 0.5
    assert len({round(share, 3) for share, _ in seen}) > 3
