"""The API client against a real Label Studio."""

import time

import httpx2
import pytest

from backend.errors import LabelStudioAuthError, LabelStudioError, LabelStudioUnavailableError
from backend.label_studio import tabs
from backend.label_studio.auth import token_expiry
from backend.label_studio.client import LabelStudio, task_filter
from backend.label_studio.server import LabelStudioServer, free_port
from tests.support.annotating import AnnotatingLabelStudio
from tests.support.images import disc_file
from tests.support.label_configs import BRIGHT_DISC_CONFIG
from tests.support.projects import ProjectFactory
from tests.support.tokens import jwt


def prediction(task_id: int, version: str, score: float = 0.5) -> dict[str, object]:
    return {"task": task_id, "result": [], "score": score, "model_version": version}


def test_a_legacy_token_and_a_personal_token_are_the_same_user(
    label_studio_server: LabelStudioServer, label_studio: AnnotatingLabelStudio, personal_token: str
) -> None:
    assert label_studio.whoami().email == label_studio_server.user
    with LabelStudio(label_studio_server.url, personal_token) as client:
        assert client.whoami() == label_studio.whoami()
    assert label_studio.get("/api/version")["release"] == "1.23.2"


def test_a_personal_token_gets_one_access_token_for_many_requests(
    label_studio_server: LabelStudioServer, personal_token: str
) -> None:
    with LabelStudio(label_studio_server.url, personal_token) as client:
        client.whoami()
        first = client._auth._access
        client.whoami()
        assert client._auth._access == first
        assert 0 < (token_expiry(first) or 0) - time.time() <= 301


def test_an_access_token_that_is_no_longer_accepted_is_replaced_once(
    label_studio_server: LabelStudioServer, personal_token: str
) -> None:
    with LabelStudio(label_studio_server.url, personal_token) as client:
        client.whoami()
        damaged = client._auth._access[:-4] + "AAAA"
        client._auth._access = damaged
        assert client.whoami().email == label_studio_server.user
        assert client._auth._access != damaged


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("0" * 40, id="legacy"),
        pytest.param(jwt(exp=9999999999), id="personal"),
    ],
)
def test_a_wrong_token_is_refused_without_being_shown(
    label_studio_server: LabelStudioServer, token: str
) -> None:
    with (
        LabelStudio(label_studio_server.url, token) as client,
        pytest.raises(LabelStudioAuthError, match="LABEL_STUDIO_API_KEY") as caught,
    ):
        client.whoami()
    assert token not in str(caught.value)


def test_an_expired_personal_token_says_so(label_studio_server: LabelStudioServer) -> None:
    expired = jwt(exp=1700000000)
    with (
        LabelStudio(label_studio_server.url, expired) as client,
        pytest.raises(LabelStudioAuthError, match="expired on 2023-11-14"),
    ):
        client.whoami()


def test_nothing_listening_is_told_apart() -> None:
    with (
        LabelStudio(f"http://127.0.0.1:{free_port()}", "0" * 40, attempts=2) as client,
        pytest.raises(LabelStudioUnavailableError, match="cannot be reached"),
    ):
        client.whoami()


def test_uploaded_images_come_back_byte_for_byte(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory
) -> None:
    images = [disc_file(seed) for seed in range(3)]
    project = make_project(images)
    for task_id, image in zip(project.task_ids, images, strict=True):
        path = label_studio.task(task_id)["data"]["image"]
        assert label_studio.download(path, max_bytes=1_000_000) == image
    with pytest.raises(LabelStudioError, match="larger than 100 bytes"):
        label_studio.download(path, max_bytes=100)


def test_tasks_are_paged_in_order(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory
) -> None:
    project = make_project()
    made = label_studio.import_tasks(
        project.id, [{"data": {"image": f"/data/upload/{n}.png"}} for n in range(7)]
    )
    tasks = list(label_studio.tasks(project.id, page_size=3))
    assert [task["id"] for task in tasks] == made
    assert tasks[6] == {"id": made[6], "data": {"image": "/data/upload/6.png"}}


def test_no_task_is_passed_over_while_predictions_arrive(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory
) -> None:
    project = make_project()
    made = label_studio.import_tasks(
        project.id, [{"data": {"image": f"/data/upload/{n}.png"}} for n in range(205)]
    )
    seen = []
    for task in label_studio.tasks_without_version(project.id, "a"):
        seen.append(task["id"])
        if len(seen) == 100:
            label_studio.push_predictions(project.id, [prediction(id, "a") for id in seen])
    assert seen == made


def test_an_empty_project_has_no_tasks(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory
) -> None:
    assert list(label_studio.tasks(make_project().id)) == []


def test_more_files_than_one_form_may_carry(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory
) -> None:
    project = make_project([disc_file(0, 16, 16)] * 120)
    names = [label_studio.task(task)["data"]["image"] for task in project.task_ids[::40]]
    assert len(project.task_ids) == 120
    assert [name[-8:] for name in names] == ["0000.png", "0040.png", "0080.png"]


def test_predictions_are_pushed_found_and_deleted(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory
) -> None:
    project = make_project(images=3)
    first, second, third = project.task_ids
    assert (
        label_studio.push_predictions(
            project.id, [prediction(first, "a", 0.25), prediction(second, "b")]
        )
        == 2
    )
    (stored,) = label_studio.predictions(first)
    assert stored.model_version == "a"
    assert label_studio.model_versions(project.id) == {"a": 1, "b": 1}
    missing = label_studio.tasks_without_version(project.id, "a")
    assert [task["id"] for task in missing] == [second, third]
    label_studio.delete_prediction(stored.id)
    assert label_studio.model_versions(project.id) == {"b": 1}


def test_a_tab_of_the_data_manager_shows_what_its_filters_say(
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tabs, "_PAGE", 2)
    project, other = make_project(images=5), make_project(images=1)
    first, second, third, fourth, last = project.task_ids
    label_studio.push_predictions(
        project.id, [prediction(first, "a"), prediction(first, "b"), prediction(last, "a")]
    )
    ids = [task_filter("id", "equal", "Number", id_) for id_ in (first, third, fourth)]
    for title, conjunction, items in (
        ("All", "and", []),
        ("Some", "or", ids),
        ("Predicted", "and", [task_filter("total_predictions", "greater", "Number", 0)]),
    ):
        label_studio.create_tab(
            project.id,
            {"title": title, "filters": {"conjunction": conjunction, "items": items}},
        )
    made = {tab["data"]["title"]: tab["id"] for tab in label_studio.tabs(project.id)}
    assert tabs.tasks_in_tab(label_studio, project.id, made["All"]) == {*project.task_ids}
    assert tabs.tasks_in_tab(label_studio, project.id, made["Some"]) == {first, third, fourth}
    assert tabs.tasks_in_tab(label_studio, project.id, made["Predicted"]) == {first, last}
    with pytest.raises(LabelStudioError, match=rf"no tab {made['Some']} .* none yet"):
        tabs.tasks_in_tab(label_studio, other.id, made["Some"])
    assert second not in tabs.tasks_in_tab(label_studio, project.id, made["Some"])


def test_a_prediction_for_another_projects_task_is_refused(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory
) -> None:
    project, other = make_project(), make_project(images=1)
    with pytest.raises(LabelStudioError, match=r"\{\.\.\.\} contains invalid \"task\"") as caught:
        label_studio.push_predictions(project.id, [prediction(other.task_ids[0], "a")])
    assert caught.value.status_code == 400
    assert "'result'" not in str(caught.value)


def test_annotations_are_submitted_and_read_back(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory
) -> None:
    project = make_project(images=1)
    made = label_studio.create_annotation(project.task_ids[0], [], lead_time=3.5)
    assert label_studio.annotation(made["id"])["lead_time"] == 3.5
    assert [found["id"] for found in label_studio.annotations(project.task_ids[0])] == [made["id"]]


def test_projects_are_listed_and_changed(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory
) -> None:
    project = make_project()
    changed = label_studio.update_project(project.id, sampling="Uncertainty sampling")
    assert changed["sampling"] == "Uncertainty sampling"
    assert project.id in {found["id"] for found in label_studio.projects()}
    assert "bright disc" in label_studio.project(project.id)["label_config"]


def test_what_is_refused_is_named_with_its_status(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory
) -> None:
    with pytest.raises(LabelStudioError, match="404 to GET /api/tasks/999999") as caught:
        label_studio.task(999999)
    assert caught.value.status_code == 404
    project = make_project()
    with pytest.raises(LabelStudioError, match="model_version: Model version doesn't exist"):
        label_studio.update_project(project.id, model_version="never-seen")
    with pytest.raises(LabelStudioError, match="at least 3 characters"):
        label_studio.create_project("x", BRIGHT_DISC_CONFIG)


def test_the_token_stays_with_label_studios_own_address(
    label_studio: AnnotatingLabelStudio, label_studio_server: LabelStudioServer
) -> None:
    for url in ("http://example.org/x.png", "//example.org/x.png"):
        with pytest.raises(LabelStudioError, match="not Label Studio's own address"):
            label_studio.get(url)
    with label_studio.stream(f"{label_studio_server.url}/api/current-user/whoami") as response:
        assert response.status_code == httpx2.codes.OK
