"""The stand-in for Label Studio with its images in a bucket, and a backend that it asks itself."""

import base64
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx2
from werkzeug.wrappers import Request, Response

from backend.label_studio.connect import WEBHOOK_ACTIONS
from backend.services import WEBHOOK_SECRET_HEADER
from tests.support import regions
from tests.support.stand_in_label_studio import Json, StandInLabelStudio

BUCKET = "pictures"
CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image" smart="true">
    <Label value="Disc" prompt="optic disc"/>
    <Label value="Cup" prompt="optic cup"/>
  </BrushLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="Disc"/></RectangleLabels>
</View>
"""
# Longer than a backend may take: whoever asked waits for the end of the request.
PATIENCE_S = 100.0


class CloudLabelStudio(StandInLabelStudio):
    """One project whose images are in the bucket `pictures` of an S3 server.

    Args:
        s3: a client of boto3, for the server that the backend reaches, too.
        webs: addresses of the backend's web processes; the first one is connected to the project.
        secrets: user, password, webhook secret.
    """

    def __init__(self, s3: Any, webs: Sequence[str], secrets: tuple[str, str, str]) -> None:
        super().__init__(CONFIG)
        self._s3, self._webs = s3, webs
        self._user, self._password, self._secret = secrets
        self._client = httpx2.Client(timeout=PATIENCE_S)
        self._fields: Json = {
            "show_collab_predictions": False,
            "model_version": "",
            "sampling": "Sequential sampling",
        }
        self._title = "MedSAM-3"
        self.webhooks.append(
            {
                "id": 1,
                "url": f"{webs[0]}/webhook",
                "headers": {WEBHOOK_SECRET_HEADER: self._secret},
                "actions": sorted(WEBHOOK_ACTIONS),
                "send_payload": True,
                "send_for_all_actions": False,
                "is_active": True,
            }
        )

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._client.close()

    def add_cloud_task(self, image: bytes, **data: object) -> int:
        """A task whose image is an object of the bucket."""
        task_id = self.add_task(b"", **data)
        task = self.tasks[task_id]["data"]
        del self.images[task["image"]]
        self._s3.put_object(Bucket=BUCKET, Key=f"{task_id}.png", Body=image)
        task["image"] = f"s3://{BUCKET}/{task_id}.png"
        return task_id

    def retrieve(self, task_ids: Sequence[int], web: int) -> None:
        """The Data Manager's "Retrieve predictions": a complete answer is stored.

        Raises:
            httpx2.TransportError: nobody is there, or went away.
        """
        tasks = [self.tasks[id_] for id_ in task_ids]
        results = self._predict(tasks, web)
        if len(results) == len(tasks):
            pairs = zip(tasks, results, strict=True)
            with self._lock:
                self._store([{"task": task["id"], **result} for task, result in pairs])

    def prompt(self, task_id: int, web: int) -> bool:
        """A box that an annotator draws; whether a mask, or none, came back.

        Raises:
            httpx2.TransportError: nobody is there, or went away.
        """
        value = {"x": 20, "y": 20, "width": 60, "height": 60, "rotation": 0}
        drawn = regions.region(
            f"box{task_id}",
            "box",
            "rectanglelabels",
            {**value, "rectanglelabels": ["Disc"]},
            72,
            72,
        )
        context = {"result": [drawn]}
        return len(self._predict([self.tasks[task_id]], web, context=context)) == 1

    def tell(self, event: Json, web: int) -> bool:
        """Send a webhook, once as the real one does; whether the backend said that it has it."""
        headers = {WEBHOOK_SECRET_HEADER: self._secret}
        try:
            answer = self._client.post(f"{self._webs[web]}/webhook", json=event, headers=headers)
        except httpx2.TransportError:
            return False
        return answer.is_success

    def predicted(self) -> Counter[tuple[int, str]]:
        """How many predictions each task has of each version."""
        with self._lock:
            stored = list(self.predictions.values())
        return Counter((one["task"], one["model_version"]) for one in stored)

    def _predict(self, tasks: list[Json], web: int, **params: Any) -> list[Json]:
        body = {
            "tasks": tasks,
            "project": f"{self.project_id}.1",
            "label_config": self.label_config,
            "params": params,
        }
        answer = self._client.post(
            f"{self._webs[web]}/predict", json=body, auth=(self._user, self._password)
        )
        return list(answer.json().get("results", [])) if answer.is_success else []

    def _answer(self, request: Request) -> Response:
        parts = [part for part in request.path.split("/") if part]
        if parts[0] == "tasks" and parts[2:] == ["resolve"]:
            return self._signed(request)
        if parts[:2] == ["api", "ml"]:
            if request.method == "PATCH":
                self._title = request.get_json()["title"]
            shown = self._backend()
            return _json([shown] if len(parts) == 2 else shown)
        if parts[:2] == ["api", "projects"] and request.method == "PATCH":
            self._fields |= request.get_json()
        return super()._answer(request)

    def _signed(self, request: Request) -> Response:
        """A link that leads to the object for a while."""
        address = base64.b64decode(request.args["fileuri"]).decode()
        bucket, _, key = address.removeprefix("s3://").partition("/")
        link = self._s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key})
        return Response(status=302, headers={"Location": link})

    def _backend(self) -> Json:
        """The connected backend, with the version that it answers to /setup, if it is there."""
        version, state = str(self._fields["model_version"]), "ER"
        try:
            body = {"project": f"{self.project_id}.1", "schema": self.label_config}
            answer = self._client.post(
                f"{self._webs[0]}/setup", json=body, auth=(self._user, self._password), timeout=3
            )
            if answer.is_success:
                version, state = answer.json()["model_version"], "CO"
        except httpx2.TransportError:
            pass
        return {
            "id": 1,
            "url": self._webs[0],
            "title": self._title,
            "is_interactive": True,
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": self._user,
            "basic_auth_pass_is_set": True,
            "state": state,
            "error_message": "",
            "model_version": version,
        }

    def _project(self) -> Json:
        return super()._project() | self._fields


def _json(body: object) -> Response:
    return Response(json.dumps(body), mimetype="application/json")
