"""Rectangles and ellipses of a region's `value`, in percent of the image.

Without NumPy: prompts are read with this module alone. A rotation is clockwise, of a rectangle
about its top left corner, of an ellipse about its centre, and is meant in pixels, not in percent:
that is why both need the image's size.
"""

import math
from collections.abc import Mapping
from typing import Any

from backend.errors import RegionError

Region = dict[str, Any]  # as Label Studio's JSON has it
Point = tuple[float, float]


def number(value: Mapping[str, Any], key: str) -> float:
    """A finite number of a region's `value`; RegionError if it is none."""
    entry = value.get(key)
    # An integer beyond what a float holds is none either.
    if isinstance(entry, int) and abs(entry) > 2**63:
        entry = math.inf
    if isinstance(entry, bool) or not isinstance(entry, int | float) or not math.isfinite(entry):
        raise RegionError(f'The region\'s "{key}" must be a number, not {entry!r:.40}.')
    return float(entry)


def direction(value: Mapping[str, Any]) -> Point:
    """Cosine and sine of the rotation; (1, 0) where there is none."""
    angle = 0.0 if value.get("rotation") is None else math.radians(number(value, "rotation"))
    return math.cos(angle), math.sin(angle)


def rectangle_corners(value: Mapping[str, Any], height: float, width: float) -> list[Point]:
    """The four corners (x, y) of a rectangle, in the order in which they are joined.

    Raises:
        RegionError: a number is missing or not finite.
    """
    x, y, along, down = (number(value, key) for key in ("x", "y", "width", "height"))
    cosine, sine = direction(value)
    # Both sides as vectors: from percent to pixels, turned, and back to percent.
    along_x, along_y = along * cosine, along * width * sine / height
    down_x, down_y = -down * height * sine / width, down * cosine
    return [
        (x, y),
        (x + along_x, y + along_y),
        (x + along_x + down_x, y + along_y + down_y),
        (x + down_x, y + down_y),
    ]


def ellipse_box(value: Mapping[str, Any], height: float, width: float) -> list[Point]:
    """Top left and bottom right (x, y) of the upright box around an ellipse; raises as above."""
    x, y, radius_x, radius_y = (number(value, key) for key in ("x", "y", "radiusX", "radiusY"))
    cosine, sine = direction(value)
    half_width = math.hypot(radius_x * cosine, radius_y * height / width * sine)
    half_height = math.hypot(radius_x * width / height * sine, radius_y * cosine)
    return [(x - half_width, y - half_height), (x + half_width, y + half_height)]
