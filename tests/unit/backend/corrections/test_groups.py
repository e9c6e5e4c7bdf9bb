"""One patient is one group, however the id is spelled."""

import math
from typing import Any

import pytest

from backend.corrections.groups import group_of, normal_form
from medsam3_model.data.samples import split_of_group


@pytest.mark.parametrize(
    ("spellings", "group"),
    [
        ([101, 101.0, "101", "101.0", " 101 ", "0101", "101.", "+101", [101]], "101"),
        ([0, 0.0, "0", "-0", "0.00", "000"], "0"),
        ([-3, -3.0, "-3"], "-3"),
        ([2.5, "2.5", "2.50", "02.5"], "2.5"),
        ([1e22, "10000000000000000000000"], "1" + "0" * 22),
        ([True, "True", "true", "TRUE "], "true"),
        ([False, "False", "false"], "false"),
        (["patient 7", " patient  7", "patient\u00a07", "patient\t7\n"], "patient 7"),
        (["P-1", "\ufeffP-1"], "P-1"),
        (["1.2.840.10008", " 1.2.840.10008"], "1.2.840.10008"),
        (["1E5"], "1E5"),
        (["NA"], "NA"),  # somebody's initials
        (["9" * 400], "9" * 400),
        ([{"id": 1, "site": "a"}, {"site": "a", "id": 1}], '{"id": 1, "site": "a"}'),
        ([["a", "b"]], '["a", "b"]'),
    ],
)
def test_spellings_of_one_group(spellings: list[Any], group: str) -> None:
    assert {normal_form(value) for value in spellings} == {group}
    sides = {split_of_group(normal_form(value) or "") for value in spellings}
    assert len(sides) == 1


@pytest.mark.parametrize(
    "value",
    [None, "", "  ", "nan", "NaN", "None", "null", "N/A", "<NA>", math.nan, math.inf, [], {}],
)
def test_no_group(value: Any) -> None:
    assert normal_form(value) is None
    data = {"group": value}
    assert (
        group_of(data, "/p-007.png", "f" * 64, field="group", pattern=None) == "image:" + "f" * 16
    )
    # The same patient as in a task whose data says 7.0.
    found = group_of(data, "/p-007.png", "f" * 64, field="group", pattern=r"p-(\d+)")
    assert found == group_of({"group": 7.0}, "", "", field="group", pattern=None) == "7"
