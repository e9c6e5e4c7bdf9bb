"""Predictions as Label Studio asks for them, keeps them and shows them."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.label_studio.connect import connect
from backend.label_studio.server import LabelStudioServer
from backend.people import audit
from backend.predictions.preannotate import preannotate
from backend.services import open_services
from tests.support.annotating import AnnotatingLabelStudio
from tests.support.processes import BackendServer
from tests.support.projects import ProjectFactory

EVERYTHING = {
    "selectedItems": {"all": True, "excluded": []},
    "filters": {"conjunction": "and", "items": []},
    "ordering": [],
}


def versions_by_task(client: AnnotatingLabelStudio, project_id: int) -> dict[int, Counter[str]]:
    """How many predictions of each version every task holds."""
    return {
        task["id"]: Counter(one["model_version"] for one in task["predictions"])
        for task in client.tasks(project_id, include=("id", "predictions"))
    }


@pytest.fixture
def slow_backend(
    tmp_path_factory: pytest.TempPathFactory, label_studio_server: LabelStudioServer
) -> Iterator[BackendServer]:
    """A backend that may take two seconds per request: large batches go out by push."""
    server = BackendServer(
        tmp_path_factory.mktemp("s"), label_studio_server, MEDSAM3_PREDICT_BUDGET_S="2"
    )
    server.start()
    yield server
    server.stop()


@pytest.mark.timeout(900)
def test_retrieving_300_predictions_loses_none_and_makes_none_twice(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory, slow_backend: BackendServer
) -> None:
    project = make_project(images=300)
    report = connect(slow_backend.settings, project.id, slow_backend.url, client=label_studio)
    started = time.monotonic()
    answer = label_studio.post(
        f"/api/dm/actions?id=retrieve_tasks_predictions&project={project.id}", EVERYTHING
    )
    # The budget of the request, with what Label Studio itself needs for 300 tasks.
    assert time.monotonic() - started < 60
    assert answer["processed_items"] == 300
    expected = {task_id: Counter({report.model_version: 1}) for task_id in project.task_ids}
    arrived, progress = 0, time.monotonic()
    while (found := versions_by_task(label_studio, project.id)) != expected:
        assert all(max(one.values(), default=0) <= 1 for one in found.values())
        if (so_far := sum(map(bool, found.values()))) > arrived:
            arrived, progress = so_far, time.monotonic()
        # A busy machine may take its time, but it goes on.
        assert time.monotonic() < progress + 90, Counter(map(str, found.values()))
        time.sleep(1)


def test_opening_a_task_predicts_it_and_opening_it_again_does_not(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory, backend: BackendServer
) -> None:
    project = make_project(images=1)
    report = connect(backend.settings, project.id, backend.url, client=label_studio)
    for _ in range(2):
        task = label_studio.get(f"/api/tasks/{project.task_ids[0]}", project=project.id)
        assert [one["model_version"] for one in task["predictions"]] == [report.model_version]


def test_preannotating_skips_what_is_predicted_and_names_what_fails(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory, backend: BackendServer
) -> None:
    project = make_project(images=3)
    (broken,) = label_studio.import_tasks(
        project.id, [{"data": {"image": f"/data/upload/{project.id}/missing.png"}}]
    )
    report = connect(backend.settings, project.id, backend.url, client=label_studio)
    services = open_services(backend.settings)
    first = preannotate(services, project.id, timeout_s=120)
    assert (first.progress.predicted, first.progress.failed) == (3, 1)
    assert list(first.errors) == [broken]
    second = preannotate(services, project.id, timeout_s=120)
    assert (second.progress.total, second.progress.failed) == (1, 1)
    with services.database.reading() as session:
        entries = audit.entries(session)
    done = [entry.action for entry in entries if entry.project_id == project.id]
    assert done == [audit.AuditedAction.PREANNOTATE] * 2
    services.close()
    found = versions_by_task(label_studio, project.id)
    assert found.pop(broken) == Counter()
    assert set(map(str, found.values())) == {str(Counter({report.model_version: 1}))}


def test_every_template_is_accepted_by_label_studio_and_by_connect(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory, backend: BackendServer
) -> None:
    templates = sorted((Path(__file__).parents[2] / "label_config").glob("*.xml"))
    assert len(templates) >= 6
    for template in templates:
        project = make_project(label_config=template.read_text())
        report = connect(backend.settings, project.id, backend.url, client=label_studio)
        assert report.steps[0].outcome == "created", template.name
