"""The agent's tools: their schemas, and what a call of one asks for.

Coordinates are asked for in thousandths of the image, 0 to 1000, x before y. Models have habits of
their own, so others are understood too: `unit` says which, a number such as "12%" is percent,
numbers that are all at most 1 are fractions, and where one is above 1000 all are pixels of the
picture that was sent. What is outside of the image is cut off, and swapped corners are sorted.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from backend.agent.calls import ToolCall
from backend.errors import AgentCallError

Unit = Literal["thousandth", "fraction", "percent", "pixel"]
Point = tuple[float, float]
Box = tuple[float, float, float, float]

MOST_BOXES = 8
MOST_CLICKS = 12
_LONGEST_PHRASE = 80
_LONGEST_REASON = 300
_UNITS: tuple[Unit, ...] = ("thousandth", "fraction", "percent", "pixel")


@dataclass(frozen=True)
class SegmentPhrase:
    """Segment everything that a short noun phrase names."""

    phrase: str


@dataclass(frozen=True)
class SegmentBox:
    """Segment one object in each box; x0, y0, x1, y1 as fractions of the image."""

    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class RefineWithClicks:
    """Segment again the object of a mask, with clicks in it and beside it, as fractions."""

    mask: int
    inside: tuple[Point, ...]
    outside: tuple[Point, ...]


@dataclass(frozen=True)
class Choose:
    """Answer with these masks."""

    masks: tuple[int, ...]


@dataclass(frozen=True)
class ReportAbsent:
    """Answer that what is asked for is not in the image."""

    reason: str


@dataclass(frozen=True)
class Stop:
    """Leave the model's own answer as it is."""

    reason: str


Action = SegmentPhrase | SegmentBox | RefineWithClicks | Choose | ReportAbsent | Stop


def read_action(call: ToolCall, sent_size: tuple[int, int]) -> Action:
    """What a call asks for.

    Args:
        call: as the model wrote it.
        sent_size: (height, width) of the picture that the model saw, for coordinates in pixels.

    Raises:
        AgentCallError: no such tool, or arguments that cannot be understood; one sentence that a
            model can act on.
    """
    given = call.arguments
    match call.name:
        case "segment_phrase":
            phrase = " ".join(str(given.get("phrase", "")).split())
            if not phrase or len(phrase) > _LONGEST_PHRASE:
                raise AgentCallError(f"phrase must have 1 to {_LONGEST_PHRASE} characters")
            return SegmentPhrase(phrase)
        case "segment_box":
            return SegmentBox(_boxes(given, sent_size))
        case "refine_with_clicks":
            inside = _points(given, "inside", sent_size)
            outside = _points(given, "outside", sent_size)
            if not inside and not outside:
                raise AgentCallError("give at least one point in inside or outside")
            (mask,) = _numbers(given.get("mask"), "mask")[:1] or (0,)
            return RefineWithClicks(mask, inside, outside)
        case "choose":
            masks = _numbers(given.get("masks", given.get("mask")), "masks")
            if not masks:
                raise AgentCallError("masks is empty; call report_absent if nothing is right")
            return Choose(tuple(dict.fromkeys(masks)))
        case "report_absent":
            return ReportAbsent(_reason(given))
        case "stop":
            return Stop(_reason(given))
    raise AgentCallError(f"there is no tool {call.name[:40]!r}")


def tool_schemas(*, segmenting: bool) -> list[dict[str, Any]]:
    """The tools in the format of Chat Completions.

    Args:
        segmenting: False leaves out those that make new masks: the rounds are used up.
    """
    names = _SCHEMAS if segmenting else [name for name in _SCHEMAS if name in _ENDING]
    return [{"type": "function", "function": {"name": name, **_SCHEMAS[name]}} for name in names]


def _object(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


_UNIT = {
    "type": "string",
    "enum": list(_UNITS),
    "description": "unit of the coordinates, default thousandth: 0 to 1000 of width and height",
}
_POINTS = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
_REASON = {"type": "string", "description": "one sentence"}
_ENDING = ("choose", "report_absent", "stop")
_SCHEMAS: dict[str, dict[str, Any]] = {
    "segment_phrase": {
        "description": "Find everything that a short English noun phrase names. Each phrase once.",
        "parameters": _object(["phrase"], phrase={"type": "string"}),
    },
    "segment_box": {
        "description": "Find one object in each box [x0, y0, x1, y1]; draw boxes tight.",
        "parameters": _object(["boxes"], boxes=_POINTS, unit=_UNIT),
    },
    "refine_with_clicks": {
        "description": "Segment the object of one mask again: points [x, y] that are in it and "
        "points that are not.",
        "parameters": _object(
            ["mask", "inside"],
            mask={"type": "integer", "description": "number of the mask"},
            inside=_POINTS,
            outside=_POINTS,
            unit=_UNIT,
        ),
    },
    "choose": {
        "description": "Answer with these masks and end.",
        "parameters": _object(["masks"], masks={"type": "array", "items": {"type": "integer"}}),
    },
    "report_absent": {
        "description": "Answer that it is not in the image, and end.",
        "parameters": _object(["reason"], reason=_REASON),
    },
    "stop": {
        "description": "Keep the masks of the first look as they are, and end.",
        "parameters": _object(["reason"], reason=_REASON),
    },
}


def _reason(given: Mapping[str, Any]) -> str:
    return " ".join(str(given.get("reason", "")).split())[:_LONGEST_REASON]


def _numbers(value: Any, name: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    try:
        return tuple(int(entry) for entry in values)
    except (TypeError, ValueError, OverflowError):
        raise AgentCallError(f"{name} must be numbers of masks") from None


def _boxes(given: Mapping[str, Any], sent_size: tuple[int, int]) -> tuple[Box, ...]:
    values = given.get("boxes", given.get("box"))
    if isinstance(values, Mapping):
        values = [values.get(name) for name in ("x0", "y0", "x1", "y1")]
    if isinstance(values, list) and values and not isinstance(values[0], list):
        values = [values]
    rows = _rows(values, 4, "boxes", "[x0, y0, x1, y1]")
    if not 0 < len(rows) <= MOST_BOXES:
        raise AgentCallError(f"give 1 to {MOST_BOXES} boxes [x0, y0, x1, y1]")
    boxes = []
    for x0, y0, x1, y1 in _as_fractions(rows, given.get("unit"), sent_size):
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        left, top, right, bottom = (min(max(value, 0.0), 1.0) for value in box)
        if right - left < 1e-3 or bottom - top < 1e-3:
            raise AgentCallError(
                "a box is empty or outside of the image: coordinates go from 0 to 1000"
            )
        boxes.append((left, top, right, bottom))
    return tuple(boxes)


def _points(given: Mapping[str, Any], name: str, sent_size: tuple[int, int]) -> tuple[Point, ...]:
    values = given.get(name) or []
    if isinstance(values, list) and values and not isinstance(values[0], list):
        values = [values]
    rows = _rows(values, 2, name, "[x, y]")
    if len(rows) > MOST_CLICKS:
        raise AgentCallError(f"give at most {MOST_CLICKS} points")
    return tuple(
        (min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0))
        for x, y in _as_fractions(rows, given.get("unit"), sent_size)
    )


def _rows(values: Any, length: int, name: str, form: str) -> list[list[Any]]:
    if not isinstance(values, list) or not all(
        isinstance(row, list) and len(row) == length for row in values
    ):
        raise AgentCallError(f"{name} must be a list of {form}")
    return values


def _as_fractions(
    rows: Sequence[Sequence[Any]], unit: Any, sent_size: tuple[int, int]
) -> list[list[float]]:
    """Coordinates, x and y in turns, as fractions of width and height."""
    percent = any(isinstance(value, str) and "%" in value for row in rows for value in row)
    numbers = [[_number(value) for value in row] for row in rows]
    if not numbers:
        return []
    chosen: Unit = unit if unit in _UNITS else "thousandth"
    largest = max(abs(value) for row in numbers for value in row)
    if percent:
        chosen = "percent"
    elif largest <= 1:
        chosen = "fraction"
    elif largest > 1000 and chosen == "thousandth":
        chosen = "pixel"
    height, width = sent_size
    per: dict[Unit, tuple[float, float]] = {
        "thousandth": (1000, 1000),
        "fraction": (1, 1),
        "percent": (100, 100),
        "pixel": (width, height),
    }
    return [[value / per[chosen][index % 2] for index, value in enumerate(row)] for row in numbers]


def _number(value: Any) -> float:
    try:
        number = float(re.sub(r"[%\s]", "", value) if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        raise AgentCallError("coordinates must be numbers") from None
    if not math.isfinite(number):
        raise AgentCallError("coordinates must be numbers")
    return number
