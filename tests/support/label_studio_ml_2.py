"""A stand-in for the base class and the server of label-studio-ml 2.x, written from its manners.

What it does in which order is what matters: the base uses the config, the version and its cache
while it is made, before a subclass's own constructor goes on; the server passes the project by
position to the webhook, and the parameters of `/predict` as keywords.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from flask import Flask, request


class Base:
    """What 2.x derives a backend from."""

    cache: dict[tuple[str, str], str] = {}  # noqa: RUF012 one of all instances, as there

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.use_label_config(label_config)
        if not self.model_version:
            self.set("model_version", "0.0.1")
        self.setup()

    def setup(self) -> None:
        """For subclasses."""

    def use_label_config(self, label_config: str) -> None:
        """Remember the config."""
        if self.get("label_config") != label_config:
            self.set("label_config", label_config)

    def set_extra_params(self, extra_params: Any) -> None:
        """Remember what `/setup` brought beside the config."""
        self.set("extra_params", extra_params)

    def get(self, key: str) -> str | None:
        """A cached value of the project."""
        return self.cache.get((self.project_id, key))

    def set(self, key: str, value: Any) -> None:
        """Cache a value, a text."""
        if not isinstance(value, str):
            raise ValueError("only texts are kept")
        self.cache[self.project_id, key] = value

    @property
    def label_config(self) -> str | None:
        """The config; it cannot be assigned."""
        return self.get("label_config")

    @property
    def model_version(self) -> str | None:
        """The version, which a subclass may override."""
        return self.get("model_version")


@contextmanager
def installed() -> Iterator[None]:
    """As if 2.x were installed: `backend.model` is imported anew, on the stand-in's base."""
    ours = sys.modules.pop("backend.model", None)
    package, model = ModuleType("label_studio_ml"), ModuleType("label_studio_ml.model")
    model.LabelStudioMLBase = Base  # type: ignore[attr-defined]
    sys.modules |= {"label_studio_ml": package, "label_studio_ml.model": model}
    try:
        yield
    finally:
        for name in ("label_studio_ml", "label_studio_ml.model", "backend.model"):
            sys.modules.pop(name, None)
        if ours is not None:
            sys.modules["backend.model"] = ours
        Base.cache.clear()


def server(backend: type[Any]) -> Flask:
    """The four endpoints of 2.x that Label Studio calls."""
    if not issubclass(backend, Base):
        raise ValueError("no subclass of the package's base")
    app = Flask(__name__)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "UP", "model_class": backend.__name__}

    @app.post("/setup")
    def setup() -> dict[str, Any]:
        sent = request.get_json()
        model = backend(
            project_id=sent["project"].split(".", 1)[0], label_config=sent.get("schema")
        )
        if sent.get("extra_params"):
            model.set_extra_params(sent["extra_params"])
        return {"model_version": model.get("model_version")}

    @app.post("/predict")
    def predict() -> dict[str, Any]:
        sent = request.get_json()
        project = str(sent.get("project"))
        params = sent.get("params", {})
        context = params.pop("context", {})
        model = backend(project_id=project.split(".", 1)[0], label_config=sent.get("label_config"))
        return {"results": model.predict(sent["tasks"], context=context, **params) or []}

    @app.post("/webhook")
    def webhook() -> tuple[dict[str, Any], int]:
        sent = request.get_json()
        action = sent.pop("action")
        known = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED")
        if action not in (*known, "START_TRAINING"):
            return {"status": "Unknown event"}, 200
        model = backend(str(sent["project"]["id"]), label_config=sent["project"]["label_config"])
        return {"result": model.fit(action, sent), "status": "ok"}, 201

    return app
