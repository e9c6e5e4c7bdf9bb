"""The stand-in for Label Studio as a process of its own: killed and started again, it remembers.

Tasks, images and annotations follow from their number, the same at every start. Predictions are
appended to a file before they are acknowledged, as a database would keep them.
"""

import itertools
import json
import threading
from collections.abc import Iterable
from pathlib import Path

import httpx2
from werkzeug.wrappers import Request, Response

from tests.support.corrections_stage import CONFIG, brush, drawn, image_file
from tests.support.stand_in_label_studio import Json, StandInLabelStudio

# Ids far above those of tasks and annotations.
FIRST_PREDICTION = 10_000


class LastingLabelStudio(StandInLabelStudio):
    """A project of `number` tasks, each with one annotation; predictions are kept in `journal`.

    Args:
        credentials: the user and the password with which the backend is asked.

    `POST /retrieve` with `{"tasks": [ids]}` is the Data Manager's "Retrieve predictions": the
    backend at `backend_url` is asked, and a complete answer is stored.
    """

    def __init__(
        self,
        journal: Path,
        number: int,
        *,
        port: int = 0,
        backend_url: str = "",
        credentials: tuple[str, str] = ("", ""),
    ) -> None:
        super().__init__(CONFIG, port=port)
        for seed in range(number):
            self.add_task(image_file(seed))
        for seed, task_id in enumerate(list(self.tasks)):
            self.annotate(task_id, [brush(f"region-{seed}", drawn(seed))])
        self._journal, self._backend_url = journal, backend_url
        self._credentials = credentials
        self._client = httpx2.Client(timeout=100)
        self._ids = itertools.count(FIRST_PREDICTION)
        for stored in read_journal(journal):
            self._remember(stored)

    def _answer(self, request: Request) -> Response:
        if request.path != "/retrieve":
            return super()._answer(request)
        tasks = [self.tasks[id_] for id_ in request.get_json()["tasks"]]
        threading.Thread(target=self._retrieve, args=(tasks,), daemon=True).start()
        return Response(status=202)

    def _retrieve(self, tasks: list[Json]) -> None:
        body = {"tasks": tasks, "project": f"{self.project_id}.1", "label_config": CONFIG}
        try:
            url = f"{self._backend_url}/predict"
            answer = self._client.post(url, json=body, auth=self._credentials)
        except httpx2.TransportError:
            return
        results = answer.json().get("results", []) if answer.is_success else []
        if len(results) == len(tasks):
            pairs = zip(tasks, results, strict=True)
            with self._lock:
                self._store({"task": task["id"], **result} for task, result in pairs)

    def _store(self, predictions: Iterable[Json]) -> None:
        predictions = list(predictions)
        with self._journal.open("a") as journal:
            journal.writelines(json.dumps(prediction) + "\n" for prediction in predictions)
        for prediction in predictions:
            self._remember(prediction)

    def _remember(self, prediction: Json) -> None:
        id_ = next(self._ids)
        self.predictions[id_] = {"id": id_, **prediction}


def read_journal(journal: Path) -> list[Json]:
    """The predictions that were stored, in their order; a line cut off by a kill was not."""
    if not journal.exists():
        return []
    lines = journal.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def serve(
    journal: Path, number: int, port: int, backend_url: str, credentials: tuple[str, str]
) -> None:
    """Answer until killed."""
    stand_in = LastingLabelStudio(
        journal, number, port=port, backend_url=backend_url, credentials=credentials
    )
    with stand_in:
        threading.Event().wait()
