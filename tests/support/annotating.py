"""Label Studio's API as annotators and imports use it, which the backend has no need of."""

from collections.abc import Mapping, Sequence
from typing import Any

from backend.label_studio.client import Json, LabelStudio


class AnnotatingLabelStudio(LabelStudio):
    """The backend's client, which can also create tasks and submit annotations."""

    def task(self, task_id: int) -> Json:
        """One task with its data, annotations, drafts and predictions (masks included)."""
        return dict(self.get(f"/api/tasks/{task_id}"))

    def import_tasks(self, project_id: int, tasks: Sequence[Mapping[str, Any]]) -> list[int]:
        """Create tasks from `{"data": {...}}` (predictions may be inside); returns their ids."""
        path = f"/api/projects/{project_id}/import?return_task_ids=true"
        return list(self.post(path, list(tasks))["task_ids"])

    def annotation(self, annotation_id: int) -> Json:
        """One annotation with its regions."""
        return dict(self.get(f"/api/annotations/{annotation_id}/"))

    def annotations(self, task_id: int) -> list[Json]:
        """The annotations of a task, cancelled ones included."""
        return list(self.get(f"/api/tasks/{task_id}/annotations/"))

    def create_annotation(self, task_id: int, result: Sequence[Json], **fields: Any) -> Json:
        """Submit an annotation as the token's user."""
        body = {"result": list(result), **fields}
        return dict(self.post(f"/api/tasks/{task_id}/annotations/", body))

    def model_versions(self, project_id: int) -> dict[str, int]:
        """How many predictions of each model version the project holds."""
        return dict(self.get(f"/api/projects/{project_id}/model-versions/"))
