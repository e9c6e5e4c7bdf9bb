"""Which images are spared to judge a run by."""

from medsam3_model.training.data import TrainingImage, spare
from tests.support.discs import disc_image


def image(key: str, group: str = "") -> TrainingImage:
    source = disc_image(0)
    return TrainingImage(key, source.read, source.layers, group)


def keys(images: list[TrainingImage]) -> set[str]:
    return {one.key for one in images}


def test_what_a_run_is_judged_by_no_run_before_it_has_learned() -> None:
    """Ten images more in each round, as an annotator corrects them."""
    images = [image(f"image{n}", f"patient{n // 3}") for n in range(150)]
    learned: set[str] = set()
    for count in range(10, 151, 10):
        learns, judged = spare(images[:count])
        assert not keys(judged) & learned, count
        assert not keys(judged) & keys(learns)
        learned |= keys(learns)
    assert 12 <= len(judged) <= 24


def test_a_patient_is_on_one_side() -> None:
    images = [image(f"image{n}", f"patient{n % 20}") for n in range(100)]
    learns, judged = spare(images)
    assert judged
    assert not {one.group for one in learns} & {one.group for one in judged}


def test_few_patients_are_judged_by_single_images() -> None:
    learns, judged = spare([image(f"image{n}", "patient") for n in range(60)])
    assert len(learns) + len(judged) == 60
    assert 4 <= len(judged) <= 15


def test_few_images_are_all_learned_from_but_for_those_that_later_runs_spare() -> None:
    images = [image(f"image{n}") for n in range(60)]
    _, judged_later = spare(images)
    learns, judged = spare(images[:11])
    assert judged == []
    assert 6 <= len(learns) <= 11
    assert not keys(learns) & keys(judged_later)
