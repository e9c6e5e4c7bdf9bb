"""/predict through a real queue and a real worker: in time, late, dead workers, dead Redis."""

import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select

from backend.predictions.lanes import MOST_AT_MODEL
from backend.predictions.recover import recover
from backend.predictions.requests import PredictRequest, request_previews, request_pushes
from backend.processes.queues import QueueName, waiting_row_ids
from backend.processes.redis_server import RedisServer
from backend.services import Services
from backend.tables import Delivery, Suggestion, SuggestionState, now
from tests.support.http_server import Handler, HttpServer
from tests.support.images import ellipse_file, inline_tasks
from tests.support.label_configs import BRAIN_CONFIG
from tests.support.processes import StartWorker
from tests.support.waiting import wait_until

# Tasks of a chunk that a worker has begun: those at the model, and one beside them.
MOST_AT_ONCE = MOST_AT_MODEL + 1


BOX_CONFIG = BRAIN_CONFIG.replace(
    "</View>",
    '<RectangleLabels name="box" toName="image" smart="true"><Label value="Brain"/>'
    "</RectangleLabels></View>",
)


def predict(web: FlaskClient, batch: list[dict[str, object]], **body: Any) -> dict[str, Any]:
    """POST /predict as Label Studio does."""
    answer = web.post(
        "/predict",
        json={
            "tasks": batch,
            "project": "7.1795421465",
            "label_config": BRAIN_CONFIG,
            "params": {"login": None, "password": None, "context": None},
            **body,
        },
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.get_json()
    return found


def in_background(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run a call in a thread; its result appears in the list."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread, results


def count(services: Services, *conditions: Any) -> int:
    """Suggestions that meet the conditions."""
    with services.database.reading() as session:
        query = select(func.count()).select_from(Suggestion).where(*conditions)
        return session.scalar(query) or 0


def metric(web: FlaskClient, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have the labels."""
    families = text_string_to_metric_families(web.get("/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_a_batch_is_answered_in_the_order_of_its_tasks(
    web: FlaskClient, services: Services, start_worker: StartWorker
) -> None:
    start_worker()
    batch = inline_tasks(6)[::-1]
    answer = predict(web, batch)
    assert "errors" not in answer
    assert len(answer["results"]) == 6
    (version,) = {one["model_version"] for one in answer["results"]}
    setup = web.post("/setup", json={"project": "7.1795421465", "schema": BRAIN_CONFIG})
    assert setup.get_json() == {"model_version": version}
    ids = [region["id"] for one in answer["results"] for region in one["result"]]
    assert len(ids) == len(set(ids))
    with services.database.reading() as session:
        rows = {row.task_id: row.result for row in session.scalars(select(Suggestion))}
    for task, one in zip(batch, answer["results"], strict=True):
        assert one["result"] == rows[task["id"]]
        assert 0 <= one["score"] <= 1


def test_a_task_asked_for_by_two_requests_is_predicted_once(
    web: FlaskClient, services: Services, start_worker: StartWorker
) -> None:
    batch = inline_tasks(3)
    first, first_results = in_background(lambda: predict(web, batch))
    wait_until(lambda: count(services) == 3)
    second, second_results = in_background(lambda: predict(web, batch[:1]))
    start_worker()
    first.join()
    second.join()
    assert len(first_results[0]["results"]) == 3
    assert second_results[0]["results"] == []
    assert count(services) == 3
    assert count(services, Suggestion.delivery == Delivery.ANSWERED) == 3


def test_over_the_budget_nothing_is_answered_and_all_is_handed_over(
    web: FlaskClient, services: Services, start_worker: StartWorker
) -> None:
    services.settings.predict_budget_s = 0.2
    answer = predict(web, inline_tasks(5))
    assert answer["results"] == []
    assert "5 of 5 tasks are still under way" in answer["errors"][0]
    assert count(services, Suggestion.delivery == Delivery.PUSH) == 5
    start_worker()
    wait_until(lambda: count(services, Suggestion.state == SuggestionState.DONE) == 5)


def test_a_prompt_about_several_tasks_is_answered_for_all_of_them(
    web: FlaskClient, start_worker: StartWorker
) -> None:
    start_worker()
    drawn = {
        "id": "a",
        "from_name": "box",
        "to_name": "image",
        "type": "rectanglelabels",
        "value": {"x": 20, "y": 20, "width": 50, "height": 50, "rectanglelabels": ["Brain"]},
    }
    batch = inline_tasks(3)
    answer = predict(web, batch, params={"context": {"result": [drawn]}}, label_config=BOX_CONFIG)
    assert [len(one["result"]) for one in answer["results"]] == [1, 1, 1]


def test_a_prompt_that_nobody_waits_for_any_more_is_not_begun(
    web: FlaskClient, services: Services
) -> None:
    services.settings.predict_budget_s = 0.2
    drawn = {"id": "a", "from_name": "box", "to_name": "image", "value": {"x": 1}}
    drew, announced = {"result": [drawn]}, {"event": "prewarm"}
    for context in (drew, announced):
        assert predict(web, inline_tasks(1), params={"context": context})["results"] == []
    cancelled = Suggestion.state == SuggestionState.CANCELLED
    with services.database.reading() as session:
        row = session.scalars(select(Suggestion).where(cancelled)).one()
    assert (row.delivery, row.context) == (Delivery.NONE, None)
    assert "nobody waited" in (row.error or "")
    # An image that is encoded late is encoded for what comes.
    assert count(services, Suggestion.state == SuggestionState.QUEUED) == 1
    # The process that waited was killed.
    long_ago = now() - timedelta(minutes=5)
    services.database.update(
        Suggestion,
        ~cancelled,
        context=drew,
        delivery=Delivery.REPLY,
        reply_until=long_ago,
    )
    recover(services)
    assert count(services, cancelled, Suggestion.delivery == Delivery.NONE) == 2


def test_a_killed_worker_loses_nothing(
    web: FlaskClient, services: Services, start_worker: StartWorker
) -> None:
    worker = start_worker()
    thread, results = in_background(lambda: predict(web, inline_tasks(24)))
    running = Suggestion.state == SuggestionState.RUNNING
    wait_until(lambda: count(services, running) > 0)
    worker.kill()
    assert count(services, Suggestion.state != SuggestionState.DONE) > 0
    start_worker()
    thread.join()
    assert len(results[0]["results"]) == 24
    assert count(services, Suggestion.state == SuggestionState.DONE) == 24
    assert count(services, Suggestion.attempts == 2) > 0
    # What the killed worker had counted is still there, and the job with which it died has no end.
    jobs = partial(metric, web, queue="gpu")
    wait_until(lambda: jobs("medsam3_jobs_begun_total") - jobs("medsam3_jobs_total") == 1)
    assert jobs("medsam3_jobs_total", outcome="finished") > 1
    assert metric(web, "medsam3_workers", queue="gpu") >= 1
    for stage in ("wait", "fetch", "encode", "detect"):
        assert metric(web, "medsam3_stage_seconds_count", stage=stage) > 0, stage
        assert metric(web, "medsam3_stage_seconds_sum", stage=stage) > 0, stage


class SlowImages:
    """A server of images that answers when it may; `asked_for` are the images so far."""

    def __init__(self) -> None:
        self.asked_for: set[str] = set()
        self.may_go_on = threading.Event()
        slow = self

        class Answering(Handler):
            def answer(self) -> None:
                slow.asked_for.add(self.path)
                slow.may_go_on.wait(60)
                self.send(200, {"Content-Type": "image/png"}, ellipse_file(0, 96, 128))

        self.handler = Answering


def tasks_with_images(numbers: Iterable[int]) -> list[dict[str, Any]]:
    return [{"id": number, "data": {"image": f"/data/upload/7/{number}.png"}} for number in numbers]


def test_a_worker_that_is_told_to_stop_ends_what_it_began_and_leaves_the_rest_to_another(
    services: Services, start_worker: StartWorker
) -> None:
    # So long that nobody takes what is still called under way.
    services.settings.lease_s = 300
    chunk, images = tasks_with_images(range(services.settings.chunk_tasks)), SlowImages()
    with HttpServer(images.handler) as label_studio:
        services.settings.label_studio_url = label_studio.url
        list(request_pushes(services, chunk, 7, BRAIN_CONFIG))
        told = start_worker()
        wait_until(lambda: images.asked_for, 120)
        told.process.terminate()
        images.may_go_on.set()
        assert told.process.wait(60) == 0
        done = Suggestion.state == SuggestionState.DONE
        begun = len(images.asked_for)
        assert 1 <= begun <= MOST_AT_ONCE
        assert count(services, done) == begun, "what was begun, and nothing else"
        # Nobody else was there who could have found it: a worker that waits takes it at once.
        assert len(waiting_row_ids(services.redis, QueueName.GPU)) == len(chunk) - begun
        start_worker()
        wait_until(lambda: count(services, done) == len(chunk))
    assert count(services, Suggestion.attempts == 1) == len(chunk), "nobody lost a try"


def test_a_prompt_waits_for_the_tasks_at_hand_and_not_for_their_chunk(
    services: Services, start_worker: StartWorker
) -> None:
    size, images = services.settings.chunk_tasks, SlowImages()
    assert size > MOST_AT_ONCE
    with HttpServer(images.handler) as label_studio:
        services.settings.label_studio_url = label_studio.url
        list(request_pushes(services, tasks_with_images(range(size)), 7, BRAIN_CONFIG))
        start_worker()
        wait_until(lambda: images.asked_for, 120)
        request_previews(services, PredictRequest(tasks_with_images([90]), 7, BRAIN_CONFIG))
        images.may_go_on.set()
        wait_until(lambda: count(services, Suggestion.state == SuggestionState.DONE) == size + 1)
    with services.database.reading() as session:
        order = list(session.scalars(select(Suggestion.task_id).order_by(Suggestion.finished_at)))
    assert order.index(90) <= MOST_AT_ONCE
    assert count(services, Suggestion.attempts == 1) == size + 1


def test_an_emptied_and_restarted_redis_loses_nothing(
    web: FlaskClient, services: Services, start_worker: StartWorker, redis_server: RedisServer
) -> None:
    thread, results = in_background(lambda: predict(web, inline_tasks(12)))
    wait_until(lambda: count(services) == 12)
    start_worker()
    wait_until(lambda: count(services, Suggestion.state == SuggestionState.DONE) > 0)
    services.redis.flushall()
    redis_server.stop()
    redis_server.start()
    start_worker()
    thread.join()
    wait_until(lambda: count(services, Suggestion.state == SuggestionState.DONE) == 12)
    # Either the waiting request survived the restart, or its predictions wait to be pushed.
    delivered = count(services, Suggestion.delivery == Delivery.ANSWERED)
    to_push = count(services, Suggestion.delivery.in_((Delivery.PUSH, Delivery.PUSHING)))
    assert delivered + to_push == 12
    assert len(results[0]["results"]) == delivered


def test_a_task_that_kills_its_worker_is_given_up_and_its_neighbours_are_not(
    web: FlaskClient, services: Services, start_worker: StartWorker
) -> None:
    start_worker()
    predict(web, inline_tasks(2))
    with services.database.session() as session:
        row = session.scalars(select(Suggestion)).first()
        assert row is not None
        row.state, row.attempts = SuggestionState.RUNNING, services.settings.max_attempts
        row.delivery, row.lease_until = Delivery.PUSH, row.created_at
        poisoned = row.id
    wait_until(lambda: count(services, Suggestion.state == SuggestionState.FAILED) == 1)
    with services.database.reading() as session:
        failed = session.get(Suggestion, poisoned)
        assert failed is not None
        assert "the worker died 3 times" in (failed.error or "")
    assert len(predict(web, inline_tasks(1, first_id=50))["results"]) == 1


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("/data/upload/7/gone.png", "Label Studio"),
        ("http://169.254.169.254/latest/meta-data", "MEDSAM3_ALLOWED_IMAGE_HOSTS"),
        ("data:image/png;base64,iVBORw0KGgo=", "image"),
        ("", "image"),
    ],
)
def test_one_bad_task_never_harms_its_neighbours(
    web: FlaskClient, services: Services, start_worker: StartWorker, image: str, said: str
) -> None:
    start_worker()
    batch = inline_tasks(3)
    batch[1]["data"] = {"image": image}
    services.settings.predict_budget_s = 30
    answer = predict(web, batch)
    # A batch with a hole would be dropped whole by Label Studio: the good ones are pushed.
    assert answer["results"] == []
    good = Suggestion.task_id != 2
    assert count(services, good, Suggestion.state == SuggestionState.DONE) == 2
    assert count(services, good, Suggestion.delivery == Delivery.PUSH) == 2
    with services.database.reading() as session:
        bad = session.scalars(select(Suggestion).where(Suggestion.task_id == 2)).one()
    assert bad.state in (SuggestionState.FAILED, SuggestionState.QUEUED)
    assert bad.result is None
    if bad.state == SuggestionState.FAILED:
        assert said.lower() in (bad.error or "").lower()
