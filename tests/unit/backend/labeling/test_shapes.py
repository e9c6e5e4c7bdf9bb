"""Rotations of a region: what is no number is refused, never taken for none."""

import pytest

from backend.errors import RegionError
from backend.labeling.shapes import direction


@pytest.mark.parametrize("value", [{}, {"rotation": None}, {"rotation": 0}])
def test_without_a_rotation_a_region_is_upright(value: dict) -> None:
    assert direction(value) == (1, 0)


@pytest.mark.parametrize("rotation", ["", "90", False, [], float("nan")])
def test_a_rotation_that_is_no_number_is_refused(rotation: object) -> None:
    with pytest.raises(RegionError, match="rotation"):
        direction({"rotation": rotation})
