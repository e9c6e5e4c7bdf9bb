"""`medsam3 doctor` on a real Label Studio: the server, the token and connected projects."""

from collections.abc import Callable, Iterator

import pytest

from backend.database import Database
from backend.doctor import Check, Status
from backend.doctor.label_studio import check_label_studio, check_token
from backend.doctor.projects import check_projects
from backend.label_studio.client import LabelStudio
from backend.label_studio.connect import connect
from backend.label_studio.server import free_port
from backend.services import WEBHOOK_SECRET_HEADER, load_credentials
from backend.settings import Settings
from backend.tables import Project
from tests.support.label_configs import BRIGHT_DISC_CONFIG
from tests.support.projects import LabelStudioProject, ProjectFactory
from tests.support.recording_backend import RecordingBackend
from tests.support.tokens import jwt


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database)
    database.migrate()
    yield database
    database.dispose()


@pytest.fixture
def backend(settings: Settings) -> Iterator[RecordingBackend]:
    credentials = load_credentials(settings)
    with RecordingBackend(credentials.user, credentials.password) as backend:
        yield backend


@pytest.fixture
def project(
    settings: Settings, backend: RecordingBackend, make_project: ProjectFactory, database: Database
) -> LabelStudioProject:
    """A connected project that the database knows."""
    project = make_project(images=1)
    connect(settings, project.id, backend.url)
    with database.session() as session:
        session.add(Project(id=project.id))
    return project


@pytest.fixture
def look(settings: Settings, database: Database) -> Callable[[], Check]:
    """Check the one project again."""

    def look() -> Check:
        (found,) = check_projects(settings, database)
        return found

    return look


def test_the_server(settings: Settings, backend: RecordingBackend) -> None:
    assert check_label_studio(settings).message.startswith("1.23.2 at http://127.0.0.1")
    other = settings.model_copy(update={"label_studio_url": backend.url})
    assert "not as Label Studio does" in check_label_studio(other).message
    nobody = settings.model_copy(update={"label_studio_url": f"http://127.0.0.1:{free_port()}"})
    assert check_label_studio(nobody).status is Status.FAIL


def test_tokens_are_told_apart(settings: Settings, personal_token: str) -> None:
    def of(token: str | None) -> Check:
        return check_token(
            Settings(
                _env_file=None,
                label_studio_url=settings.label_studio_url,
                label_studio_api_key=token,
            )
        )

    assert settings.label_studio_api_key is not None
    legacy = settings.label_studio_api_key.get_secret_value()
    assert of(legacy).message == "legacy token of demo@example.org"
    assert of(personal_token).message == "personal access token of demo@example.org"
    assert of(None).message == "LABEL_STUDIO_API_KEY is not set"
    wrong = "f" * 40
    assert of(wrong).status is Status.FAIL
    assert "Invalid token" in of(wrong).message
    assert wrong not in str(of(wrong))
    expired = of(jwt(exp=1700000000))
    assert expired.status is Status.FAIL
    assert "expired on 2023-11-14" in expired.message


def test_without_projects(settings: Settings, database: Database) -> None:
    (found,) = check_projects(settings, database)
    assert found.status is Status.WARN
    assert "medsam3 connect" in found.next_step


def test_a_connected_project(
    look: Callable[[], Check], project: LabelStudioProject, backend: RecordingBackend
) -> None:
    assert look().status is Status.OK
    assert backend.version in look().message


def test_a_backend_that_stopped_or_lost_its_password(
    look: Callable[[], Check], project: LabelStudioProject, backend: RecordingBackend
) -> None:
    backend.expect("label-studio", "another")
    assert "it refuses: 401" in look().message
    backend.close()
    assert "cannot reach this backend" in look().message


def test_a_webhook_without_the_secret(
    look: Callable[[], Check], project: LabelStudioProject, label_studio: LabelStudio
) -> None:
    (hook,) = label_studio.webhooks(project.id)
    actions = sorted(hook.actions)
    label_studio.update_webhook(hook.id, headers={WEBHOOK_SECRET_HEADER: "old"}, actions=actions)
    assert "another secret" in look().message
    label_studio.update_webhook(hook.id, headers=dict(hook.headers), actions=actions[1:])
    assert f"leaves out {actions[0]}" in look().message
    label_studio.update_webhook(
        hook.id, headers=dict(hook.headers), actions=actions, is_active=False
    )
    assert "switched off" in look().message
    label_studio.delete_webhook(hook.id)
    assert look().message == "it is not connected to this backend"
    assert look().next_step == f"`medsam3 connect {project.id}`"


def test_a_version_that_label_studio_does_not_show(
    look: Callable[[], Check], project: LabelStudioProject, backend: RecordingBackend
) -> None:
    old, backend.version = backend.version, "tiny-00000002"
    found = look()
    assert found.status is Status.WARN
    assert f"predictions of {old}, but tiny-00000002" in found.message


def test_a_config_that_can_no_longer_be_served(
    look: Callable[[], Check], project: LabelStudioProject, label_studio: LabelStudio
) -> None:
    text = '<View><Text name="t" value="$image"/><Choices name="c" toName="t">'
    label_studio.update_project(
        project.id, label_config=text + '<Choice value="A"/><Choice value="B"/></Choices></View>'
    )
    found = look()
    assert found.status is Status.FAIL
    assert "Labeling Interface" in found.next_step


def test_labels_that_the_model_does_not_understand(
    look: Callable[[], Check], project: LabelStudioProject, label_studio: LabelStudio
) -> None:
    config = BRIGHT_DISC_CONFIG.replace("</BrushLabels>", '<Label value="Опухоль"/></BrushLabels>')
    label_studio.update_project(project.id, label_config=config)
    found = look()
    assert found.status is Status.WARN
    assert found.message.startswith('Label "Опухоль": the model understands English')
    assert "Labeling Interface" in found.next_step
    prompted = config.replace('"Опухоль"', '"Опухоль" prompt="tumor"')
    label_studio.update_project(project.id, label_config=prompted)
    assert look().status is Status.OK


def test_a_project_that_was_deleted(
    look: Callable[[], Check], project: LabelStudioProject, label_studio: LabelStudio
) -> None:
    label_studio.delete(f"/api/projects/{project.id}/")
    found = look()
    assert found.status is Status.WARN
    assert "no such project" in found.message
