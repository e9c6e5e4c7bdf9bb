"""The gate's decision, on made-up figures."""

import numpy as np
import pytest

from backend.training.gate import (
    FOREIGN_NAMES,
    Answers,
    GateAnswer,
    GateMode,
    decide,
    foreign_names,
)


def answers(
    dice: list[float],
    phrase: str = "polyp",
    mode: GateMode = "T",
    per_group: int = 1,
    sureness: float | None = None,
) -> list[GateAnswer]:
    return [
        GateAnswer(f"image{index}", f"group{index // per_group}", phrase, mode, value, sureness)
        for index, value in enumerate(dice)
    ]


def verdict(
    new: list[GateAnswer],
    old: list[GateAnswer],
    tolerance: float = 0.02,
    least: int = 5,
    foreign: tuple[int, int] = (0, 0),
):
    answered = [Answers(tuple(given), 40, n) for given, n in zip((new, old), foreign, strict=True)]
    return decide(*answered, tolerance=tolerance, min_images=least)


def test_better_everywhere_passes_with_its_figures() -> None:
    found = verdict(answers([0.8] * 6), answers([0.5, 0.6, 0.5, 0.6, 0.5, 0.6]))
    assert found.passed
    assert found.overall is not None
    assert found.overall.difference == pytest.approx(0.25)
    assert (found.overall.images, found.overall.candidate) == (6, pytest.approx(0.8))
    (concept,) = found.figures()["concepts"]
    assert (concept["concept"], concept["mode"]) == ("polyp", "T")


@pytest.mark.parametrize(
    ("new", "old", "reason"),
    [
        ([0.9] * 4, [0.1] * 4, "too few"),
        ([0.5] * 8, [0.5] * 8, "not better"),
        ([0.4] * 8, [0.5] * 8, "not better"),
        ([0.99, 0.0, 0.9, 0.9, 0.1, 0.9], [0.5, 0.6, 0.6, 0.6, 0.6, 0.6], "reaches down"),
    ],
)
def test_what_does_not_pass_says_why(new: list[float], old: list[float], reason: str) -> None:
    found = verdict(answers(new), answers(old))
    assert not found.passed
    assert any(reason in one for one in found.reasons), found.reasons


def test_no_images_at_all_is_a_verdict_too() -> None:
    found = verdict([], [])
    assert not found.passed
    figures = found.figures()
    assert (figures["overall"], figures["concepts"]) == (None, [])


def test_one_concept_that_loses_is_enough_to_refuse() -> None:
    new = answers([0.9] * 8) + answers([0.55] * 8, "cyst")
    old = answers([0.5] * 8) + answers([0.60] * 8, "cyst")
    found = verdict(new, old)
    assert not found.passed
    assert found.overall is not None
    assert found.overall.difference > 0
    assert ["cyst" in one for one in found.reasons] == [True]
    assert verdict(new, old, tolerance=0.06).passed


def test_a_loss_in_one_mode_is_seen() -> None:
    new = answers([0.9] * 8) + answers([0.5] * 8, mode="T+I")
    old = answers([0.1] * 8) + answers([0.7] * 8, mode="T+I")
    assert not verdict(new, old).passed


def test_images_of_one_patient_are_one_witness() -> None:
    random = np.random.default_rng(0)
    old = [0.5] * 24
    new = list(np.repeat(random.normal(0.53, 0.08, 4), 6).clip(0, 1))
    apart = verdict(answers(new), answers(old), tolerance=0.0, least=1)
    together = verdict(answers(new, per_group=6), answers(old, per_group=6), tolerance=0, least=1)
    assert apart.overall is not None
    assert together.overall is not None
    assert together.overall.high - together.overall.low > apart.overall.high - apart.overall.low


@pytest.mark.parametrize(("new", "old"), [(0, 0), (3, 3), (2, 5)])
def test_as_many_foreign_names_as_before_are_no_reason(new: int, old: int) -> None:
    found = verdict(answers([0.8] * 6), answers([0.5] * 6), foreign=(new, old))
    assert found.passed
    assert len(found.reasons) == 1
    counts = {"asked": 40, "candidate": new, "incumbent": old}
    assert found.figures()["foreign_names"] == counts


def test_a_version_that_answers_to_more_foreign_names_is_refused() -> None:
    found = verdict(answers([0.8] * 6), answers([0.5] * 6), foreign=(11, 6))
    assert not found.passed
    (reason,) = found.reasons
    assert "bicycle" in reason
    assert "11 of 40" in reason
    # Four more may be chance; five of 40 are more than .02 of them, and not more than .125.
    said = verdict(answers([0.8] * 6), answers([0.5] * 6), foreign=(10, 6))
    assert said.passed
    assert "10 of 40" in said.reasons[-1]
    assert verdict(answers([0.8] * 6), answers([0.5] * 6), tolerance=0.125, foreign=(11, 6)).passed


def test_what_a_project_names_itself_is_not_foreign() -> None:
    assert foreign_names(["polyp"]) == FOREIGN_NAMES[:5]
    asked = foreign_names(["Bicycle", "guitar"])
    assert len(asked) == 5
    assert not {"bicycle", "guitar"} & set(asked)


@pytest.mark.parametrize(
    ("now", "before", "passes"),
    [
        (5.3, 6.4, True),  # a first round as it should be
        (3.3, 6.4, True),
        (2.3, 6.4, False),
        (-1.0, 2.0, False),
        (0.2, -3.0, True),  # it was unsure of it before: what it learned is new
        (-4.0, -3.0, True),  # neither saw it: its Dice says so
    ],
)
def test_a_version_that_grows_unsure_of_what_is_there_is_refused(
    now: float, before: float, passes: bool
) -> None:
    found = verdict(answers([0.9] * 6, sureness=now), answers([0.8] * 6, sureness=before))
    assert found.passed is passes, found.reasons
    if not passes:
        assert f"less than half as sure of it as before (log-odds {before:.1f} → {now:.1f})" in str(
            found.reasons
        )


def test_one_concept_that_it_is_unsure_of_is_enough() -> None:
    def both(polyp: float, disc: float, dice: float) -> list[GateAnswer]:
        sure = answers([dice] * 6, sureness=polyp)
        return sure + answers([dice] * 6, "optic disc", sureness=disc) + answers([0.9] * 6, "x")

    assert verdict(both(6, 6, 0.9), both(6, 6, 0.8)).passed
    refused = verdict(both(9, 1, 0.9), both(6, 6, 0.8))
    assert not refused.passed
    assert "“optic disc”" in refused.reasons[0]
