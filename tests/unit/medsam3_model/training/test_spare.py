"""Which images are spared to judge a run by."""

import pytest

from medsam3_model.training.data import TrainingImage, spare
from tests.support.discs import disc_image


def image(key: str, group: str = "") -> TrainingImage:
    source = disc_image(0)
    return TrainingImage(key, source.read, source.layers, group)


def keys(images: list[TrainingImage]) -> set[str]:
    return {one.key for one in images}


@pytest.mark.parametrize("per_patient", [1, 2, 3])
def test_what_a_run_is_judged_by_no_run_before_it_has_learned(per_patient: int) -> None:
    """Ten images more in each round, as an annotator corrects them; in hospitals of any name."""
    overlapping = 0
    for hospital in range(40):
        images = [
            image(f"{hospital}-{n}", f"{hospital}-patient{n // per_patient}") for n in range(150)
        ]
        learned, is_mixed = set[str](), False
        for count in range(10, 151, 10):
            learns, judged = spare(images[:count])
            assert not keys(judged) & keys(learns)
            is_mixed |= bool(keys(judged) & learned)
            assert bool(judged) == (count >= 12)
            learned |= keys(learns)
        assert 6 <= len(judged) <= 24
        overlapping += is_mixed
    # Where much was drawn of little, a group may be learned first, and withheld later.
    assert overlapping <= 2


def test_large_groups_are_judged_by_some_of_their_images() -> None:
    images = [image(f"image{n}", f"volume{n % 8}") for n in range(8 * 40)]
    learns, judged = spare(images)
    assert len(judged) == 24
    assert not {one.group for one in learns} & {one.group for one in judged}


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
    assert 5 <= len(learns) <= 9
    assert not keys(learns) & keys(judged_later)
