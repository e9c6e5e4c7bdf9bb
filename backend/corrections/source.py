"""The source of corrections: annotations, tasks, projects and images in Label Studio's API.

Nothing here writes to Label Studio. What is gone (404) comes back as None; a Label Studio that
does not answer raises, so that the work is tried again.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from backend.errors import ImageSourceError, LabelStudioError, QuarantineError, Trouble
from backend.label_studio.client import LabelStudio, task_filter
from backend.settings import Settings

PAGE_SIZE = 500
# Left out of the Data Manager's answer: it would join and send all masks to compute them.
_COSTLY_COLUMNS = [
    "tasks:annotations_results",
    "tasks:predictions_results",
    "tasks:predictions_score",
    "tasks:predictions_model_versions",
    "tasks:file_upload",
    "tasks:storage_filename",
    "tasks:draft_exists",
    "tasks:avg_lead_time",
    "tasks:state",
    "tasks:completed_at",
    "tasks:annotators",
]
# Length at which the Data Manager cuts a column off, less than one more id.
_CUT_OFF = 480
_ANNOTATED = task_filter("total_annotations", "greater", "Number", 0)
_SKIPPED = task_filter("cancelled_annotations", "greater", "Number", 0)


@dataclass(frozen=True)
class ImageFacts:
    """One image file: SHA-256, bytes, and its upright size where it can be read."""

    hash: str
    size_bytes: int
    width: int | None
    height: int | None


@dataclass(frozen=True)
class AnnotatedTask:
    """A task with the ids of its annotations, skips included."""

    id: int
    data: Mapping[str, Any]
    annotation_ids: tuple[int, ...]


@dataclass(frozen=True)
class AnnotationSource:
    """Reads one Label Studio with the limits of `settings`."""

    client: LabelStudio
    settings: Settings

    def annotation(self, annotation_id: int) -> Any:
        """The annotation's JSON; None when it does not exist.

        Raises:
            QuarantineError: it is larger than `max_annotation_mb` or no JSON.
            LabelStudioError: there is no answer, or none that this user may see.
        """
        limit = self.settings.max_annotation_mb
        path = f"/api/annotations/{annotation_id}/"
        try:
            content = self.client.download(path, max_bytes=limit * 2**20)
        except LabelStudioError as error:
            if error.status_code == 404:
                return None
            if error.status_code is None and type(error) is LabelStudioError:
                raise QuarantineError(
                    Trouble.CONTENT,
                    f"the annotation is larger than {limit} MB: simplify it, or raise "
                    "MEDSAM3_MAX_ANNOTATION_MB",
                ) from None
            raise
        try:
            return json.loads(content)
        except ValueError:
            raise QuarantineError(
                Trouble.CONTENT, "Label Studio's answer for the annotation is not JSON"
            ) from None

    def task_data(self, project_id: int, task_id: int) -> Mapping[str, Any] | None:
        """The task's data with the addresses as they were imported; None when it is gone.

        Read through the Data Manager's list: opening a single task would send its masks along
        and make Label Studio ask for predictions.
        """
        this = between(task_id, task_id)
        try:
            for task in self.client.tasks(project_id, include=("id", "data"), filters=[this]):
                data: Mapping[str, Any] = task["data"]
                return data
        except LabelStudioError as error:
            if error.status_code != 404:
                raise
        return None

    def newest_change(self, project_id: int) -> datetime | None:
        """When a task of the project changed last, in Label Studio's time; None without tasks."""
        tasks = self._tasks(project_id, order="-tasks:updated_at", page_size=1)["tasks"]
        return datetime.fromisoformat(tasks[0]["updated_at"]) if tasks else None

    def annotated_tasks(
        self, project_id: int, filters: Sequence[Mapping[str, Any]], *, after: int = 0
    ) -> Iterator[AnnotatedTask]:
        """Tasks that have annotations or skips, in the order of their ids.

        Args:
            filters: Data Manager filters that must all hold, see `changed_since`, `between`.
            after: only tasks with higher ids.
        """
        last = after
        while True:
            behind = [*filters, task_filter("id", "greater", "Number", last)]
            # The Data Manager knows no "or": those with annotations and those with skips are two
            # lists, read side by side.
            pages = [
                self._tasks(project_id, filters=[*behind, some])["tasks"]
                for some in (_ANNOTATED, _SKIPPED)
            ]
            tasks = {int(task["id"]): task for page in pages for task in page}
            # Behind the end of a full page there may be more of its kind, so tasks of the other
            # list beyond it wait, or the order of ids would be broken.
            full = [int(page[-1]["id"]) for page in pages if len(page) == PAGE_SIZE]
            reach = min(full, default=None)
            for task_id, task in sorted(tasks.items()):
                if reach is None or task_id <= reach:
                    annotation_ids = self._annotation_ids(project_id, task)
                    yield AnnotatedTask(task_id, task["data"], annotation_ids)
            if reach is None:
                return
            last = reach

    def counts(self, project_id: int, first: int, last: int) -> tuple[int, int]:
        """Annotations, and tasks with skips, among the tasks with ids first..last."""
        within = between(first, last)
        annotations = self._tasks(project_id, filters=[within], page_size=1)
        skips = self._tasks(project_id, filters=[within, _SKIPPED], page_size=1)
        return int(annotations["total_annotations"]), int(skips["total"])

    def project(self, project_id: int) -> Mapping[str, Any] | None:
        """The project's JSON with its `label_config`; None when it is gone."""
        return self._get(f"/api/projects/{project_id}")

    def prediction(self, prediction_id: int) -> Mapping[str, Any] | None:
        """A prediction with its result; None when it is gone."""
        return self._get(f"/api/predictions/{prediction_id}/")

    def image(self, reference: str, *, project_id: int, task_id: int) -> bytes:
        """The image file behind an address of the task's data.

        Raises:
            QuarantineError: it cannot be had, and trying again does not help.
        """
        from backend.label_studio.images import fetch_image

        try:
            return fetch_image(
                reference,
                client=self.client,
                settings=self.settings,
                task_id=task_id,
                project_id=project_id,
            )
        except ImageSourceError as error:
            raise QuarantineError(Trouble.IMAGE, str(error)) from None

    def _tasks(
        self,
        project_id: int,
        *,
        filters: Sequence[Mapping[str, Any]] = (),
        order: str = "tasks:id",
        page_size: int = PAGE_SIZE,
    ) -> Mapping[str, Any]:
        query: dict[str, Any] = {
            "ordering": [order],
            "hiddenColumns": {"explore": _COSTLY_COLUMNS, "labeling": _COSTLY_COLUMNS},
        }
        if filters:
            query["filters"] = {"conjunction": "and", "items": list(filters)}
        answer: Mapping[str, Any] = self.client.get(
            "/api/tasks",
            project=project_id,
            page_size=page_size,
            include="id,data,updated_at,annotations_ids",
            resolve_uri="false",
            query=json.dumps(query),
        )
        return answer

    def _annotation_ids(self, project_id: int, task: Mapping[str, Any]) -> tuple[int, ...]:
        listed = str(task.get("annotations_ids") or "")
        if len(listed) < _CUT_OFF:
            return tuple(sorted({int(id_) for id_ in re.findall(r"\d+", listed)}))
        # The Data Manager cuts long columns off; then the annotations themselves are read.
        this = between(int(task["id"]), int(task["id"]))
        (whole,) = self.client.tasks(project_id, include=("annotations",), filters=[this])
        return tuple(sorted(int(annotation["id"]) for annotation in whole["annotations"]))

    def _get(self, path: str) -> Mapping[str, Any] | None:
        try:
            answer: Mapping[str, Any] = self.client.get(path)
        except LabelStudioError as error:
            if error.status_code == 404:
                return None
            raise
        return answer


def changed_since(moment: datetime) -> dict[str, Any]:
    """A filter: tasks that changed at or after a moment of Label Studio's time."""
    # With microseconds and Z, as Label Studio writes times.
    written = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return task_filter("updated_at", "greater_or_equal", "Datetime", written)


def between(first: int, last: int) -> dict[str, Any]:
    """A filter: tasks with ids first..last."""
    return task_filter("id", "in", "Number", {"min": first, "max": last})


def image_facts(content: bytes) -> ImageFacts:
    """Hash and size of an image file; only its header is read, by the reader of its pixels."""
    width, height = _upright_size(content)
    return ImageFacts(hashlib.sha256(content).hexdigest(), len(content), width, height)


def _upright_size(content: bytes) -> tuple[int, int] | tuple[None, None]:
    from medsam3_model.errors import ImageError
    from medsam3_model.images.reading import open_picture

    try:
        with open_picture(content) as picture:
            return picture.width, picture.height
    except ImageError:
        return None, None
