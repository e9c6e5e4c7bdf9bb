"""Clicks between requests: what a further click builds on, in Redis and with a time limit.

Two things are kept. The tracker's answers to the clicks so far, which follow from the clicks and
are computed again where they are gone; their names are digests of what they answer, so that they
cannot be another image's or model's. And the box that was drawn last on a task's page with a label:
the editor sends boxes and clicks apart, and a click in that box mends its answer.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from redis import Redis
from redis.exceptions import RedisError

from backend.labeling.prompts import Box, InteractivePrompt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# Longer than anybody looks at one object.
KEPT_S = 600
_PREFIX = "medsam3:clicks"


class RedisAnswers:
    """Answers of one model about one image; see `medsam3_model.click_answers.KeptAnswers`."""

    def __init__(self, redis: Redis, model_version: str, image_hash: str) -> None:
        self._redis = redis
        self._scope = f"{model_version}\0{image_hash}"

    def get(self, key: str) -> "NDArray[np.float32] | None":
        """Logits (h, w) that were put under this key, None where they are gone or damaged."""
        import numpy as np

        content: object = None
        with _without_harm():
            content = self._redis.get(self._name(key))
        if not isinstance(content, bytes):
            return None
        side = round((len(content) / 2) ** 0.5)
        if side * side * 2 != len(content):
            return None
        logits = np.frombuffer(content, np.float16).reshape(side, side).astype(np.float32)
        return logits if np.isfinite(logits).all() else None

    def put(self, key: str, logits: "NDArray[np.float32]") -> None:
        """Keep logits (h, w) for ten minutes."""
        import numpy as np

        with _without_harm():
            self._redis.set(self._name(key), logits.astype(np.float16).tobytes(), ex=KEPT_S)

    def _name(self, key: str) -> str:
        digest = hashlib.sha256(f"{self._scope}\0{key}".encode()).hexdigest()
        return f"{_PREFIX}:answer:{digest}"


def with_drawn_box(
    redis: Redis, project_id: int, task_id: int, prompt: InteractivePrompt
) -> InteractivePrompt:
    """The prompt with the box that its clicks mend; a single box is kept for further clicks.

    Clicks mend the box that was drawn last on the same page with the same label, if the first
    click in the object is in it, or all clicks say what is too much.
    """
    name = _box_name(project_id, task_id, prompt)
    if prompt.boxes or prompt.strokes:
        drawn = [b for b, positive in zip(prompt.boxes, prompt.box_labels, strict=True) if positive]
        single = len(drawn) == 1 and not prompt.exemplar and not prompt.strokes
        with _without_harm():
            if single:
                redis.set(name, json.dumps(drawn[0]), ex=KEPT_S)
            else:
                redis.delete(name)
        return prompt
    if not prompt.points:
        return prompt
    box = _kept_box(redis, name)
    inside = [p for p, label in zip(prompt.points, prompt.point_labels, strict=True) if label]
    if box is None or (inside and not _within(inside[0], box)):
        return prompt
    return replace(prompt, boxes=(box,), box_labels=(1,))


def _kept_box(redis: Redis, name: str) -> Box | None:
    with _without_harm():
        if content := redis.get(name):
            x0, y0, x1, y1 = json.loads(content)
            return x0, y0, x1, y1
    return None


def _within(point: tuple[float, float], box: Box) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _box_name(project_id: int, task_id: int, prompt: InteractivePrompt) -> str:
    where = (project_id, task_id, prompt.image_name, prompt.item_index, prompt.label)
    digest = hashlib.sha256(json.dumps(where).encode()).hexdigest()
    return f"{_PREFIX}:box:{digest}"


@contextmanager
def _without_harm() -> Iterator[None]:
    """What is kept between clicks makes them better or faster; without it they are answered."""
    try:
        yield
    except RedisError as error:
        log.warning("clicks are not kept (%s)", type(error).__name__)
