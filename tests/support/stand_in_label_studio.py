"""A small HTTP server that answers like Label Studio's API, for tests that break things often.

It holds one project in memory and knows the requests that corrections make, as recorded from the
real one; `tests/e2e` runs the same code against the real one.
"""

import copy
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

Json = dict[str, Any]


class StandInLabelStudio:
    """One project with tasks, images and annotations; also a context manager.

    `events` collects the webhooks that the real one would send.
    `faults` go wrong once each, in their order, when predictions are pushed: "before" answers 500
    without storing them, "after" answers 500 although they are stored; each call takes `pause_s`.
    """

    project_id = 7

    def __init__(self, label_config: str, *, port: int = 0) -> None:
        self.label_config = label_config
        self.tasks: dict[int, Json] = {}
        self.annotations: dict[int, Json] = {}
        self.predictions: dict[int, Json] = {}
        self.tabs: dict[int, list[int]] = {}  # the tasks that each shows
        self.images: dict[str, bytes] = {}
        self.events: list[Json] = []
        self.requests: list[str] = []
        self.down = False
        self.faults: list[str] = []
        self.pause_s = 0.0
        self.project_is_gone = False
        self.webhooks: list[Json] = []
        self.raw_annotations: dict[int, bytes] = {}
        self._clock = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
        self._ids = itertools.count(101)
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", port, self._application, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "StandInLabelStudio":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self, **duration: float) -> None:
        """Let time pass, in Label Studio's clock."""
        self._clock += timedelta(**duration)

    def now(self) -> str:
        self._clock += timedelta(milliseconds=137)
        return self._clock.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def add_task(self, image: bytes, **data: object) -> int:
        task_id = next(self._ids)
        reference = f"/data/upload/{self.project_id}/task{task_id}.png"
        self.images[reference] = image
        moment = self.now()
        self.tasks[task_id] = {
            "id": task_id,
            "data": {"image": reference, **data},
            "created_at": moment,
            "updated_at": moment,
        }
        return task_id

    def annotate(self, task_id: int, result: Sequence[Json], **fields: object) -> int:
        id_ = next(self._ids)
        moment = self.now()
        self.annotations[id_] = {
            "id": id_,
            "task": task_id,
            "project": self.project_id,
            "result": list(result),
            "completed_by": 1,
            "updated_by": 1,
            "created_at": moment,
            "updated_at": moment,
            "lead_time": 12.5,
            "was_cancelled": False,
            "ground_truth": False,
            "parent_prediction": None,
            **fields,
        }
        self._touched(task_id)
        self._event("ANNOTATION_CREATED", annotation={"id": id_}, task={"id": task_id})
        return id_

    def update(self, annotation_id: int, **fields: object) -> None:
        annotation = self.annotations[annotation_id]
        annotation |= {**fields, "updated_at": self.now()}
        self._touched(annotation["task"])
        self._event(
            "ANNOTATION_UPDATED",
            annotation={"id": annotation_id},
            task={"id": annotation["task"]},
        )

    def delete(self, annotation_id: int) -> None:
        task_id = self.annotations.pop(annotation_id)["task"]
        self._touched(task_id)
        self._event("ANNOTATIONS_DELETED", annotations=[{"id": annotation_id}])

    def delete_task(self, task_id: int) -> None:
        del self.tasks[task_id]
        for id_ in [id_ for id_, one in self.annotations.items() if one["task"] == task_id]:
            del self.annotations[id_]
        self._event("TASKS_DELETED", tasks=[{"id": task_id}])

    def set_config(self, label_config: str) -> None:
        self.label_config = label_config
        self._event("PROJECT_UPDATED")

    def _touched(self, task_id: int) -> None:
        self.tasks[task_id]["updated_at"] = self.now()

    def _event(self, action: str, **payload: object) -> None:
        self.events.append({"action": action, "project": {"id": self.project_id}, **payload})

    @Request.application
    def _application(self, request: Request) -> Response:
        with self._lock:
            self.requests.append(request.path)
            if self.down:
                return Response("down", 503)
            return self._answer(request)

    def _answer(self, request: Request) -> Response:
        parts = [part for part in request.path.split("/") if part]
        if request.path in self.images:
            return Response(self.images[request.path], mimetype="image/png")
        if self.project_is_gone or parts[:1] != ["api"]:
            return _json({"detail": "Not found."}, 404)
        if request.path == f"/api/projects/{self.project_id}/import/predictions":
            return self._import_predictions(request)
        if request.path == "/api/dm/views/":
            return _json([{"id": id_, "data": {"title": f"Tab {id_}"}} for id_ in self.tabs])
        if request.path == "/api/predictions/":
            task_id = int(request.args["task"])
            return _json([one for one in self.predictions.values() if one["task"] == task_id])
        if request.path == "/api/webhooks/":
            return _json(self.webhooks)
        if parts[1] == "webhooks":
            (hook,) = [hook for hook in self.webhooks if hook["id"] == int(parts[2])]
            hook |= request.get_json()
            return _json(hook)
        if parts[1] == "tasks" and len(parts) == 2:
            return _json(self._data_manager(request))
        kinds: dict[str, dict[int, Json]] = {
            "annotations": self.annotations,
            "tasks": {
                id_: {**task, "project": self.project_id} for id_, task in self.tasks.items()
            },
            "predictions": self.predictions,
            "projects": {self.project_id: self._project()},
        }
        id_ = int(parts[2])
        if parts[1] == "predictions" and request.method == "PATCH":
            self.predictions[id_] |= request.get_json()
        if parts[1] == "tasks" and id_ in self.tasks:
            mine = [one for one in self.annotations.values() if one["task"] == id_]
            whole = {**self.tasks[id_], "annotations": mine, "drafts": []}
            return _json({**whole, "project": self.project_id})
        if parts[1] == "annotations" and id_ in self.raw_annotations:
            return Response(self.raw_annotations[id_], mimetype="application/json")
        found = kinds[parts[1]].get(id_)
        return _json(found) if found else _json({"detail": "Not found."}, 404)

    def _import_predictions(self, request: Request) -> Response:
        time.sleep(self.pause_s)
        fault = self.faults.pop(0) if self.faults else ""
        sent = request.get_json()
        if any(one["task"] not in self.tasks for one in sent):
            return _json({"detail": "task does not exist"}, 400)
        if fault != "before":
            self._store(sent)
        return _json({"detail": "busy"}, 500) if fault else _json({"created": len(sent)}, 201)

    def _store(self, predictions: Iterable[Json]) -> None:
        for prediction in predictions:
            id_ = next(self._ids)
            self.predictions[id_] = {"id": id_, **prediction}

    def _project(self) -> Json:
        return {
            "id": self.project_id,
            "title": "stand-in",
            "label_config": self.label_config,
            "task_number": len(self.tasks),
        }

    def _data_manager(self, request: Request) -> Json:
        if "view" in request.args:
            shown = self.tabs[int(request.args["view"])]
            first = (int(request.args["page"]) - 1) * int(request.args["page_size"])
            tasks = [{"id": id_} for id_ in shown[first : first + int(request.args["page_size"])]]
            return {"total": len(shown), "tasks": tasks}
        query = json.loads(request.args["query"])
        rows = [self._row(task) for task in self.tasks.values()]
        if "annotations" in request.args.get("include", ""):
            for row in rows:
                mine = [one for one in self.annotations.values() if one["task"] == row["id"]]
                row["annotations"] = [{"id": one["id"]} for one in mine]
        for item in query.get("filters", {}).get("items", []):
            column = item["filter"].removeprefix("filter:tasks:")
            holds = _OPERATORS[item["operator"]]
            rows = [row for row in rows if holds(row[column], item["value"])]
        order = query["ordering"][0]
        rows.sort(key=lambda row: row[order.rpartition(":")[2]], reverse=order.startswith("-"))
        return {
            "total": len(rows),
            "total_annotations": sum(row["total_annotations"] for row in rows),
            "total_predictions": 0,
            "tasks": copy.deepcopy(rows[: int(request.args["page_size"])]),
        }

    def _row(self, task: Json) -> Json:
        mine = [one for one in self.annotations.values() if one["task"] == task["id"]]
        return {
            **task,
            "predictions_model_versions": [
                one["model_version"]
                for one in self.predictions.values()
                if one.get("task") == task["id"]
            ],
            "annotations_ids": ",".join(str(one["id"]) for one in mine),
            "total_annotations": sum(not one["was_cancelled"] for one in mine),
            "cancelled_annotations": sum(one["was_cancelled"] for one in mine),
        }


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "equal": lambda found, value: found == value,
    "contains": lambda found, values: bool({*found} & {*values}),
    "not_contains": lambda found, values: not {*found} & {*values},
    "greater": lambda found, value: found > value,
    "greater_or_equal": lambda found, value: found >= value,
    "in": lambda found, value: value["min"] <= found <= value["max"],
}


def _json(body: object, status: int = 200) -> Response:
    return Response(json.dumps(body), status, mimetype="application/json")
