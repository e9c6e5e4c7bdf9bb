"""Looks: what an agent's run asks the model, as rows that a GPU worker answers.

The run's own worker waits for a language model most of the time and has no model loaded. A look
is a row like a prediction's, `Delivery.LOOK`, at the front of the `gpu` queue; its id follows from
the run, the question and how many looks came before, so that a run that goes on after a kill finds
the answers it had.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from redis.exceptions import RedisError

from backend.agent.candidates import Found
from backend.agent.segmenter import ModelSegmenter
from backend.agent.stored import found_json, found_of_json, mask_json, mask_of_json
from backend.agent.tools import Box, Point
from backend.database import insert_or_ignore, now_in
from backend.errors import AgentError, AgentInterruptedError, QueueError
from backend.predictions.agent_runs import AgentQuestion
from backend.processes.queues import Handler, QueueName, enqueue, wait
from backend.processes.stopping import stopping
from backend.services import Services
from backend.tables import AgentRun, Delivery, Suggestion, SuggestionState

if TYPE_CHECKING:
    from backend.models.encoding import EncodedImage
    from medsam3_model import MedSAM3

_POLL_S = 0.5


class QueuedSegmenter:
    """The segmenter of a run, see `backend.agent.loop.Segmenter`; GPU workers do its work.

    Args:
        services: database and Redis.
        run: the run.
        index, question: which of its questions.
        size: (height, width) of the image.
        timeout_s: seconds that one look may take, waiting included.
    """

    def __init__(
        self,
        services: Services,
        run: AgentRun,
        index: int,
        question: AgentQuestion,
        size: tuple[int, int],
        timeout_s: float,
    ) -> None:
        self._services, self._run = services, run
        self._index, self._question = index, question
        self._size, self._timeout_s = size, timeout_s
        self._looks = 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self._size

    def by_phrase(self, phrase: str) -> Found:
        """Everything that a phrase names; of the question's own, the model's first look."""
        return self._look(kind="phrase", asked=phrase)

    def by_boxes(self, boxes: Sequence[Box]) -> Found:
        """One object in each box."""
        return self._look(kind="boxes", boxes=[list(box) for box in boxes])

    def by_clicks(
        self, inside: Sequence[Point], outside: Sequence[Point], near: NDArray[np.bool_]
    ) -> Found:
        """The object that clicks mean."""
        points = {"inside": [list(p) for p in inside], "outside": [list(p) for p in outside]}
        return self._look(kind="clicks", near=mask_json(near), **points)

    def _look(self, **asked: Any) -> Found:
        self._looks += 1
        name = f"{self._run.id}/{self._index}/{self._looks}"
        look_id = hashlib.sha256(name.encode()).hexdigest()[:32]
        context = {**asked, **asdict(self._question), "task_id": self._run.task_id}
        row = {
            "id": look_id,
            "request_id": look_id,
            "project_id": self._run.project_id,
            # Not the task's: what was predicted for a task is looked up by that.
            "task_id": None,
            "interactive": True,
            "config_hash": self._run.config_hash,
            "task_data": {},
            "context": context,
            "model_version": self._run.model_version,
            "delivery": Delivery.LOOK,
            "agent_run_id": self._run.id,
        }
        with self._services.database.session() as session:
            insert_or_ignore(session, Suggestion, row | {"created_at": now_in(session)})
        try:
            enqueue(
                self._services.redis,
                QueueName.GPU,
                Handler.PREDICT,
                [look_id],
                job_id=f"predict-{look_id}",
                at_front=True,
            )
        except QueueError as error:
            raise AgentError(str(error)) from error
        return self._answer(look_id)

    def _answer(self, look_id: str) -> Found:
        ends = time.monotonic() + self._timeout_s
        while time.monotonic() < ends:
            with self._services.database.reading() as session:
                row = session.get(Suggestion, look_id)
            if row is None:
                raise AgentInterruptedError("the look is gone: another worker ended the run")
            if row.state == SuggestionState.DONE:
                return found_of_json(row.result or [])
            if row.state == SuggestionState.FAILED:
                raise AgentError(f"the model could not look: {row.error}")
            if stopping.is_set():
                raise AgentInterruptedError("the agent's worker was told to stop")
            try:
                wait(self._services.redis, look_id, _POLL_S)
            except RedisError:
                time.sleep(_POLL_S)
        raise AgentError(f"no GPU worker answered within {self._timeout_s:.0f} s")


def answer_look(
    model: "MedSAM3", image: "EncodedImage", context: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What a look asks for, in a GPU worker; see `backend.agent.stored.found_json`.

    Raises:
        MedSAM3Error: the model cannot answer.
    """
    segmenter = ModelSegmenter(
        model,
        image.whole(model),
        context["phrase"],
        partial(image.part, model, keep=True),
        context["threshold"],
    )
    match context["kind"]:
        case "phrase":
            found = segmenter.by_phrase(context["asked"])
        case "boxes":
            found = segmenter.by_boxes([tuple(box) for box in context["boxes"]])
        case _:
            inside, outside = ([tuple(p) for p in context[side]] for side in ("inside", "outside"))
            found = segmenter.by_clicks(inside, outside, mask_of_json(context["near"]))
    return found_json(found)
