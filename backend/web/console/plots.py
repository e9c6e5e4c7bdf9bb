"""Plots as SVG: where bars, lines and ticks are; templates draw them, the style sheet colours them.

A library would bring styles and scripts inside of its SVG, which the console's pages do not allow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 30
# Labels below the plot at most, or they would run into each other.
_MOST_LABELS = 10


@dataclass(frozen=True)
class Bar:
    """A part of a column, with the style sheet's class for what it shows."""

    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True)
class Mark:
    """A text beside an axis, at a position on it."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A curve: `points` as SVG writes them, and the class of the style sheet."""

    points: str
    kind: str


@dataclass(frozen=True)
class Plot:
    """What a template needs to draw one; `title` says in words what is to be seen."""

    title: str
    bars: Sequence[Bar]
    lines: Sequence[Line]
    columns: Sequence[Mark]
    rows: Sequence[Mark]


def stacked_bars(
    title: str, kinds: Sequence[str], columns: Sequence[tuple[str, Sequence[float]]]
) -> Plot:
    """Columns of stacked parts.

    Args:
        title: in words.
        kinds: classes of the parts, from below.
        columns: the name of each column, and as many values as kinds, none below 0.
    """
    top = nice_top(max((sum(values) for _, values in columns), default=0))
    step = (WIDTH - LEFT - RIGHT) / max(1, len(columns))
    width = min(0.8 * step, 44)
    bars = []
    for number, (_, values) in enumerate(columns):
        below = 0.0
        for kind, value in zip(kinds, values, strict=True):
            if value:
                height = _height(value, top)
                y = _y(below + value, top)
                x = LEFT + (number + 0.5) * step - width / 2
                bars.append(Bar(round(x, 1), y, round(width, 1), height, kind))
            below += value
    every = max(1, math.ceil(len(columns) / _MOST_LABELS))
    marks = [
        Mark(round(LEFT + (number + 0.5) * step, 1), name)
        for number, (name, _) in enumerate(columns)
        if number % every == 0
    ]
    return Plot(title, bars, (), marks, _rows(top))


def curve(
    title: str, kind: str, points: Sequence[tuple[float, float]], *, top: float | None = None
) -> Plot:
    """A line through points with ascending x; y from 0 to `top`, or to what the points need."""
    right = max((x for x, _ in points), default=0) or 1
    height = top or nice_top(max((y for _, y in points), default=0))
    shown = " ".join(f"{_x(x, right)},{_y(min(y, height), height)}" for x, y in points)
    columns = [Mark(_x(right * part / 4, right), f"{right * part / 4:.0f}") for part in range(5)]
    return Plot(title, (), [Line(shown, kind)] if points else (), columns, _rows(height))


def nice_top(highest: float) -> float:
    """The end of an axis: 1, 2 or 5 times a power of ten, or 1 where there is nothing."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= highest * (1 - 1e-9))


def _rows(top: float) -> list[Mark]:
    return [Mark(_y(top * part / 4, top), f"{top * part / 4:g}") for part in range(5)]


def _x(value: float, right: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * value / right, 1)


def _y(value: float, top: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top, 1)


def _height(value: float, top: float) -> float:
    return round((HEIGHT - TOP - BOTTOM) * value / top, 1)
