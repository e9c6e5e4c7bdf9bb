"""The client of Label Studio's API: both kinds of tokens, repeated requests, clear errors.

Requests go to Label Studio's own address and nowhere else: no redirect is followed, so the token
cannot travel to another host. A link that carries another of its names is asked for there.
"""

import json
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import httpx2

from backend.errors import LabelStudioAuthError, LabelStudioError
from backend.label_studio.auth import (
    HOW_TO_GET_ONE,
    TRY_AGAIN,
    TokenAuth,
    failure,
    retry_after_s,
    unavailable,
)
from backend.label_studio.bodies import pieces
from backend.label_studio.deadline import Deadline
from backend.label_studio.hosts import is_this_machine, open_client, shown
from backend.label_studio.own_addresses import OwnAddresses
from backend.settings import Settings

_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE"})
_FIRST_PAUSE_S = 0.2
# Who is asked to wait for longer is told so, and comes back by itself.
_LONGEST_PAUSE_S = 30.0
# Its login page names its own files by the address that it was told to have.
_PUBLIC_ADDRESS = re.compile(r'(?:href|src)="(https?://[^"\s]+?)/(?:static|react-app)/')
_KEEP_PUBLIC_ADDRESS_S = 600.0
_LONGEST_PAGE = 2**20
# Django refuses a form with more than 100 files.
_FILES_PER_UPLOAD = 50

Json = dict[str, Any]


@dataclass(frozen=True)
class User:
    """The user to whom a token belongs."""

    id: int
    email: str


@dataclass(frozen=True)
class MLBackend:
    """A backend as a project lists it; `state` is `CO`, `DI`, `ER`, `TR` or `PR`."""

    id: int
    url: str
    title: str
    is_interactive: bool
    auth_method: str
    basic_auth_user: str
    has_password: bool
    state: str
    error_message: str
    model_version: str


@dataclass(frozen=True)
class Webhook:
    """A webhook of a project; header values are secrets and stay out of `repr`."""

    id: int
    url: str
    headers: Mapping[str, str] = field(repr=False)
    actions: frozenset[str]
    send_payload: bool
    send_for_all_actions: bool
    is_active: bool


@dataclass(frozen=True)
class Prediction:
    """A stored prediction; `result` has its regions as Label Studio keeps them."""

    id: int
    model_version: str
    result: tuple[Json, ...] = ()
    score: float | None = None

    @property
    def region_ids(self) -> frozenset[str]:
        """The ids of its regions."""
        return frozenset(str(region.get("id")) for region in self.result)


def task_filter(column: str, operator: str, kind: str, value: Any) -> Json:
    """A condition of the Data Manager on tasks: `("updated_at", "greater", "Datetime", "2026-..")`.

    Args:
        column: of the Data Manager.
        operator: `equal`, `greater`, `in`, `contains`, `not_contains`, ...
        kind: of the value: `Number`, `Datetime`, `List`, ...
        value: to compare with.
    """
    return {
        "filter": f"filter:tasks:{column}",
        "operator": operator,
        "type": kind,
        "value": value,
    }


UNLABELLED = task_filter("total_annotations", "equal", "Number", 0)


class LabelStudio:
    """A client of one Label Studio, for one user. Safe to share between threads.

    Args:
        url: Label Studio's address.
        token: a personal access token or a legacy token.
        timeout_s: seconds that one answer may take.
        attempts: tries of a request that may be repeated, when the server cannot be reached or
            answers 429, 502, 503 or 504; the pauses between them double from 0.2 s, or are what
            the server asks for.
        aliases: other addresses of the same Label Studio, as tasks may carry them.

    Every method raises LabelStudioAuthError when the token is refused, LabelStudioUnavailableError
    when there is no answer, and LabelStudioError (with `status_code`) for any other error.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_s: float = 60.0,
        attempts: int = 4,
        aliases: Sequence[str] = (),
    ) -> None:
        self.url = url.rstrip("/")
        self._attempts = attempts
        self._addresses = OwnAddresses(self.url, tuple(aliases))
        self._public_address_asked_at: float | None = None
        self._auth = TokenAuth(self.url, token)
        options: Json = {
            "auth": self._auth,
            "follow_redirects": False,
            # No proxy leads to this machine.
            "trust_env": not is_this_machine(self.url),
        }
        self._client = open_client(timeout_s, **options)
        # Its connections are not kept: a deadline can cut those only that were made for it.
        self._once = open_client(
            timeout_s, limits=httpx2.Limits(max_keepalive_connections=0), **options
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> "LabelStudio":
        """The client for `LABEL_STUDIO_URL` and `LABEL_STUDIO_API_KEY`.

        Raises:
            LabelStudioAuthError: no token is set.
        """
        if settings.label_studio_api_key is None:
            raise LabelStudioAuthError(f"No Label Studio token is set: {HOW_TO_GET_ONE}.")
        return cls(
            settings.label_studio_url,
            settings.label_studio_api_key.get_secret_value(),
            aliases=settings.label_studio_aliases,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._once.close()

    def __enter__(self) -> "LabelStudio":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, path: str, **params: Any) -> Any:
        """GET `path` with query parameters; returns the decoded JSON."""
        return self._json("GET", path, params=params)

    def post(self, path: str, body: Any = None) -> Any:
        """POST JSON; repeated only while no connection could be made."""
        return self._json("POST", path, json=body)

    def patch(self, path: str, body: Any) -> Any:
        """PATCH JSON."""
        return self._json("PATCH", path, json=body)

    def delete(self, path: str) -> None:
        """DELETE `path`."""
        self._request("DELETE", path)

    def whoami(self) -> User:
        """The user to whom the token belongs; the cheapest way to try a token."""
        user = self.get("/api/current-user/whoami")
        return User(id=user["id"], email=user["email"])

    def projects(self) -> Iterator[Json]:
        """All projects that the user may see, page by page."""
        page = 1
        while True:
            listed = self.get("/api/projects", page=page, page_size=100)
            yield from listed["results"]
            if not listed.get("next"):
                return
            page += 1

    def project(self, project_id: int) -> Json:
        """One project: `label_config`, `model_version`, `sampling` and so on."""
        project: Json = self.get(f"/api/projects/{project_id}")
        return project

    def create_project(self, title: str, label_config: str, **fields: Any) -> Json:
        """Create a project; the title has at least three characters."""
        body = {"title": title, "label_config": label_config, **fields}
        project: Json = self.post("/api/projects/", body)
        return project

    def update_project(self, project_id: int, **fields: Any) -> Json:
        """Change some fields of a project.

        `model_version` must be the title of one of its backends, or the version of a stored
        prediction.
        """
        project: Json = self.patch(f"/api/projects/{project_id}", fields)
        return project

    def tasks(
        self,
        project_id: int,
        *,
        include: Sequence[str] = ("id", "data"),
        filters: Sequence[Mapping[str, Any]] = (),
        page_size: int = 100,
    ) -> Iterator[Json]:
        """The project's tasks in the order of their ids, page by page.

        Every page begins after the last id of the one before: tasks that stop fitting the filters
        meanwhile, or are deleted, cannot make this skip others.

        Args:
            include: the fields of each task; "predictions" carry all masks, "annotations" are their
                ids alone.
            filters: of `task_filter`; all of them must hold.
        """
        params: Json = {
            "project": project_id,
            "page_size": page_size,
            "include": ",".join({"id": None, **dict.fromkeys(include)}),
            "resolve_uri": "false",
        }
        if {"predictions", "annotations"} & set(include):
            params["fields"] = "all"
        last_id = 0
        while True:
            after = task_filter("id", "greater", "Number", last_id)
            query = {
                "ordering": ["tasks:id"],
                "filters": {"conjunction": "and", "items": [*filters, after]},
            }
            page = self.get("/api/tasks", query=json.dumps(query), **params)["tasks"]
            yield from page
            if len(page) < page_size:
                return
            last_id = page[-1]["id"]

    def tasks_without_version(
        self, project_id: int, model_version: str, *, unlabelled: bool = False
    ) -> Iterator[Json]:
        """The tasks (`id`, `data`) that hold no prediction of `model_version`.

        Args:
            unlabelled: of these, the tasks without annotations.
        """
        missing = task_filter("predictions_model_versions", "not_contains", "List", [model_version])
        yield from self.tasks(
            project_id, filters=[missing, UNLABELLED] if unlabelled else [missing]
        )

    def tasks_with_version(
        self, project_id: int, model_version: str, *, unlabelled: bool = False
    ) -> Iterator[Json]:
        """The tasks (`id`, `data`) that `tasks_without_version` leaves out."""
        there = task_filter("predictions_model_versions", "contains", "List", [model_version])
        filters = [there, UNLABELLED] if unlabelled else [there]
        last_id = 0
        for task in self.tasks(project_id, filters=filters):
            # Label Studio lists a task once for each such prediction.
            if task["id"] != last_id:
                yield task
            last_id = task["id"]

    def upload_files(self, project_id: int, files: Iterable[tuple[str, bytes]]) -> list[int]:
        """Upload images (name, bytes), one task each; returns the tasks' ids in their order."""
        path = f"/api/projects/{project_id}/import?return_task_ids=true"
        ids: list[int] = []
        remaining = iter(files)
        while batch := list(islice(remaining, _FILES_PER_UPLOAD)):
            parts = [(f"file{index}", file) for index, file in enumerate(batch)]
            ids += self._json("POST", path, files=parts)["task_ids"]
        return ids

    def store_files(self, project_id: int, files: Iterable[tuple[str, bytes]]) -> dict[int, str]:
        """Upload files (name, bytes) of which no tasks are made; id → path, in their order.

        Those that arrived are deleted where a later one fails.
        """
        stored: dict[int, str] = {}
        remaining = iter(files)
        path = f"/api/projects/{project_id}/import?commit_to_project=false"
        try:
            while batch := list(islice(remaining, _FILES_PER_UPLOAD)):
                parts = [(f"file{index}", file) for index, file in enumerate(batch)]
                ids = self._json("POST", path, files=parts)["file_upload_ids"]
                stored |= dict.fromkeys(ids, "")
                rows = self.get(f"/api/projects/{project_id}/file-uploads", ids=json.dumps(ids))
                stored |= {row["id"]: f"/data/{row['file']}" for row in rows}
        except BaseException:
            self.delete_files(project_id, list(stored))
            raise
        return stored

    def delete_files(self, project_id: int, file_ids: Sequence[int]) -> None:
        """Delete files that `store_files` uploaded."""
        if file_ids:
            body = {"file_upload_ids": list(file_ids)}
            self._request("DELETE", f"/api/projects/{project_id}/file-uploads", json=body)

    def create_task(self, project_id: int, data: Mapping[str, Any]) -> int:
        """Create a task; returns its id."""
        return int(self.post("/api/tasks/", {"project": project_id, "data": dict(data)})["id"])

    def has_task(self, task_id: int) -> bool:
        """Whether the task is there."""
        try:
            self.get(f"/api/tasks/{task_id}", resolve_uri="false")
        except LabelStudioError as error:
            if error.status_code == 404:
                return False
            raise
        return True

    def delete_task(self, task_id: int) -> None:
        """Delete a task with all that it holds."""
        self.delete(f"/api/tasks/{task_id}/")

    def predictions(self, task_id: int) -> list[Prediction]:
        """The predictions of a task."""
        return [
            Prediction(
                prediction["id"],
                prediction["model_version"] or "",
                tuple(prediction.get("result") or ()),
                prediction.get("score"),
            )
            for prediction in self.get("/api/predictions/", task=task_id)
        ]

    def push_predictions(self, project_id: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        """Store predictions `{"task", "result", "score", "model_version"}`; returns how many.

        Not repeated when the answer is lost: the caller looks at what arrived before it sends
        again (`predictions(task_id)`), or tasks would hold them twice.
        """
        path = f"/api/projects/{project_id}/import/predictions"
        return int(self.post(path, [dict(prediction) for prediction in predictions])["created"])

    def update_prediction(self, prediction_id: int, task_id: int, **fields: Any) -> None:
        """Replace fields of a prediction (`result`, `score`); done twice, it is the same."""
        self.patch(f"/api/predictions/{prediction_id}/", {"task": task_id, **fields})

    def is_annotated(self, task_id: int) -> bool:
        """Whether somebody submitted an annotation of a task, a skipped one left aside."""
        task = self.get(f"/api/tasks/{task_id}", resolve_uri="false")
        return any(not one.get("was_cancelled") for one in task.get("annotations") or [])

    def delete_prediction(self, prediction_id: int) -> None:
        """Delete a prediction."""
        self.delete(f"/api/predictions/{prediction_id}/")

    def tabs(self, project_id: int) -> list[Json]:
        """The Data Manager's tabs; what they show is in each one's `data`."""
        return list(self.get("/api/dm/views/", project=project_id))

    def create_tab(self, project_id: int, data: Mapping[str, Any]) -> None:
        """Add a tab to the Data Manager."""
        self.post("/api/dm/views/", {"project": project_id, "data": dict(data)})

    def ml_backends(self, project_id: int) -> list[MLBackend]:
        """The project's backends; Label Studio calls each one's /health and /setup meanwhile."""
        return [_ml_backend(row) for row in self.get("/api/ml", project=project_id)]

    def create_ml_backend(self, project_id: int, url: str, **fields: Any) -> MLBackend:
        """Connect a backend; Label Studio must reach it, and registers `<url>/webhook` itself."""
        return _ml_backend(self.post("/api/ml", {"project": project_id, "url": url, **fields}))

    def update_ml_backend(self, backend_id: int, **fields: Any) -> MLBackend:
        """Change a backend; `url` and `project` must be among the fields, and it must be up."""
        return _ml_backend(self.patch(f"/api/ml/{backend_id}", fields))

    def webhooks(self, project_id: int) -> list[Webhook]:
        """The project's webhooks."""
        return [_webhook(row) for row in self.get("/api/webhooks/", project=project_id)]

    def create_webhook(self, project_id: int, url: str, **fields: Any) -> Webhook:
        """Register a webhook."""
        return _webhook(self.post("/api/webhooks/", {"project": project_id, "url": url, **fields}))

    def update_webhook(self, webhook_id: int, **fields: Any) -> Webhook:
        """Change a webhook. `actions` left out means none: send the full list every time."""
        return _webhook(self.patch(f"/api/webhooks/{webhook_id}/", fields))

    def delete_webhook(self, webhook_id: int) -> None:
        """Delete a webhook."""
        self.delete(f"/api/webhooks/{webhook_id}/")

    @contextmanager
    def stream(
        self, path: str, *, deadline: Deadline | None = None, signed: bool = True
    ) -> Iterator[httpx2.Response]:
        """GET a file of Label Studio's own origin with the token; the body is not read yet.

        The answer is handed on whatever its status is, redirects included.

        Args:
            path: a path, or an absolute address of Label Studio.
            deadline: the end of all that the answer may take; without one, each of its bytes may
                take as long as any request.
            signed: whether the token goes along.
        """
        client = self._client
        options: Json = {"headers": {"Accept-Encoding": "identity"}}
        if not signed:
            options["auth"] = None
        if deadline is not None:
            client = self._once
            options["timeout"] = httpx2.Timeout(deadline.remaining_s())
            options["extensions"] = deadline.extensions
        try:
            with client.stream("GET", self._absolute(path), **options) as response:
                yield response
        except httpx2.TransportError as error:
            raise unavailable(self.url, "GET", path, error) from error

    def download(self, path: str, *, max_bytes: int) -> bytes:
        """GET a file of Label Studio's own origin.

        Raises:
            LabelStudioError: it is larger than `max_bytes`, or not there.
        """
        with self.stream(path) as response:
            if response.status_code != 200:
                response.read()
                raise failure(self.url, "GET", path, response)
            content = bytearray()
            try:
                for piece in pieces(response):
                    content += piece
                    if len(content) > max_bytes:
                        raise LabelStudioError(f"{path} is larger than {max_bytes} bytes")
            except httpx2.DecodingError as error:
                raise LabelStudioError(f"{path}: {error}", 200) from error
        return bytes(content)

    def path_of(self, reference: str) -> str | None:
        """Path and query of a link to this Label Studio, by any of its addresses that are known.

        Returns:
            None where the link leads elsewhere.
        """
        return self._addresses.path_of(reference)

    def learn_public_address(self, deadline: Deadline | None = None) -> bool:
        """Ask Label Studio for the address that it writes into links (`LABEL_STUDIO_HOST`).

        Asked again after ten minutes: it may have been set meanwhile.

        Returns:
            Whether it gave one, which `path_of` then knows.

        Raises:
            LabelStudioUnavailableError: it does not answer.
        """
        asked_at = self._public_address_asked_at
        if asked_at is not None and time.monotonic() - asked_at < _KEEP_PUBLIC_ADDRESS_S:
            return bool(self._addresses.public)
        with self.stream("/user/login/", deadline=deadline, signed=False) as response:
            if response.status_code in TRY_AGAIN or response.status_code >= 500:
                response.read()
                raise failure(self.url, "GET", "/user/login/", response)
            page = bytearray()
            with suppress(httpx2.DecodingError):
                for piece in pieces(response):
                    page += piece
                    if len(page) > _LONGEST_PAGE:
                        break
        found = _PUBLIC_ADDRESS.search(page.decode(errors="replace"))
        self._addresses = replace(self._addresses, public=found[1] if found else "")
        self._public_address_asked_at = time.monotonic()
        return found is not None

    def _absolute(self, path: str) -> str:
        own = self.path_of(path)
        if own is None:
            raise LabelStudioError(
                f"{shown(path)} is not Label Studio's own address {shown(self.url)}"
            )
        return self.url + own

    def _json(self, method: str, path: str, **options: Any) -> Any:
        response = self._request(method, path, **options)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise LabelStudioError(
                f"{shown(self.url)} answered {method} {urlsplit(path).path} without JSON: "
                "is LABEL_STUDIO_URL the address of Label Studio itself?",
                response.status_code,
            ) from error

    def _request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        url = self._absolute(path)
        for attempt in range(1, self._attempts + 1):
            last = attempt == self._attempts
            # Spread out, so that many workers do not come back in the same moment.
            pause_s = _FIRST_PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.7, 1.3)
            try:
                response = self._client.request(method, url, **options)
            except httpx2.TransportError as error:
                # Without a connection nothing was sent, so even a POST may be repeated.
                repeatable = method in _IDEMPOTENT or isinstance(
                    error, (httpx2.ConnectError, httpx2.ConnectTimeout)
                )
                if last or not repeatable:
                    raise unavailable(self.url, method, path, error) from error
            else:
                if response.is_success:
                    return response
                # Who is told to come later was not served, so even a POST may be repeated.
                repeatable = method in _IDEMPOTENT or response.status_code == 429
                asked_s = retry_after_s(response) or 0.0
                if (
                    last
                    or not repeatable
                    or response.status_code not in TRY_AGAIN
                    or asked_s > _LONGEST_PAUSE_S
                ):
                    raise failure(self.url, method, path, response)
                pause_s = max(pause_s, asked_s)
            time.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")


def _ml_backend(row: Json) -> MLBackend:
    return MLBackend(
        id=row["id"],
        url=row["url"],
        title=row["title"] or "",
        is_interactive=row["is_interactive"],
        auth_method=row["auth_method"],
        basic_auth_user=row["basic_auth_user"] or "",
        has_password=row["basic_auth_pass_is_set"],
        state=row["state"],
        error_message=row["error_message"] or "",
        model_version=row["model_version"] or "",
    )


def _webhook(row: Json) -> Webhook:
    return Webhook(
        id=row["id"],
        url=row["url"],
        headers=row["headers"] or {},
        actions=frozenset(row["actions"]),
        send_payload=row["send_payload"],
        send_for_all_actions=row["send_for_all_actions"],
        is_active=row["is_active"],
    )
