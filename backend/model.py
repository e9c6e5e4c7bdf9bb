"""`MedSAM3Backend`: this backend as a class for the server of the package `label-studio-ml`.

It serves under the released 1.0.9 and under 2.x, which is installed from its repository. It only
talks to the database and the queue; our own web process does without it and without that package.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from backend.corrections import events
from backend.label_studio.projects import project_number
from backend.models import versions
from backend.predictions.requests import PredictAnswer, PredictRequest, predict
from backend.services import Services, current_services

try:
    from label_studio_ml.model import LabelStudioMLBase
except ModuleNotFoundError as error:
    if error.name != "label_studio_ml":
        # It is there and lacks something: its server would refuse a class without its base.
        raise

    class LabelStudioMLBase:  # type: ignore[no-redef]
        """Stands in for label-studio-ml's base class where that package is not installed."""

        def __init__(self, **kwargs: Any) -> None:
            """Take what its server passes; nothing of it is needed here."""


class MedSAM3Backend(LabelStudioMLBase):  # type: ignore[misc, valid-type]
    """Predictions and training events of one Label Studio project.

    Args:
        project_id: Label Studio's `"<id>.<created>"`, or the bare id; without one the project is
            that of the tasks.
        label_config: the labeling config's XML, as Label Studio sends it.
        services: database and Redis; None uses the process's.
        **kwargs: whatever else a server of label-studio-ml passes to its base class.

    Raises:
        ValueError: the project is no id.
    """

    def __init__(
        self,
        project_id: str | int | None = None,
        label_config: str | None = None,
        services: Services | None = None,
        **kwargs: Any,
    ) -> None:
        # Before the base: that of 2.x uses the version and the config while it is made.
        self._services = services or current_services()
        self._xml = label_config or ""
        # The server of 2.x writes None out where Label Studio sent no project.
        known = project_id not in (None, "", "None")
        self._project_id = project_number(project_id) if known else 0
        super().__init__(project_id=project_id, label_config=label_config, **kwargs)

    @property
    def model_version(self) -> str:
        """The version that this project's predictions carry."""
        return versions.in_service(self._services, self._project_id)

    @model_version.setter
    def model_version(self, _value: object) -> None:
        """label-studio-ml 1.0.9 assigns a timestamp here; the version is the weights' name."""

    def use_label_config(self, label_config: str) -> None:
        """2.x parses the config and caches it in a file; here each request brings its own."""

    def get(self, key: str) -> str | None:
        """A value of the cache of 2.x, whose `/setup` answers with `model_version`."""
        if key == "model_version":
            if not self._project_id:
                return self.model_version
            return versions.register_project(self._services, self._project_id, self._xml)
        return self._xml if key == "label_config" else None

    def set(self, key: str, value: object) -> None:
        """2.x writes to its cache here; what we keep is in the database."""

    def has(self, key: str) -> bool:
        """Whether `get` knows a value."""
        return key in ("model_version", "label_config")

    def predict(
        self,
        tasks: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Predict tasks.

        Args:
            tasks: Label Studio's tasks.
            context: the smart tools' `{"result": [...]}`; None or empty without one.
            **kwargs: `label_config` and others from label-studio-ml's server.

        Returns:
            One prediction per task, or none when they will be pushed later.
        """
        return self.answer(tasks, context or None).predictions

    def answer(
        self, tasks: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None
    ) -> PredictAnswer:
        """As `predict`, with the reasons where there are no predictions."""
        project_id = self._project_id or _project_of(tasks)
        request = PredictRequest(tasks, project_id, self._xml, context)
        return predict(self._services, request)

    def fit(
        self, event: object = (), /, data: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, str]:
        """Keep an event of Label Studio; a worker deals with it.

        Args:
            event: the action, for example `ANNOTATION_CREATED` or `START_TRAINING`. The server of
                label-studio-ml 1.0.9 passes an empty list of tasks here, and the action by name.
            data: the webhook's body.
            **kwargs: `event`, where it comes by name; the rest is ignored.

        Returns:
            The stored event's id.
        """
        action = str(kwargs.get("event") or event or "")
        return {"event": events.receive(self._services, {**(data or {}), "action": action})}


def _project_of(tasks: Sequence[Mapping[str, Any]]) -> int:
    project = tasks[0].get("project") if tasks else None
    return project if isinstance(project, int) else 0
