"""Curves of training runs: loss and Dice as a run reports them, for those who watch.

They are in Redis and not in the database: a point comes every second, and nothing depends on it.
What made a version is in its card, which has the curve's points at each validation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from backend.training.newest import NewestEntries

_KEY = "medsam3:curve:{}"
# More than an hour of a point a second; of a longer run the newest.
MOST_POINTS = 5000
_POINTS = NewestEntries(MOST_POINTS)


@dataclass(frozen=True)
class CurvePoint:
    """A run at one step: the mean `loss` of the last steps, the last validation's mean Dice."""

    step: int
    loss: float
    validation_dice: float | None


def add_point(redis: Redis, run_id: str, point: CurvePoint) -> None:
    """Keep a point; without Redis the curve has a gap there, and training goes on."""
    entry = [point.step, point.loss, point.validation_dice]
    _POINTS.add(redis, _KEY.format(run_id), entry)


def curve_of(redis: Redis, run_id: str, card: dict[str, Any] | None = None) -> list[CurvePoint]:
    """What is known of a run's curve, by ascending step.

    Args:
        redis: where the points of the last weeks are.
        run_id: the run.
        card: of the version that it made, for a run whose points are not kept any more.

    Raises:
        QueueError: Redis cannot be reached.
    """
    card = card or {}
    rows = _POINTS.all(redis, _KEY.format(run_id)) or card.get("training", {}).get("history", [])
    # A trainer that took over from one that was killed repeats steps: the later point counts.
    points = {step: CurvePoint(step, loss, dice) for step, loss, dice in rows}
    return [points[step] for step in sorted(points) if math.isfinite(points[step].loss)]


def thinned(points: Sequence[CurvePoint], most: int) -> list[CurvePoint]:
    """At most so many of the points, at even distances, the last one among them."""
    every = max(1, math.ceil(len(points) / most))
    return list(points[::-1][::every][::-1])
