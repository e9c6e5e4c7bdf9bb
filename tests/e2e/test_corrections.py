"""Corrections made in a real Label Studio, by its API and in the browser, are in the store."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from backend.corrections.ingest import open_ingest
from backend.corrections.mask_store import MaskStore
from backend.corrections.revisions import current_state, history
from backend.corrections.submissions import read_annotation
from backend.corrections.sync import sync_project
from backend.corrections.task_facts import FactsWritten, write_facts
from backend.database import Database
from backend.label_studio.client import task_filter
from backend.label_studio.connect import connect
from backend.label_studio.server import LabelStudioServer
from backend.labeling.region_masks import region_mask
from backend.services import open_services
from backend.settings import Settings
from tests.support.annotating import AnnotatingLabelStudio
from tests.support.editor import brush_stroke, delete_annotation, regions, submit
from tests.support.processes import BackendServer
from tests.support.projects import LabelStudioProject, ProjectFactory
from tests.support.regions import brush

HEIGHT, WIDTH = 96, 128


@pytest.fixture
def connected(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory, backend: BackendServer
) -> LabelStudioProject:
    """Three tasks, connected to the running backend."""
    made = make_project(images=3)
    connect(backend.settings, made.id, backend.url, client=label_studio)
    return made


@pytest.fixture
def stored(backend: BackendServer) -> Iterator[Callable[[int], list[dict[str, Any]]]]:
    """What the running backend's store says about a project."""
    database = Database(backend.settings.database)

    def read(project_id: int) -> list[dict[str, Any]]:
        with database.reading() as session:
            return list(current_state(session, project_id))

    yield read
    database.dispose()


def submitted(label_studio: AnnotatingLabelStudio, project_id: int) -> list[dict[str, Any]]:
    """All annotations of a project as the API gives them, skips included."""
    tasks = label_studio.tasks(project_id, include=("id", "annotations"))
    ids = sorted(one["id"] for task in tasks for one in task["annotations"])
    return [label_studio.annotation(id_) for id_ in ids]


def assert_equal(found: list[dict[str, Any]], sent: list[dict[str, Any]], masks: MaskStore) -> None:
    """The store says what the API says, and its masks are those that were drawn, bit by bit."""
    assert [one["annotation"] for one in found] == [one["id"] for one in sent]
    for one, annotation in zip(found, sent, strict=True):
        assert (one["state"], one["reason"]) == ("valid", None)
        record = read_annotation(annotation)
        revision = one["revision"]
        assert one["content_hash"] == record.content_hash()
        assert revision["was_cancelled"] == annotation["was_cancelled"]
        assert revision["lead_time"] == annotation["lead_time"]
        unions: dict[str, np.ndarray] = {}
        for region in annotation["result"]:
            size = region["original_height"], region["original_width"]
            mask = region_mask(region, *size)
            for label in region["value"]["brushlabels"]:
                unions[label] = unions.get(label, False) | mask
        kept = {mask["label"]: masks.get(mask["mask_hash"]) for mask in revision["concepts"]}
        assert kept.keys() == unions.keys()
        assert all(np.array_equal(kept[label], unions[label]) for label in unions)


def wait_until_equal(
    read: Callable[[], list[dict[str, Any]]], sent: list[dict[str, Any]], masks: MaskStore
) -> None:
    """Webhooks are on their way; what the store says in the end counts."""
    versions = [(one["id"], read_annotation(one).content_hash()) for one in sent]
    deadline = time.monotonic() + 60
    while (found := [(one["annotation"], one["content_hash"]) for one in read()]) != versions:
        assert time.monotonic() < deadline, (found, versions)
        time.sleep(0.2)
    assert_equal(read(), sent, masks)


def drawn(id_: str, seed: int) -> dict[str, Any]:
    """A region of noise, which no two seeds share."""
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.3
    return brush(id_, mask, "Bright", control="mask")


def test_made_edited_skipped_and_deleted_through_the_api(
    connected: LabelStudioProject,
    label_studio: AnnotatingLabelStudio,
    backend: BackendServer,
    stored: Callable[[int], list[dict[str, Any]]],
) -> None:
    first, second, third = connected.task_ids
    masks = MaskStore(backend.settings.storage)

    def check() -> None:
        wait_until_equal(lambda: stored(connected.id), submitted(label_studio, connected.id), masks)

    made = label_studio.create_annotation(first, [drawn("a", 1), drawn("b", 2)], lead_time=7.5)
    label_studio.create_annotation(second, [drawn("c", 3)])
    label_studio.create_annotation(third, [], was_cancelled=True)
    check()
    label_studio.patch(
        f"/api/annotations/{made['id']}/", {"result": [drawn("a", 4)], "lead_time": 20.0}
    )
    label_studio.patch(f"/api/annotations/{made['id']}/", {"ground_truth": True})
    check()
    gone = label_studio.create_annotation(first, [drawn("d", 5)])
    check()
    label_studio.delete(f"/api/annotations/{gone['id']}/")
    label_studio.delete(f"/api/tasks/{second}/")
    check()
    assert len(stored(connected.id)) == 2


def test_annotations_made_from_predictions_in_bulk(
    connected: LabelStudioProject,
    label_studio: AnnotatingLabelStudio,
    backend: BackendServer,
    stored: Callable[[int], list[dict[str, Any]]],
) -> None:
    task = connected.task_ids[0]
    label_studio.push_predictions(
        connected.id,
        [{"task": task, "result": [drawn("p", 6)], "score": 0.5, "model_version": "elsewhere"}],
    )
    answer = httpx2.post(
        f"{label_studio.url}/api/dm/actions",
        params={"id": "predictions_to_annotations", "project": connected.id},
        headers={
            "Authorization": f"Token {backend.settings.label_studio_api_key.get_secret_value()}"
        },
        json={
            "selectedItems": {"all": False, "included": [task]},
            "model_version": "elsewhere",
        },
    )
    assert answer.status_code == 200
    wait_until_equal(
        lambda: stored(connected.id),
        submitted(label_studio, connected.id),
        MaskStore(backend.settings.storage),
    )
    (one,) = stored(connected.id)
    assert one["revision"]["from_prediction"]
    assert one["revision"]["model_version"] == "elsewhere"
    assert [row["outcome"] for row in one["revision"]["outcomes"]] == ["accepted"]


def test_one_sync_brings_in_a_project_that_was_never_heard_of(
    make_project: ProjectFactory,
    label_studio: AnnotatingLabelStudio,
    label_studio_server: LabelStudioServer,
    tmp_path: Path,
) -> None:
    made = make_project(images=3)
    first, second, third = made.task_ids
    kept = label_studio.create_annotation(first, [drawn("a", 1)])
    label_studio.create_annotation(first, [], was_cancelled=True)
    label_studio.create_annotation(second, [drawn("b", 2)])
    label_studio.create_annotation(third, [], was_cancelled=True)
    services = open_services(
        Settings(
            data_dir=tmp_path,
            label_studio_url=label_studio_server.url,
            label_studio_api_key=label_studio_server.token,
        )
    )
    masks = MaskStore(services.settings.storage)

    def check() -> None:
        with services.database.reading() as session:
            found = list(current_state(session, made.id))
        assert_equal(found, submitted(label_studio, made.id), masks)

    with open_ingest(services) as ingest:
        assert sync_project(ingest, made.id).revisions == 4
        check()
        label_studio.patch(f"/api/annotations/{kept['id']}/", {"result": [drawn("a", 9)]})
        label_studio.delete(f"/api/tasks/{second}/")
        label_studio.delete(f"/api/tasks/{third}/")
        report = sync_project(ingest, made.id)
        assert (report.revisions, report.deleted) == (1, 2)
        check()
        assert sync_project(ingest, made.id).repaired == 0
        label_studio.delete(f"/api/projects/{made.id}/")
        assert sync_project(ingest, made.id).deleted == 2
    services.close()


def test_facts_are_written_into_the_tasks_meta(
    make_project: ProjectFactory, label_studio: AnnotatingLabelStudio, settings: Settings
) -> None:
    made = make_project(images=3)
    first, second, third = made.task_ids
    label_studio.create_annotation(first, [drawn("a", 1)])
    gone = label_studio.create_annotation(second, [drawn("b", 2)])
    label_studio.patch(f"/api/tasks/{first}/", {"meta": {"scanner": "A"}})
    services = open_services(settings)

    def write() -> FactsWritten:
        with open_ingest(services) as ingest:
            sync_project(ingest, made.id)
        return write_facts(services, label_studio, made.id)

    assert write() == FactsWritten(tasks=2, changed=2)
    meta = label_studio.task(first)["meta"]
    assert meta.pop("medsam3_split") in ("train", "val")
    assert meta == {"scanner": "A", "medsam3_outcome": "added"}
    added = task_filter("meta", "contains", "String", "added")
    assert [task["id"] for task in label_studio.tasks(made.id, filters=[added])] == [first, second]

    assert write() == FactsWritten(tasks=2, changed=0)
    label_studio.delete(f"/api/annotations/{gone['id']}/")
    label_studio.patch(f"/api/tasks/{third}/", {"meta": ["not", "an", "object"]})
    assert write() == FactsWritten(tasks=1, changed=1, left_out=(third,))
    assert not label_studio.task(second)["meta"]
    assert label_studio.task(third)["meta"] == ["not", "an", "object"]
    services.close()


def test_drawn_edited_skipped_and_deleted_in_the_browser(
    page: Page,
    brain_project: LabelStudioProject,
    label_studio: AnnotatingLabelStudio,
    label_studio_server: LabelStudioServer,
    backend: BackendServer,
    stored: Callable[[int], list[dict[str, Any]]],
) -> None:
    masks = MaskStore(backend.settings.storage)
    first, second = brain_project.task_ids

    def check() -> None:
        wait_until_equal(
            lambda: stored(brain_project.id), submitted(label_studio, brain_project.id), masks
        )

    (prediction,) = label_studio.task(first)["predictions"]
    rows = regions(page).count()
    brush_stroke(page)
    expect(regions(page)).not_to_have_count(rows)
    submit(page)
    check()
    (one,) = stored(brain_project.id)
    (annotation,) = submitted(label_studio, brain_project.id)
    origins = [region["origin"] for region in annotation["result"]]
    outcomes = [row["outcome"] for row in one["revision"]["outcomes"]]
    assert outcomes.count("accepted") == len(prediction["result"]) == origins.count("prediction")
    assert outcomes.count("added") == origins.count("manual") == 1
    assert one["revision"]["lead_time"] > 0

    page.reload()
    page.wait_for_selector(".konvajs-content canvas", timeout=60_000)
    expect(regions(page).first).to_be_visible(timeout=60_000)
    regions(page).last.click()
    page.keyboard.press("Backspace")
    with page.expect_response(lambda answer: "/annotations" in answer.url) as answered:
        page.locator("button", has_text="Update").click()
    assert answered.value.ok
    check()
    (one,) = stored(brain_project.id)
    assert len(one["revision"]["regions"]) == len(prediction["result"])
    database = Database(backend.settings.database)
    with database.reading() as session:
        assert len(history(session, one["annotation"])) == 2
    database.dispose()

    # The label stream offers the task that is left, and has the button for skipping it.
    page.goto(f"{label_studio_server.url}/projects/{brain_project.id}/data?labeling=1")
    page.wait_for_selector(".konvajs-content canvas", timeout=60_000)
    with page.expect_response(lambda answer: "/annotations" in answer.url) as answered:
        page.locator("button", has_text="Skip").click()
    assert answered.value.ok
    check()
    found = {row["task"]: row["revision"]["was_cancelled"] for row in stored(brain_project.id)}
    assert found == {first: False, second: True}

    page.goto(f"{label_studio_server.url}/projects/{brain_project.id}/data?task={first}")
    page.wait_for_selector(".konvajs-content canvas", timeout=60_000)
    delete_annotation(page)
    check()
    assert [row["task"] for row in stored(brain_project.id)] == [second]
