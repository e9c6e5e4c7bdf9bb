"""Connecting a project of Label Studio to this backend, and telling it which version serves.

Label Studio knows a version by two names: predictions carry `model_version`, a backend has a
`title`. `project.model_version` may hold either. When the title is the version, both readings
agree: opening a task asks this backend for a prediction where there is none, and the score column,
the score filter and uncertainty sampling read the ones that are stored.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2

from backend.errors import LabelStudioError, SettingsError
from backend.label_studio.client import Json, LabelStudio, MLBackend, Webhook
from backend.label_studio.hosts import is_this_machine, open_client, shown
from backend.services import WEBHOOK_SECRET_HEADER, Credentials, load_credentials
from backend.settings import Settings

if TYPE_CHECKING:
    from backend.labeling.config import LabelConfig

# Every event that can change what we know. Label links belong to another product of Label Studio.
WEBHOOK_ACTIONS = frozenset(
    {
        "ANNOTATION_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_CREATED",
        "ANNOTATIONS_DELETED",
        "PROJECT_UPDATED",
        "TASKS_CREATED",
        "TASKS_DELETED",
    }
)
UNCERTAINTY_SAMPLING = "Uncertainty sampling"
UNIFORM_SAMPLING = "Uniform sampling"
TAB = "MedSAM-3"
_FIRST_TITLE = "MedSAM-3"
# All of Label Studio's columns but the data, counts, score and version of predictions.
_HIDDEN_COLUMNS = [
    f"tasks:{column}"
    for column in (
        "inner_id", "completed_at", "cancelled_annotations", "annotators", "annotations_results",
        "annotations_ids", "predictions_results", "file_upload", "storage_filename", "created_at",
        "updated_at", "updated_by", "avg_lead_time", "draft_exists",
    )
]  # fmt: skip
_CONNECTED = "CO"
_LET_IT_CALL = (
    "restart Label Studio with LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false and "
    "LABEL_STUDIO_SSRF_PROTECTION_ENABLED=false (both), or give this backend a public address"
)


class StepOutcome(StrEnum):
    """What became of one thing that `connect` looks after."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    WARNING = "warning"
    BY_HAND = "by hand"


@dataclass(frozen=True)
class Step:
    """One thing that `connect` looked after, and a sentence about it."""

    what: str
    outcome: StepOutcome
    message: str


@dataclass(frozen=True)
class ConnectReport:
    """What `connect` did; a second time nothing is created or changed."""

    project_id: int
    project_title: str
    backend_id: int
    backend_url: str
    model_version: str
    steps: tuple[Step, ...]


def connect(
    settings: Settings,
    project_id: int,
    backend_url: str,
    *,
    client: LabelStudio | None = None,
    sampling: str | None = UNIFORM_SAMPLING,
) -> ConnectReport:
    """Make Label Studio use this backend for a project; safe to repeat.

    Args:
        settings: Label Studio's address and token, and this backend's secrets.
        project_id: the project.
        backend_url: the address at which *Label Studio* reaches this backend.
        client: an open client; by default one from the settings.
        sampling: the order in which tasks are served, or None to leave it as it is; by default
            any, which suits a project that has no version of its own yet.

    Raises:
        LabelConfigError: the project's labeling config cannot be served; says what to change.
        SettingsError: `backend_url` is one that Label Studio cannot send events to.
        LabelStudioError: Label Studio refuses, or cannot reach the backend; says what to do.
    """
    from backend.labeling.concepts import remarks
    from backend.labeling.config import parse_label_config

    url = checked_url(backend_url)
    credentials = load_credentials(settings)
    opened = LabelStudio.from_settings(settings) if client is None else nullcontext(client)
    with opened as studio:
        project = studio.project(project_id)
        config = parse_label_config(project["label_config"])
        _check_password(url, credentials)
        steps = [Step("labels", StepOutcome.WARNING, remark) for remark in remarks(config)]
        backend = _backend(studio, project_id, url, credentials, steps)
        steps.append(_webhook(studio, project_id, url, credentials))
        steps.append(_title(studio, project_id, backend, credentials))
        steps.append(_project(studio, project, backend.model_version, sampling))
        steps.append(_tab(studio, project_id))
        steps += _by_hand(config)
    return ConnectReport(
        project_id=project_id,
        project_title=project["title"],
        backend_id=backend.id,
        backend_url=url,
        model_version=backend.model_version,
        steps=tuple(steps),
    )


def announce_version(
    client: LabelStudio, project_id: int, credentials: Credentials, sampling: str
) -> str:
    """Make the version that this backend's /setup answers the one that Label Studio shows.

    Called after a promotion or a rollback. Tasks are served in the order `sampling` from now on,
    unless somebody chose one that `connect` does not set.

    Returns:
        The version.

    Raises:
        LabelStudioError: the project is not connected to this backend, or Label Studio refuses.
    """
    connected = our_backend(client.ml_backends(project_id), client.webhooks(project_id))
    if connected is None:
        raise LabelStudioError(
            f"Project {project_id} is not connected to this backend: run `medsam3 connect "
            f"{project_id}`."
        )
    backend, _ = connected
    _title(client, project_id, backend, credentials)
    project = client.project(project_id)
    ours = project["sampling"] in (UNCERTAINTY_SAMPLING, UNIFORM_SAMPLING)
    _project(client, project, backend.model_version, sampling if ours else None)
    return backend.model_version


def switch_on_webhooks(client: LabelStudio, project_id: int, credentials: Credentials) -> int:
    """Switch our webhooks of a project on again; returns how many were off.

    Newer versions of Label Studio switch a webhook off after fifty failures, such as a backend
    that was away for an hour, and nobody is told.
    """
    revived = 0
    for hook in client.webhooks(project_id):
        ours = hook.headers.get(WEBHOOK_SECRET_HEADER) == credentials.webhook_secret
        if ours and not hook.is_active:
            client.update_webhook(
                hook.id,
                url=hook.url,
                headers=dict(hook.headers),
                actions=sorted(hook.actions),
                send_payload=hook.send_payload,
                send_for_all_actions=hook.send_for_all_actions,
                is_active=True,
            )
            revived += 1
    return revived


def our_backend(
    backends: Iterable[MLBackend], hooks: Sequence[Webhook]
) -> tuple[MLBackend, Webhook] | None:
    """The first backend that has a webhook with our secret header, and that webhook."""
    for backend in backends:
        for hook in hooks:
            if hook.url == _webhook_url(backend.url) and WEBHOOK_SECRET_HEADER in hook.headers:
                return backend, hook
    return None


def checked_url(backend_url: str) -> str:
    """The address without a slash at its end.

    Raises:
        SettingsError: no http(s) address, or a host that Label Studio does not accept for events.
    """
    url = backend_url.rstrip("/")
    host = urlsplit(url).hostname or ""
    if urlsplit(url).scheme not in ("http", "https") or not host:
        raise SettingsError(f"{backend_url!r} is not an http:// or https:// address.")
    if host == "localhost" or _is_ip(host) or ("." in host.rstrip(".") and "_" not in host):
        return url
    raise SettingsError(
        f"Label Studio sends no events to the host name {host!r}: it takes only names with a dot "
        "and without an underscore, localhost, and IP addresses. In Docker Compose give the "
        "service a network alias such as medsam3.internal."
    )


def _check_password(url: str, credentials: Credentials) -> None:
    """Refuse secrets that are not the running backend's, where it can be asked from here.

    Label Studio may have the right password from before; ours would then only spoil the webhook.
    """
    try:
        login = (credentials.user, credentials.password)
        with open_client(3.0, auth=login, trust_env=not is_this_machine(url)) as client:
            answer = client.get(f"{url}/versions")
    except httpx2.TransportError:
        return  # The address is the one that Label Studio sees; this machine may have no way there.
    if answer.status_code == 401:
        raise LabelStudioError(_wrong_password(url), 401)


def _wrong_password(url: str) -> str:
    return (
        f"The backend at {shown(url)} does not take our password: run `medsam3 connect` with the "
        "settings (MEDSAM3_DATA_DIR, MEDSAM3_BASIC_AUTH_PASSWORD) of the running backend."
    )


def _backend(
    studio: LabelStudio,
    project_id: int,
    url: str,
    credentials: Credentials,
    steps: list[Step],
) -> MLBackend:
    """Find or create the project's backend, reachable and with our credentials."""
    backends = studio.ml_backends(project_id)
    hooks = studio.webhooks(project_id)
    before = next((backend for backend in backends if backend.url.rstrip("/") == url), None)
    if before is None and (moved := our_backend(backends, hooks)) is not None:
        # An address that we used before, for instance with another port.
        before, _ = moved
    fields: dict[str, Any] = {"is_interactive": True, **_login(credentials)}
    try:
        if before is None:
            backend = studio.create_ml_backend(project_id, url, title=_FIRST_TITLE, **fields)
            steps.append(Step("backend", StepOutcome.CREATED, f"connected {url}"))
        elif _is_complete(before, url, credentials):
            backend = before
            steps.append(Step("backend", StepOutcome.UNCHANGED, f"{url} is connected"))
        else:
            backend = studio.update_ml_backend(
                before.id, project=project_id, url=url, title=before.title, **fields
            )
            old = f" (was {shown(before.url)})" if before.url.rstrip("/") != url else ""
            message = f"connected {url} again{old}, with its password"
            steps.append(Step("backend", StepOutcome.CHANGED, message))
            if old:
                _drop_webhooks(studio, hooks, before.url)
    except LabelStudioError as error:
        raise _explained(error, url) from error
    if not backend.model_version:
        raise LabelStudioError(
            f"{url} answered /setup without a model version: it is not this backend."
        )
    first = min([*backends, backend], key=lambda backend: backend.id)
    if first.id != backend.id:
        steps.append(
            Step(
                "other backends",
                StepOutcome.WARNING,
                f"Label Studio asks only a project's first backend for predictions, which is "
                f"{first.title!r} at {shown(first.url)}: remove that one in the project's "
                "settings under Model",
            )
        )
    return backend


def _is_complete(backend: MLBackend, url: str, credentials: Credentials) -> bool:
    # /setup refuses wrong credentials, so a connected backend shows that the password is right.
    return (
        backend.url.rstrip("/") == url
        and backend.state == _CONNECTED
        and backend.is_interactive
        and backend.auth_method == "BASIC_AUTH"
        and backend.basic_auth_user == credentials.user
        and backend.has_password
    )


def _webhook(studio: LabelStudio, project_id: int, url: str, credentials: Credentials) -> Step:
    """Label Studio registers the webhook itself, for everything and without a secret."""
    address = _webhook_url(url)
    fields: dict[str, Any] = {
        "actions": sorted(WEBHOOK_ACTIONS),
        "send_payload": True,
        "send_for_all_actions": False,
        "is_active": True,
    }
    secret = {WEBHOOK_SECRET_HEADER: credentials.webhook_secret}
    message = f"events go to {address} with our secret"
    hooks = [hook for hook in studio.webhooks(project_id) if hook.url == address]
    if not hooks:
        try:
            studio.create_webhook(project_id, address, headers=secret, **fields)
        except LabelStudioError as error:
            raise _explained(error, url) from error
        return Step("webhook", StepOutcome.CREATED, message)
    hook, *duplicates = hooks
    for duplicate in duplicates:
        studio.delete_webhook(duplicate.id)
    if (
        not duplicates
        and hook.headers.get(WEBHOOK_SECRET_HEADER) == credentials.webhook_secret
        and hook.actions == WEBHOOK_ACTIONS
        and hook.send_payload
        and hook.is_active
        and not hook.send_for_all_actions
    ):
        return Step("webhook", StepOutcome.UNCHANGED, message)
    studio.update_webhook(hook.id, url=address, headers={**hook.headers, **secret}, **fields)
    return Step("webhook", StepOutcome.CHANGED, message)


def _drop_webhooks(studio: LabelStudio, hooks: list[Webhook], old_url: str) -> None:
    """Label Studio keeps a webhook when its backend goes; every Submit would wait for it."""
    for hook in hooks:
        if hook.url == _webhook_url(old_url):
            studio.delete_webhook(hook.id)


def _title(
    studio: LabelStudio, project_id: int, backend: MLBackend, credentials: Credentials
) -> Step:
    version = backend.model_version
    if backend.title == version:
        return Step("title", StepOutcome.UNCHANGED, f"the backend is titled {version}")
    try:
        studio.update_ml_backend(
            backend.id,
            project=project_id,
            url=backend.url,
            title=version,
            is_interactive=backend.is_interactive,
            **_login(credentials),
        )
    except LabelStudioError as error:
        raise _explained(error, backend.url) from error
    return Step("title", StepOutcome.CHANGED, f"the backend is titled {version}, its model version")


def _project(studio: LabelStudio, before: Json, version: str, sampling: str | None) -> Step:
    """Bring the project's fields in line; `before` is the project as `connect` found it."""
    fields: dict[str, Any] = {"show_collab_predictions": True, "model_version": version}
    if sampling is not None:
        fields["sampling"] = sampling
    message = ", ".join(f"{name} = {value}" for name, value in fields.items())
    # Label Studio has moved model_version along with the backend's title by now.
    current = studio.project(before["id"])
    changes = {name: value for name, value in fields.items() if current[name] != value}
    if changes:
        studio.update_project(before["id"], **changes)
    different = [name for name, value in fields.items() if before[name] != value]
    if not different:
        return Step("project", StepOutcome.UNCHANGED, message)
    was = ", ".join(f"{name} was {before[name] or 'empty'}" for name in different)
    return Step("project", StepOutcome.CHANGED, f"{message} ({was})")


def _tab(studio: LabelStudio, project_id: int) -> Step:
    """Add a tab with the least certain tasks first; one of its name stays as somebody made it."""
    message = f"the Data Manager's tab {TAB!r} has the least certain tasks first"
    if any((tab.get("data") or {}).get("title") == TAB for tab in studio.tabs(project_id)):
        return Step("tab", StepOutcome.UNCHANGED, message)
    studio.create_tab(
        project_id,
        {
            "title": TAB,
            "type": "list",
            "target": "tasks",
            "ordering": ["tasks:predictions_score"],
            "filters": {"conjunction": "and", "items": []},
            "hiddenColumns": {"explore": _HIDDEN_COLUMNS, "labeling": _HIDDEN_COLUMNS},
            "columnsWidth": {"tasks:predictions_model_versions": 220},
            "gridWidth": 3,
        },
    )
    return Step("tab", StepOutcome.CREATED, message)


def _by_hand(config: "LabelConfig") -> list[Step]:
    """What Label Studio's API has no switch for."""
    if not any(control.smart or control.tag.startswith("KeyPoint") for control in config.controls):
        return []
    return [
        Step(
            "Auto-Annotation",
            StepOutcome.BY_HAND,
            "each annotator switches it on once, at the foot of the editor: boxes and clicks of "
            "the smart tools are answered only then",
        )
    ]


def _login(credentials: Credentials) -> dict[str, str]:
    # All three in every call: Label Studio tries the backend with exactly what it is sent.
    return {
        "auth_method": "BASIC_AUTH",
        "basic_auth_user": credentials.user,
        "basic_auth_pass": credentials.password,
    }


def _explained(error: LabelStudioError, url: str) -> LabelStudioError:
    """Turn Label Studio's refusals into what to do about them."""
    text = str(error)
    if "reserved network address" in text:
        sentence = (
            f"Label Studio does not call addresses inside its own network such as {shown(url)}: "
            f"{_LET_IT_CALL}."
        )
    elif "health check failed" in text:
        sentence = (
            f"Label Studio cannot reach this backend at {shown(url)}: check that it runs (`medsam3 "
            f"serve`) and that this is its address as seen from Label Studio's machine."
        )
    # /health is open to all, so a wrong password shows at /setup.
    elif "401 Client Error" in text or "authentication parameters" in text:
        sentence = _wrong_password(url)
    elif "Can't resolve hostname" in text:
        sentence = (
            f"Label Studio does not know the host name of {shown(url)}: give the address of this "
            "backend as seen from Label Studio's machine."
        )
    else:
        return error
    return LabelStudioError(sentence, error.status_code)


def _webhook_url(backend_url: str) -> str:
    return backend_url.rstrip("/") + "/webhook"


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
