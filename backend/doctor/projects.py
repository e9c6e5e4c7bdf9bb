"""Each project that uses this backend: its config, connection, webhook and version."""

from sqlalchemy import select

from backend.database import Database
from backend.doctor.check import Check, fail, ok, warn
from backend.doctor.volumes import volume_remark
from backend.errors import LabelConfigError, LabelStudioError
from backend.label_studio.client import LabelStudio, MLBackend, Webhook
from backend.label_studio.connect import WEBHOOK_ACTIONS, our_backend
from backend.labeling.concepts import remarks
from backend.labeling.config import parse_label_config
from backend.services import WEBHOOK_SECRET_HEADER, Credentials, load_credentials
from backend.settings import Settings
from backend.tables import Project

_WHERE_CONFIGS_ARE = "change it under Settings, Labeling Interface"


def check_projects(settings: Settings, database: Database) -> list[Check]:
    """One finding per project that this backend has been asked for.

    Label Studio tries the connection from its side meanwhile: the address of the backend as Label
    Studio sees it is checked that way and no other.
    """
    with database.reading() as session:
        ids = list(session.scalars(select(Project.id).order_by(Project.id)))
    if not ids:
        return [
            warn(
                "projects",
                "no project uses this backend yet",
                "connect one: `medsam3 connect PROJECT`",
            )
        ]
    credentials = load_credentials(settings)
    with LabelStudio.from_settings(settings) as client:
        return [_check_project(client, settings, project_id, credentials) for project_id in ids]


def _check_project(
    client: LabelStudio, settings: Settings, project_id: int, credentials: Credentials
) -> Check:
    name = f"project {project_id}"
    again = f"`medsam3 connect {project_id}`"
    try:
        project = client.project(project_id)
        backends = client.ml_backends(project_id)
        hooks = client.webhooks(project_id)
    except LabelStudioError as error:
        if error.status_code == 404:
            gone = "Label Studio has no such project, or not for this user"
            return warn(name, gone, "nothing, if it was deleted; else give the token's user access")
        return fail(name, str(error), "run this again when Label Studio answers")
    try:
        config = parse_label_config(project["label_config"])
    except LabelConfigError as error:
        return fail(name, str(error), _WHERE_CONFIGS_ARE)
    connected = our_backend(backends, hooks)
    if connected is None:
        return fail(name, "it is not connected to this backend", again)
    backend, hook = connected
    problem = _connection_problem(backend, backends) or _webhook_problem(hook, credentials)
    if problem:
        return fail(name, problem, again)
    if project["model_version"] != backend.model_version:
        return warn(
            name,
            f"it shows the predictions of {project['model_version'] or 'no version'}, but "
            f"{backend.model_version} is in service",
            again,
        )
    if advice := remarks(config):
        return warn(name, " ".join(advice), _WHERE_CONFIGS_ARE)
    if volume := volume_remark(client, settings, project_id, config):
        return warn(name, volume, "import every slice as an image of its own")
    return ok(name, f"“{project['title']}”: {backend.model_version}, connected")


def _connection_problem(backend: MLBackend, backends: list[MLBackend]) -> str:
    if backend.state == "DI":
        return f"Label Studio cannot reach this backend at {backend.url}"
    if backend.state == "ER":
        return f"Label Studio reaches {backend.url}, but it refuses: {backend.error_message}"
    if not backend.is_interactive:
        return "smart tools are switched off for this backend"
    if min(other.id for other in backends) != backend.id:
        return "another backend comes before this one, and Label Studio asks only the first"
    return ""


def _webhook_problem(hook: Webhook, credentials: Credentials) -> str:
    if hook.headers[WEBHOOK_SECRET_HEADER] != credentials.webhook_secret:
        return "its webhook carries another secret, so this backend refuses its events"
    if not hook.is_active:
        return "its webhook is switched off"
    if not hook.send_payload:
        return "its webhook sends no ids"
    if not hook.send_for_all_actions and not hook.actions >= WEBHOOK_ACTIONS:
        return f"its webhook leaves out {', '.join(sorted(WEBHOOK_ACTIONS - hook.actions))}"
    return ""
