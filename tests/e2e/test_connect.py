"""Connecting projects of a real Label Studio, and what it then sends with every call."""

import base64
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from backend.errors import LabelConfigError, LabelStudioError, SettingsError
from backend.label_studio.client import LabelStudio
from backend.label_studio.connect import (
    TAB,
    UNCERTAINTY_SAMPLING,
    UNIFORM_SAMPLING,
    WEBHOOK_ACTIONS,
    StepOutcome,
    announce_version,
    checked_url,
    connect,
)
from backend.label_studio.server import REPOSITORY, LabelStudioServer, free_port
from backend.services import WEBHOOK_SECRET_HEADER, Credentials, load_credentials
from backend.settings import Settings
from tests.support.annotating import AnnotatingLabelStudio
from tests.support.editor import log_in
from tests.support.label_configs import BRIGHT_DISC_CONFIG
from tests.support.projects import ProjectFactory
from tests.support.recording_backend import RecordingBackend


@pytest.fixture
def credentials(settings: Settings) -> Credentials:
    return load_credentials(settings)


@pytest.fixture
def backend(credentials: Credentials) -> Iterator[RecordingBackend]:
    with RecordingBackend(credentials.user, credentials.password) as backend:
        yield backend


def test_a_fresh_project_is_connected_and_a_second_time_changes_nothing(
    settings: Settings,
    credentials: Credentials,
    backend: RecordingBackend,
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
) -> None:
    project = make_project(images=1)
    report = connect(settings, project.id, backend.url)
    assert {step.what: step.outcome for step in report.steps} == {
        "backend": StepOutcome.CREATED,
        "webhook": StepOutcome.CHANGED,
        "title": StepOutcome.CHANGED,
        "project": StepOutcome.CHANGED,
        "tab": StepOutcome.CREATED,
    }
    (changed,) = (step.message for step in report.steps if step.what == "project")
    assert "model_version was empty, sampling was Sequential" in changed

    (connected,) = label_studio.ml_backends(project.id)
    assert connected.is_interactive
    assert connected.state == "CO"
    assert connected.title == connected.model_version == report.model_version == backend.version
    (hook,) = label_studio.webhooks(project.id)
    assert hook.url == f"{backend.url}/webhook"
    assert hook.headers == {WEBHOOK_SECRET_HEADER: credentials.webhook_secret}
    assert hook.actions == WEBHOOK_ACTIONS
    assert not hook.send_for_all_actions
    found = label_studio.project(project.id)
    assert found["model_version"] == backend.version
    assert found["sampling"] == "Uniform sampling"

    again = connect(settings, project.id, backend.url + "/")
    assert {step.outcome for step in again.steps} == {StepOutcome.UNCHANGED}
    assert [tab["data"]["title"] for tab in label_studio.tabs(project.id)] == [TAB]
    told = str(asdict(again)) + str(asdict(report))
    assert credentials.password not in told
    assert credentials.webhook_secret not in told


def test_the_password_goes_with_every_call_and_the_secret_with_every_event(
    settings: Settings,
    credentials: Credentials,
    backend: RecordingBackend,
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
) -> None:
    project = make_project(images=2)
    connect(settings, project.id, backend.url)
    label_studio.get(f"/api/projects/{project.id}/next")
    label_studio.get(f"/api/ml/{label_studio.ml_backends(project.id)[0].id}/versions")
    label_studio.create_annotation(project.task_ids[0], [])
    basic = base64.b64encode(f"{credentials.user}:{credentials.password}".encode()).decode()
    for path in ("/setup", "/predict", "/versions"):
        assert backend.to(path), path
        assert {call.headers["authorization"] for call in backend.to(path)} == {f"Basic {basic}"}
    events = backend.to("/webhook")
    assert "ANNOTATION_CREATED" in {event.body["action"] for event in events}
    for event in events:
        assert event.headers[WEBHOOK_SECRET_HEADER.lower()] == credentials.webhook_secret
        assert "authorization" not in event.headers

    # The button comes from Label Studio itself, with the password and without the header.
    label_studio.post(f"/api/ml/{label_studio.ml_backends(project.id)[0].id}/train", {})
    training = backend.to("/webhook")[-1]
    assert training.body["action"] == "START_TRAINING"
    assert training.headers["authorization"] == f"Basic {basic}"
    assert WEBHOOK_SECRET_HEADER.lower() not in training.headers


def test_an_open_task_is_predicted_live_and_a_stored_prediction_is_used(
    settings: Settings,
    backend: RecordingBackend,
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
) -> None:
    project = make_project(images=2)
    connect(settings, project.id, backend.url)
    opened = label_studio.get(f"/api/projects/{project.id}/next")
    assert [found["model_version"] for found in opened["predictions"]] == [backend.version]
    assert len(backend.to("/predict")) == 1
    again = label_studio.get(f"/api/projects/{project.id}/next")
    assert again["id"] == opened["id"]
    assert len(backend.to("/predict")) == 1


def test_the_least_certain_task_is_served_first(
    settings: Settings,
    backend: RecordingBackend,
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
) -> None:
    project = make_project(images=3)
    connect(settings, project.id, backend.url, sampling=UNCERTAINTY_SAMPLING)
    scores = dict(zip(project.task_ids, (0.9, 0.2, 0.6), strict=True))
    label_studio.push_predictions(
        project.id,
        [
            {"task": task, "result": [], "score": score, "model_version": backend.version}
            for task, score in scores.items()
        ],
    )
    assert label_studio.get(f"/api/projects/{project.id}/next")["id"] == project.task_ids[1]
    assert backend.to("/predict") == []


def test_a_new_version_is_announced(
    settings: Settings,
    credentials: Credentials,
    backend: RecordingBackend,
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
) -> None:
    project = make_project(images=1)
    with pytest.raises(LabelStudioError, match=f"medsam3 connect {project.id}"):
        announce_version(label_studio, project.id, credentials, UNCERTAINTY_SAMPLING)
    connect(settings, project.id, backend.url, client=label_studio, sampling=None)
    backend.version = "tiny-00000002"
    told = announce_version(label_studio, project.id, credentials, UNCERTAINTY_SAMPLING)
    assert told == "tiny-00000002"
    found = label_studio.project(project.id)
    assert found["model_version"] == "tiny-00000002"
    assert found["sampling"] == "Sequential sampling", "that order connect does not set"
    assert label_studio.ml_backends(project.id)[0].title == "tiny-00000002"
    connect(settings, project.id, backend.url, client=label_studio)
    assert label_studio.project(project.id)["sampling"] == UNIFORM_SAMPLING
    announce_version(label_studio, project.id, credentials, UNCERTAINTY_SAMPLING)
    assert label_studio.project(project.id)["sampling"] == UNCERTAINTY_SAMPLING


def test_a_backend_that_moved_keeps_its_place(
    settings: Settings,
    credentials: Credentials,
    backend: RecordingBackend,
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
) -> None:
    project = make_project()
    with RecordingBackend(credentials.user, credentials.password) as old:
        first = connect(settings, project.id, old.url)
    moved = connect(settings, project.id, backend.url)
    assert moved.backend_id == first.backend_id
    assert f"was {old.url}" in moved.steps[0].message
    assert [found.url for found in label_studio.ml_backends(project.id)] == [backend.url]
    assert [hook.url for hook in label_studio.webhooks(project.id)] == [f"{backend.url}/webhook"]


def test_changed_secrets_are_put_right(
    settings: Settings,
    backend: RecordingBackend,
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
) -> None:
    project = make_project()
    connect(settings, project.id, backend.url)
    other = settings.model_copy(update={"data_dir": settings.data_dir / "other"})
    with pytest.raises(LabelStudioError, match="does not take our password"):
        connect(other, project.id, backend.url)
    secrets = load_credentials(other)
    backend.expect(secrets.user, secrets.password)
    report = connect(other, project.id, backend.url)
    assert {step.what for step in report.steps if step.outcome is StepOutcome.CHANGED} == {
        "backend",
        "webhook",
    }
    (hook,) = label_studio.webhooks(project.id)
    assert hook.headers == {WEBHOOK_SECRET_HEADER: secrets.webhook_secret}


def test_another_backend_in_first_place_is_pointed_out(
    settings: Settings,
    backend: RecordingBackend,
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
) -> None:
    project = make_project()
    with RecordingBackend("someone", "else") as other:
        label_studio.create_ml_backend(
            project.id,
            other.url,
            title="older",
            auth_method="BASIC_AUTH",
            basic_auth_user="someone",
            basic_auth_pass="else",
        )
        report = connect(settings, project.id, backend.url)
    (warning,) = [step for step in report.steps if step.outcome is StepOutcome.WARNING]
    assert "'older'" in warning.message
    assert label_studio.project(project.id)["model_version"] == backend.version


def test_a_backend_that_is_down_is_explained(
    settings: Settings, make_project: ProjectFactory
) -> None:
    with pytest.raises(LabelStudioError, match="check that it runs"):
        connect(settings, make_project().id, f"http://127.0.0.1:{free_port()}")


def test_a_config_that_cannot_be_served_is_refused_before_anything_changes(
    settings: Settings,
    backend: RecordingBackend,
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
) -> None:
    text_only = """
    <View>
      <Text name="text" value="$text"/>
      <Choices name="choice" toName="text"><Choice value="A"/><Choice value="B"/></Choices>
    </View>
    """
    project = make_project(label_config=text_only)
    with pytest.raises(LabelConfigError):
        connect(settings, project.id, backend.url)
    assert label_studio.ml_backends(project.id) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://web:9090", "network alias"),
        ("http://my_backend.internal:9090", "without an underscore"),
        ("web:9090", "not an http"),
        ("", "not an http"),
    ],
)
def test_an_address_that_gets_no_events_is_refused(url: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        checked_url(url)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "medsam3.internal", "[::1]"])
def test_label_studio_takes_events_for_the_addresses_that_we_take(
    host: str, label_studio: AnnotatingLabelStudio, make_project: ProjectFactory
) -> None:
    url = checked_url(f"http://{host}:9090/")
    hook = label_studio.create_webhook(make_project().id, f"{url}/webhook")
    assert hook.url == f"http://{host}:9090/webhook"


def test_label_studios_guard_against_private_addresses_is_explained(
    settings: Settings, backend: RecordingBackend, tmp_path: Path
) -> None:
    guarded = LabelStudioServer(
        tmp_path / "guarded",
        template_dir=REPOSITORY / ".cache" / "label-studio",
        allow_private_backends=False,
    )
    with guarded, LabelStudio(guarded.url, guarded.token) as client:
        project = client.create_project("guarded", BRIGHT_DISC_CONFIG)
        with pytest.raises(LabelStudioError, match="LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false"):
            connect(settings, project["id"], backend.url, client=client)


def test_the_tab_shows_the_least_certain_task_first(
    browser: Browser,
    settings: Settings,
    backend: RecordingBackend,
    label_studio_server: LabelStudioServer,
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
) -> None:
    config = (REPOSITORY / "label_config" / "all_smart_tools.xml").read_text()
    project = make_project(images=3, label_config=config)
    steps = connect(settings, project.id, backend.url).steps
    assert [step.what for step in steps if step.outcome == StepOutcome.BY_HAND] == [
        "Auto-Annotation"
    ]
    scores = dict(zip(project.task_ids, (0.9, 0.2, 0.6), strict=True))
    label_studio.push_predictions(
        project.id,
        [
            {"task": task, "result": [], "score": score, "model_version": backend.version}
            for task, score in scores.items()
        ],
    )
    with browser.new_context(viewport={"width": 1400, "height": 800}) as context:
        page = context.new_page()
        log_in(page, label_studio_server)
        page.goto(f"{label_studio_server.url}/projects/{project.id}/data")
        expect(page.get_by_text("Prediction score").first).to_be_visible(timeout=60_000)
        rows = page.locator("[class*=table-row]")
        expect(rows).to_have_count(3)
        shown = [rows.nth(row).inner_text().split()[-2:] for row in range(3)]
    assert shown == [[score, backend.version] for score in ("0.200", "0.600", "0.900")]
