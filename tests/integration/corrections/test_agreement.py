"""Agreement between annotators: against values computed by hand and by another library."""

import random
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
from sqlalchemy import func, select

from backend.corrections.agreement import compute_agreement, compute_job, nominal_alpha
from backend.corrections.privacy import forget
from backend.corrections.tables import AgreementReport, MaskOverlap
from backend.corrections.task_facts import task_facts
from backend.services import use_services
from medsam3_model.data.samples import split_of_group
from medsam3_model.embeddings.embedding_cache import EmbeddingPlaces
from tests.support.corrections_stage import HEIGHT, WIDTH, Stage, brush, image_file

ANNA, BEN, CLEO = 1, 2, 3


def strip(first: int, last: int) -> np.ndarray:
    """Columns first..last of an image: Dice of two strips is that of two intervals."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, first:last] = True
    return mask


def alpha_of(ratings: list[list[float]]) -> float:
    """Of another library; `ratings` has a row for each rater, NaN where there is none."""
    return float(krippendorff.alpha(np.array(ratings), level_of_measurement="nominal"))


def annotate(stage: Stage, task: int, who: int, strips: dict[str, Any], **fields: object) -> int:
    drawn = [
        brush(f"{label}{who}", strip(*columns), label=label) for label, columns in strips.items()
    ]
    return stage.label_studio.annotate(task, drawn, completed_by=who, **fields)


def count_overlaps(stage: Stage) -> int:
    with stage.services.database.reading() as session:
        return session.scalar(select(func.count()).select_from(MaskOverlap)) or 0


def test_agreement_equals_what_is_computed_by_hand(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [stage.label_studio.add_task(image_file(seed)) for seed in range(4)]
    # Tumor: 10 of 10+20 columns shared; Cyst: Ben alone.
    annotate(stage, tasks[0], ANNA, {"Tumor": (0, 10)})
    annotate(stage, tasks[0], BEN, {"Tumor": (0, 20), "Cyst": (30, 40)})
    # Three of one mind but for Cleo, who is off by five columns of ten; Ben changed his mind.
    annotate(stage, tasks[1], ANNA, {"Tumor": (0, 10)})
    annotate(stage, tasks[1], BEN, {"Tumor": (40, 60)})
    annotate(stage, tasks[1], BEN, {"Tumor": (0, 10)})
    annotate(stage, tasks[1], CLEO, {"Tumor": (5, 15)}, ground_truth=True)
    # All agree that there is nothing, and of one task there is one annotation only.
    annotate(stage, tasks[2], ANNA, {})
    annotate(stage, tasks[2], CLEO, {})
    annotate(stage, tasks[3], ANNA, {"Cyst": (0, 10)})
    stage.hear_all()

    found = compute_agreement(stage.services, 7)
    assert (found.tasks, found.left_out, found.gold_tasks) == (3, 0, 1)
    # Task 0: the mean of 2/3 and 0. Task 1: the mean of 1, 1/2 and 1/2.
    assert found.dice == pytest.approx((1 / 3 + 2 / 3) / 2)
    cyst, tumor = found.labels
    assert (cyst.label, cyst.comparisons, cyst.dice) == ("Cyst", 1, 0)
    assert tumor.comparisons == 4
    assert tumor.dice == pytest.approx((2 / 3 + 1 + 0.5 + 0.5) / 4)
    none = float("nan")
    tumors = [[1, 1, 0], [1, 1, none], [none, 1, 0]]
    cysts = [[0, 0, 0], [1, 0, none], [none, 0, 0]]
    assert tumor.alpha == pytest.approx(alpha_of(tumors))
    assert cyst.alpha == pytest.approx(alpha_of(cysts))
    both = [one + other for one, other in zip(tumors, cysts, strict=True)]
    assert found.alpha == pytest.approx(alpha_of(both))
    # The same by hand: 14 ratings, 6 present; one unit of two raters differs, in both orders.
    assert found.alpha == pytest.approx(1 - 13 * 2 / (2 * 6 * 8))
    by_annotator = {one.annotator: one for one in found.annotators}
    assert by_annotator[ANNA].dice == pytest.approx((1 / 3 + 0.75) / 2)
    assert (by_annotator[ANNA].tasks, by_annotator[CLEO].tasks) == (3, 2)
    assert [by_annotator[who].gold_dice for who in (ANNA, BEN, CLEO)] == [0.5, 0.5, None]
    assert [(pair.first, pair.second, pair.tasks, pair.dice) for pair in found.pairs] == [
        (ANNA, BEN, 2, pytest.approx(2 / 3)),
        (ANNA, CLEO, 2, 0.5),
        (BEN, CLEO, 1, 0.5),
    ]
    assert [(one.task_id, one.label) for one in found.disputed] == [
        (tasks[0], "Cyst"),
        (tasks[1], "Tumor"),
    ]

    # Masks that were compared once are not read again, and forgotten ones leave nothing behind.
    assert count_overlaps(stage) == 2
    with monkeypatch.context() as patch:
        patch.setattr("backend.corrections.mask_store.MaskStore.get", None)
        assert compute_agreement(stage.services, 7) == found
    use_services(stage.services)
    forget(
        stage.services.database,
        stage.masks,
        EmbeddingPlaces(Path("none")),
        project_id=7,
        task_id=tasks[0],
    )
    assert count_overlaps(stage) == 1
    compute_job(["7"])
    use_services(None)
    with stage.services.database.reading() as session:
        row = session.get_one(AgreementReport, 7)
    assert row.report["tasks"] == 2


def test_facts_of_a_task_are_split_outcomes_and_disagreement(stage: Stage) -> None:
    shared, alone, skipped = (
        stage.label_studio.add_task(image_file(seed), group="patient 1") for seed in range(3)
    )
    stage.suggest(shared, [brush("p", strip(0, 10))])
    stage.label_studio.annotate(shared, [brush("p", strip(0, 10))], completed_by=ANNA)
    stage.label_studio.annotate(shared, [brush("p", strip(0, 20))], completed_by=BEN)
    annotate(stage, alone, ANNA, {})
    annotate(stage, skipped, ANNA, {"Cyst": (0, 10)}, was_cancelled=True)
    stage.hear_all()

    split = split_of_group("patient 1")
    assert task_facts(stage.services, 7) == {
        shared: {
            "medsam3_split": split,
            "medsam3_outcome": "accepted, edited",
            "medsam3_disagreement": pytest.approx(1 / 3, abs=0.001),
        },
        alone: {"medsam3_split": split},
    }


def test_alpha_is_that_of_another_library() -> None:
    chance = random.Random(0)
    for _ in range(50):
        raters = chance.randint(2, 5)
        ratings = [
            [chance.choice([0.0, 1.0, 1.0, float("nan")]) for _ in range(12)] for _ in range(raters)
        ]
        units = [
            (sum(value == 1 for value in unit), sum(value == value for value in unit))
            for unit in zip(*ratings, strict=True)
        ]
        if nominal_alpha(units) is not None:
            assert nominal_alpha(units) == pytest.approx(alpha_of(ratings))
    assert nominal_alpha([(2, 2), (3, 3), (0, 1)]) is None
    assert nominal_alpha([(2, 2), (0, 2)]) == 1
