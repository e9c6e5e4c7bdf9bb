"""The rest of a stack: asked for by command and address, drawn by the workers, pushed once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from numpy.typing import NDArray
from typer.testing import CliRunner

from backend.cli.main import app
from backend.corrections import events
from backend.errors import PropagationError
from backend.labeling import brush_rle
from backend.labeling.region_masks import region_mask
from backend.models.versions import default_version
from backend.predictions.inference import Inference
from backend.predictions.jobs import predict_chunk
from backend.predictions.propagations import (
    SETTLING_S,
    cancel,
    latest,
    request_propagation,
    start_propagations,
    state_of,
)
from backend.predictions.recover import recover
from backend.predictions.tables import StackPropagation
from backend.processes.queues import QueueName, queue
from backend.services import Services
from backend.settings import Settings, get_settings
from backend.tables import Suggestion, SuggestionState, now
from backend.training.triggers import ingest_events
from backend.volumes.tables import Stack
from tests.support.images import png
from tests.support.masks import dice
from tests.support.processes import StartWorker
from tests.support.stand_in_label_studio import StandInLabelStudio

CONFIG = """<View><Image name="pages" valueList="$images"/>
  <BrushLabels name="mask" toName="pages"><Label value="Ball"/><Label value="Ring"/></BrushLabels>
  <RectangleLabels name="box" toName="pages" smart="true">
    <Label value="Ball" propagate="true"/></RectangleLabels></View>"""
PAGES, SIDE = 7, 64


def ball(place: int) -> NDArray[np.bool_]:
    """The true mask of a page: it grows, shrinks and moves, and is on pages 1 to 5 only."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    radius = 0 if place in (0, 6) else 16 - 3 * abs(place - 3)
    middle = 24 + 2 * place
    return np.asarray(np.hypot(columns - middle, rows - 30) < radius)


def page(place: int) -> bytes:
    grain = np.random.default_rng(place).normal(60, 9, (SIDE, SIDE))
    picture = np.where(ball(place), grain + 110, grain).clip(0, 255).astype(np.uint8)
    return png(np.repeat(picture[:, :, None], 3, axis=2))


def drawn(place: int, mask: NDArray[np.bool_], **fields: Any) -> dict[str, Any]:
    return {
        "id": f"hand{place}",
        "from_name": "mask",
        "to_name": "pages",
        "type": "brushlabels",
        "original_width": SIDE,
        "original_height": SIDE,
        "image_rotation": 0,
        "item_index": place,
        "origin": "manual",
        "value": {"format": "rle", "rle": brush_rle.encode(mask), "brushlabels": ["Ball"]},
        **fields,
    }


@pytest.fixture
def label_studio() -> Iterator[StandInLabelStudio]:
    with StandInLabelStudio(CONFIG) as label_studio:
        yield label_studio


@pytest.fixture
def settings(data_dir: Path, label_studio: StandInLabelStudio) -> Settings:
    return Settings(
        data_dir=data_dir,
        lease_s=2,
        predict_budget_s=95,
        label_studio_url=label_studio.url,
        label_studio_api_key="0" * 40,
        propagate_on_submit=True,
    )


@pytest.fixture
def stack(label_studio: StandInLabelStudio) -> int:
    """A task with seven pages, on the fourth of which the ball is drawn."""
    references = [f"/data/upload/7/page{place}.png" for place in range(PAGES)]
    task_id = label_studio.add_task(b"", images=references)
    label_studio.images |= {at: page(place) for place, at in enumerate(references)}
    label_studio.annotate(task_id, [drawn(3, ball(3)), drawn(5, ball(4), origin="prediction")])
    return task_id


def only_prediction(label_studio: StandInLabelStudio) -> dict[str, Any]:
    (prediction,) = label_studio.predictions.values()
    return prediction


def check(prediction: dict[str, Any]) -> None:
    """The corrected slice as it is, and the ball where it is on the others."""
    by_page = {region["item_index"]: region for region in prediction["result"]}
    assert sorted(by_page) == [1, 2, 3, 4, 5]
    assert len(prediction["result"]) == 5
    assert by_page[3]["value"] == drawn(3, ball(3))["value"]
    assert by_page[3]["id"] != "hand3"
    for place, region in by_page.items():
        assert dice(region_mask(region, SIDE, SIDE), ball(place)) > 0.8, place
    assert 0 < prediction["score"] < 1


def test_the_command_draws_the_rest_by_the_workers(
    services: Services,
    label_studio: StandInLabelStudio,
    stack: int,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEDSAM3_DATA_DIR", str(services.settings.data_dir))
    monkeypatch.setenv("LABEL_STUDIO_URL", label_studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    get_settings.cache_clear()
    for name in ("gpu", "ingest"):
        start_worker(name)
    run = CliRunner().invoke(app, ["propagate", str(stack), "--from-slice", "3", "--json"])
    get_settings.cache_clear()
    assert run.exit_code == 0, run.output
    state = json.loads(run.stdout)
    assert (state["state"], state["done"], state["total"], state["delivered"]) == (
        "done",
        4,
        PAGES,
        True,
    )
    check(only_prediction(label_studio))


def test_the_same_wish_is_one_row_and_ends_where_it_is_cancelled(
    services: Services, web: FlaskClient, label_studio: StandInLabelStudio, stack: int
) -> None:
    wish = {"task": stack, "slices": [3], "first": 2}
    made = [web.post("/api/v1/propagations", json=wish) for _ in range(2)]
    assert [answer.status_code for answer in made] == [201, 200]
    id_ = made[0].json["id"]  # type: ignore[index]
    assert queue(services.redis, QueueName.INGEST).job_ids == [f"propagate-{id_}"]
    # A job that was lost is queued again; one that comes twice makes one prediction.
    services.redis.flushall()
    assert recover(services).propagations == 0
    with services.database.session() as session:
        session.get_one(StackPropagation, id_).created_at -= timedelta(seconds=2 * SETTLING_S)
    assert recover(services).propagations == 1
    for _ in range(2):
        start_propagations([id_])
    with services.database.reading() as session:
        (row,) = session.query(Suggestion).all()
    # A worker that is killed in the middle of it leaves it to the next, with all the time it needs.
    services.redis.flushall()
    with services.database.session() as session:
        taken = session.get_one(Suggestion, row.id)
        taken.state, taken.lease_until = SuggestionState.RUNNING, now() - timedelta(minutes=1)
    assert recover(services).enqueued == 1
    (job,) = queue(services.redis, QueueName.GPU).jobs
    assert (job.args, job.timeout) == ([[row.id]], -1)
    cancelled = web.post(f"/api/v1/propagations/{id_}/cancel").json
    predict_chunk([row.id])
    after = web.get(f"/api/v1/propagations/{id_}").json
    assert cancelled is not None
    assert after is not None
    assert cancelled["state"] == after["state"] == "cancelled"
    assert not label_studio.predictions
    assert web.get(f"/api/v1/propagations?task={stack}").json == {"propagations": [after]}
    assert web.post("/api/v1/propagations", json=wish).status_code == 201, "asked for again"
    assert web.post("/api/v1/propagations", json={"task": stack, "first": 5, "last": 2}).json == {
        "error": "the first slice, 5, comes after the last one, 2"
    }
    assert web.post("/api/v1/propagations/abc/cancel").status_code == 409


def test_what_cannot_be_drawn_is_said_by_name(
    services: Services, label_studio: StandInLabelStudio, stack: int
) -> None:
    single = label_studio.add_task(page(3), images=["/data/upload/7/page3.png"])
    bare = label_studio.add_task(b"", images=label_studio.tasks[stack]["data"]["images"])
    odd = label_studio.add_task(b"", images=label_studio.tasks[stack]["data"]["images"])
    label_studio.annotate(odd, [{**drawn(1, ball(1)), "item_index": "one"}])
    wishes = {
        request_propagation(services, task, slices)[0]: sentence
        for task, slices, sentence in (
            (stack, [6], "nothing is drawn on slice 6"),
            (stack, [9], "there is no slice 9: the task has 0 to 6"),
            (single, [0], "the task is no stack"),
            (odd, None, "unexpected ValueError; the worker's log has the traceback"),
            (bare, None, "no annotation and no draft"),
            (9999, [1], "Label Studio has no task 9999"),
        )
    }
    start_propagations(list(wishes))
    for id_, sentence in wishes.items():
        state = state_of(services, id_)
        assert state.state == "failed"
        assert sentence in (state.error or "")
    with pytest.raises(PropagationError, match="there is no propagation"):
        cancel(services, "nothing")


def test_a_submitted_stack_is_drawn_from_what_was_drawn_by_hand(
    services: Services, label_studio: StandInLabelStudio, stack: int
) -> None:
    single = label_studio.add_task(page(3))
    annotation = label_studio.annotate(stack, [drawn(2, ball(2))])
    with services.database.session() as session:
        session.add(Stack(project_id=7, task_id=stack, source="", source_sha256="", geometry="{}"))
    for task, id_ in ((stack, annotation), (single, annotation)):
        sent = {"action": "ANNOTATION_UPDATED", "annotation": {"id": id_}, "task": {"id": task}}
        ingest_events([events.receive(services, sent)])
    (state,) = latest(services, None, 10)
    assert state.task == stack
    start_propagations([state.id])
    with services.database.reading() as session:
        (row,) = session.query(Suggestion).all()
    assert row.context is not None
    assert row.context["slices"] == [2]


def test_a_smart_box_goes_on_to_the_other_pages(services: Services, stack: int) -> None:
    references = [f"/data/upload/7/page{place}.png" for place in range(PAGES)]
    box = {
        **drawn(3, ball(3)),
        "from_name": "box",
        "type": "rectanglelabels",
        "value": {"x": 20, "y": 20, "width": 55, "height": 55, "rectanglelabels": ["Ball"]},
    }
    row = Suggestion(
        project_id=7,
        task_id=stack,
        task_data={"images": references},
        model_version=default_version(services),
        interactive=True,
        context={"result": [box]},
    )
    answer = Inference(services).predict(row, CONFIG)
    pages = [region["item_index"] for region in answer.regions]
    assert pages[0] == 3
    assert {2, 4} <= set(pages)
    assert len(set(pages)) == len(pages)
    assert {region["from_name"] for region in answer.regions} == {"mask"}
    here = answer.regions[pages.index(4)]
    assert dice(region_mask(here, SIDE, SIDE), ball(4)) > 0.6
