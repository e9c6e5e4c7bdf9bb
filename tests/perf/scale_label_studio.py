"""A Label Studio of many tasks, in memory: the few endpoints that a pre-annotation asks.

Filling a real one with 100,000 tasks takes longer than all that is measured with them. It answers
in a millisecond or two, so what is measured is the backend; the tests proper run a real one.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.http_server import Handler, HttpServer


@dataclass
class ManyTasks:
    """A project: its tasks `1` to `count`, and what was pushed to them.

    Attributes:
        number: of the project.
        label_config: of the project.
        image: the file of a task's image, by the task's number.
        count: how many tasks there are.
        predicted: tasks that hold a prediction.
        pushed_at: when each push came, on the monotonic clock, with how many predictions.
    """

    number: int
    label_config: str
    image: Callable[[int], bytes]
    count: int = 0
    predicted: set[int] = field(default_factory=set)
    pushed_at: list[tuple[float, int]] = field(default_factory=list)

    def page(self, after: int, size: int) -> list[dict[str, Any]]:
        """The next tasks without a prediction."""
        found: list[dict[str, Any]] = []
        for task in range(after + 1, self.count + 1):
            if task not in self.predicted:
                image = f"/data/upload/{self.number}/{task}.png"
                found.append({"id": task, "data": {"image": image}})
            if len(found) == size:
                break
        return found

    def push(self, predictions: list[dict[str, Any]]) -> None:
        """Note what is brought."""
        self.predicted.update(prediction["task"] for prediction in predictions)
        self.pushed_at.append((time.monotonic(), len(predictions)))


def serve(*served: ManyTasks) -> HttpServer:
    """Serve projects; images are at `/data/upload/<project>/<task>.png`."""
    projects = {project.number: project for project in served}

    class Answers(Handler):
        def answer(self) -> None:
            address = urlsplit(self.path)
            parts = address.path.strip("/").split("/")
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length) if length else b""
            if parts[:2] == ["data", "upload"]:
                task = int(parts[3].removesuffix(".png"))
                content = projects[int(parts[2])].image(task)
                self.send(200, {"Content-Type": "image/png"}, content)
            elif parts[:2] == ["api", "tasks"]:
                asked = parse_qs(address.query)
                items = json.loads(asked["query"][0])["filters"]["items"]
                project, size = int(asked["project"][0]), int(asked["page_size"][0])
                (after,) = [one["value"] for one in items if one["operator"] == "greater"]
                self._json({"tasks": projects[project].page(after, size)})
            elif parts[-1] == "predictions" and self.command == "POST":
                sent = json.loads(body)
                projects[int(parts[2])].push(sent)
                self._json({"created": len(sent)}, 201)
            else:
                number = int(parts[2])
                config = projects[number].label_config
                self._json({"id": number, "title": "Many", "label_config": config})

        def _json(self, body: object, status: int = 200) -> None:
            content = json.dumps(body).encode()
            self.send(status, {"Content-Type": "application/json"}, content)

    return HttpServer(Answers)
