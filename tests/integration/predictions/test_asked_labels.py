"""Predictions of some labels only: whose turn it is, and what stays of the other labels."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from backend.errors import BackendError
from backend.label_studio.client import LabelStudio
from backend.predictions import preannotate
from backend.predictions.inference import Inference
from backend.predictions.preannotate_options import PreannotateOptions
from backend.predictions.pushing import push
from backend.predictions.replacing import replaced
from backend.predictions.requests import request_pushes
from backend.predictions.retry import count_failed, request_retry, retry_failed
from backend.processes.queues import QueueName, queue
from backend.services import use_services
from backend.tables import Delivery, Project, Suggestion, SuggestionState, now
from medsam3_model.pretraining.phantoms.phantoms import phantom
from tests.support.console import CONSOLE, admin, send
from tests.support.corrections_stage import CONFIG, Stage
from tests.support.images import png
from tests.support.label_configs import DISC_AND_CUP_CONFIG

VESSEL_TOO = CONFIG.replace(
    '<Label value="Cyst"/>', '<Label value="Cyst"/><Label value="Vessel"/>', 1
)


def entry(id_: str, label: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "from_name": "brush",
        "to_name": "image",
        "type": "brushlabels",
        "value": {"format": "rle", "rle": [], "brushlabels": [label]},
        **fields,
    }


def of_a_tool_without_labels(id_: str, label: str) -> list[dict[str, Any]]:
    """Label Studio keeps the outline and the labels of one region apart."""
    common = {"id": id_, "to_name": "image"}
    return [
        {**common, "from_name": "tool", "type": "brush", "value": {"format": "rle", "rle": []}},
        {**common, "from_name": "names", "type": "labels", "value": {"labels": [label]}},
    ]


def rows(stage: Stage) -> list[Suggestion]:
    with stage.services.database.reading() as session:
        return list(session.scalars(select(Suggestion).order_by(Suggestion.created_at)))


def ask(stage: Stage, *labels: str, limit: int | None = None) -> list[tuple[int | None, Any]]:
    """Pre-annotate by a worker; the task and the labels of each new row."""
    use_services(stage.services)
    before = {row.id for row in rows(stage)}
    options = PreannotateOptions(limit, labels=labels)
    preannotate.request_preannotation(stage.services, 7, options)
    waiting = queue(stage.services.redis, QueueName.INGEST)
    for job in waiting.jobs:
        if job.id.startswith("preannotate-"):
            preannotate.start_preannotation(*job.args)
        job.delete()
    use_services(None)
    new = [row for row in rows(stage) if row.id not in before]
    return [(row.task_id, row.labels) for row in sorted(new, key=lambda row: row.task_id or 0)]


def finish(stage: Stage, result: list[dict[str, Any]], score: float) -> None:
    """The GPU worker's turn: all waiting rows get this result, and are pushed."""
    waiting = [row.id for row in rows(stage) if row.state == SuggestionState.QUEUED]
    for id_ in waiting:
        mine = [{**region, "id": f"{region['id']}-{id_[:4]}"} for region in result]
        stage.services.database.update(
            Suggestion,
            Suggestion.id == id_,
            state=SuggestionState.DONE,
            result=mine,
            score=score,
            finished_at=now(),
        )
    push(stage.services, waiting)


def labels_of(prediction: dict[str, Any]) -> list[str]:
    return sorted(
        name
        for region in prediction["result"]
        for key, names in region["value"].items()
        if key.endswith("labels")
        for name in names
    )


def test_one_label_takes_the_place_of_its_own_regions_and_the_others_stay(stage: Stage) -> None:
    first = stage.label_studio.add_task(b"")
    second = stage.label_studio.add_task(b"")
    assert ask(stage, "Tumor", limit=1) == [(first, ["Tumor"])]
    assert ask(stage, "Tumor", limit=1) == [], "it is under way"
    finish(stage, [entry("t", "Tumor")], score=0.8)
    (stored,) = stage.label_studio.predictions.values()
    assert labels_of(stored) == ["Tumor"]
    assert ask(stage, "Tumor") == [(second, ["Tumor"])]
    finish(stage, [], score=0.9)

    cysts = of_a_tool_without_labels("c", "Cyst")
    assert ask(stage, "Cyst") == [(first, ["Cyst"]), (second, ["Cyst"])]
    finish(stage, [*cysts, entry("d", "Cyst")], score=0.4)
    on_first, on_second = stage.label_studio.predictions.values()
    assert on_first["id"] == stored["id"]
    assert (labels_of(on_first), on_first["score"]) == (["Cyst", "Cyst", "Tumor"], 0.4)
    assert len(on_first["result"]) == 4, "the outline of the tool without labels is there"
    assert (labels_of(on_second), on_second["score"]) == (["Cyst", "Cyst"], 0.4)
    newest = [row for row in rows(stage) if row.task_id == first][-1]
    assert labels_of({"result": newest.result}) == labels_of(on_first), (
        "an annotation starts from all of it"
    )
    assert {row.delivery for row in rows(stage)} == {Delivery.DELIVERED}
    assert ask(stage, "Cyst", "Tumor") == []

    # The labeling config has a new label: predictions of everything were made without it.
    third = stage.label_studio.add_task(b"")
    assert ask(stage) == [(third, None)]
    finish(stage, [entry("t", "Tumor")], score=0.7)
    stage.label_studio.label_config = VESSEL_TOO
    assert ask(stage, "Cyst") == []
    assert ask(stage, "Vessel", "Cyst") == [
        (task, ["Vessel", "Cyst"]) for task in (first, second, third)
    ]


def test_an_answer_that_is_brought_twice_is_there_once(stage: Stage) -> None:
    task = stage.label_studio.add_task(b"")
    ask(stage)
    finish(stage, [entry("t", "Tumor"), entry("c", "Cyst")], score=0.5)
    ask(stage, "Cyst")
    stage.label_studio.label_config = VESSEL_TOO
    assert ask(stage, "Vessel") == [(task, ["Vessel"])]
    (waiting,) = [row for row in rows(stage) if row.state == SuggestionState.QUEUED]
    stage.services.database.update(
        Suggestion,
        Suggestion.id == waiting.id,
        state=SuggestionState.DONE,
        result=[entry("n", "Vessel")],
        score=0.9,
        delivery=Delivery.PUSHING,
    )
    for _ in range(2):
        (row,) = [row for row in rows(stage) if row.id == waiting.id]
        with LabelStudio.from_settings(stage.services.settings) as client:
            assert replaced(stage.services, client, row) == Delivery.DELIVERED
        (stored,) = stage.label_studio.predictions.values()
        assert labels_of(stored) == ["Cyst", "Tumor", "Vessel"]
        assert stored["score"] == 0.5

    # Written down, and the process died before Label Studio had it: nothing comes twice.
    with stage.services.database.session() as session:
        known = session.get_one(Suggestion, waiting.id)
        known.result = [entry("n", "Vessel"), entry("old", "Tumor")]
    (row,) = [row for row in rows(stage) if row.id == waiting.id]
    with LabelStudio.from_settings(stage.services.settings) as client:
        replaced(stage.services, client, row)
    (stored,) = stage.label_studio.predictions.values()
    assert [region["id"] for region in stored["result"]].count("old") == 0
    assert labels_of(stored) == ["Cyst", "Tumor", "Vessel"]


def test_it_waits_for_a_prediction_that_is_on_its_way(stage: Stage) -> None:
    task = stage.label_studio.add_task(b"")
    use_services(stage.services)
    ((whole,),) = request_pushes(stage.services, [stage.label_studio.tasks[task]], 7, CONFIG)
    ((cyst,),) = request_pushes(
        stage.services, [stage.label_studio.tasks[task]], 7, CONFIG, ["Cyst"]
    )
    done = {"state": SuggestionState.DONE, "score": 0.5, "finished_at": now()}
    database = stage.services.database
    database.update(Suggestion, Suggestion.id == cyst, result=[entry("c", "Cyst")], **done)
    push(stage.services, [cyst])
    assert not stage.label_studio.predictions
    found = [entry("t", "Tumor"), entry("old", "Cyst")]
    database.update(Suggestion, Suggestion.id == whole, result=found, **done)
    push(stage.services, [whole])
    past = now() - timedelta(seconds=1)
    database.update(Suggestion, Suggestion.id == cyst, lease_until=past)
    push(stage.services, [cyst])
    (stored,) = stage.label_studio.predictions.values()
    assert [region["id"] for region in stored["result"]] == ["c", "t"]


def test_labels_that_nobody_has_are_refused_and_a_retry_asks_for_the_same(stage: Stage) -> None:
    task = stage.label_studio.add_task(b"")
    with pytest.raises(BackendError, match=r'no label "Bone".*it has "Tumor", "Cyst", "Node"'):
        preannotate.preannotate(stage.services, 7, PreannotateOptions(labels=("Tumor", "Bone")))
    assert not rows(stage)
    ask(stage, "Cyst")
    failed = {"state": SuggestionState.FAILED, "delivery": Delivery.NONE, "active_key": None}
    stage.services.database.update(Suggestion, Suggestion.task_id == task, **failed, error="why")
    use_services(stage.services)
    assert request_retry(stage.services) == 1
    retry_failed([rows(stage)[0].id])
    use_services(None)
    assert [row.labels for row in rows(stage)] == [["Cyst"], ["Cyst"]]

    # One label of a task says nothing of a task that failed as a whole.
    other = stage.label_studio.add_task(b"")
    assert ask(stage, limit=1) == [(task, None)]
    stage.services.database.update(Suggestion, Suggestion.labels.is_(None), **failed, error="why")
    ask(stage, "Cyst")
    with stage.services.database.reading() as session:
        assert count_failed(session) == {7: 1}
    assert other in {row.task_id for row in rows(stage)}


def test_the_model_is_asked_for_nothing_else(stage: Stage) -> None:
    task = stage.label_studio.add_task(png(phantom("fundus", 2).image))
    use_services(stage.services)
    inference = Inference(stage.services)
    found = {}
    for labels in ((), ("Disc",)):
        ((id_,),) = request_pushes(
            stage.services, [stage.label_studio.tasks[task]], 7, DISC_AND_CUP_CONFIG, labels
        )
        with stage.services.database.reading() as session:
            row = session.get_one(Suggestion, id_)
        found[labels] = labels_of({"result": inference.predict(row, DISC_AND_CUP_CONFIG).regions})
    use_services(None)
    assert set(found[()]) == {"Cup", "Disc"}
    assert set(found["Disc",]) == {"Disc"}


def test_the_console_offers_the_labels(stage: Stage) -> None:
    use_services(stage.services)
    with stage.services.database.session() as session:
        session.add(Project(id=7, title="Lesions", label_config=CONFIG))
    console = admin(stage.services)
    page = console.get(f"{CONSOLE}/preannotate/7").text
    assert '<option value="Cyst">Cyst</option>' in page
    assert send(console, "/preannotate/7", limit="", label="Bone").status_code == 400
    done = send(console, "/preannotate/7", limit="3", label="Cyst")
    assert "reads the first 3 tasks, only &#34;Cyst&#34; of project 7" in done.text
    use_services(None)
