"""`MedSAM3Backend`: the class with Label Studio's standard signature.

Our own Flask application serves it; so can the server of the `label-studio-ml` package, whose
base class it then has. Either way it only talks to the database and the queue.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from backend.corrections import events
from backend.models import versions
from backend.predictions.requests import PredictAnswer, PredictRequest, predict
from backend.services import Services, current_services

try:
    from label_studio_ml.model import LabelStudioMLBase
except ImportError:

    class LabelStudioMLBase:  # type: ignore[no-redef]
        """Stands in for label-studio-ml's base class where that package is not installed."""

        def __init__(self, **kwargs: Any) -> None:
            """Take what its server passes; nothing of it is needed here."""


class MedSAM3Backend(LabelStudioMLBase):  # type: ignore[misc, valid-type]
    """Predictions and training events of one Label Studio project.

    Args:
        label_config: the labeling config's XML, as Label Studio sends it.
        project_id: Label Studio's `"<id>.<created>"`.
        services: database and Redis; None uses the process's.
        **kwargs: whatever else a server of label-studio-ml passes to its base class.
    """

    def __init__(
        self,
        label_config: str | None = None,
        project_id: str | None = None,
        services: Services | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(label_config=label_config, **kwargs)
        self._services = services or current_services()
        self._xml = label_config or ""
        head = (project_id or "").partition(".")[0]
        self._project_id = int(head) if head.isdecimal() else 0

    @property
    def model_version(self) -> str:
        """The version that this project's predictions carry."""
        return versions.in_service(self._services, self._project_id)

    @model_version.setter
    def model_version(self, _value: object) -> None:
        """label-studio-ml 1.0.9 assigns a timestamp here; the version is the weights' name."""

    def predict(
        self,
        tasks: Sequence[Mapping[str, Any]],
        context: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Predict tasks.

        Args:
            tasks: Label Studio's tasks.
            context: the smart tools' `{"result": [...]}`, or None.
            **kwargs: `label_config` and others from label-studio-ml's server.

        Returns:
            One prediction per task, or none when they will be pushed later.
        """
        return self.answer(tasks, context).predictions

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
