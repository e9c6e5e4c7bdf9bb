"""An agent at work on tasks: what it changes, what is left of it when something dies or is away."""

import hashlib
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from backend.corrections.mask_store import MaskStore
from backend.corrections.privacy import forget
from backend.errors import AgentError
from backend.label_studio.client import LabelStudio
from backend.models.encoding import embedding_places
from backend.predictions.agent_runs import check_budget
from backend.predictions.pushing import push
from backend.predictions.replacing import replaced
from backend.predictions.requests import request_pushes
from backend.services import Services
from backend.tables import (
    AgentPicture,
    AgentRun,
    Delivery,
    LabelConfigText,
    Suggestion,
    SuggestionState,
    now,
)
from tests.support.chat_server import ChatServer, Decided, Reply
from tests.support.images import ellipse_file
from tests.support.processes import StartWorker
from tests.support.stand_in_label_studio import StandInLabelStudio
from tests.support.waiting import wait_until

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image">
    <Label value="Tumor" prompt="breast tumor" mode="agent"/><Label value="Cyst"/>
  </BrushLabels>
</View>
"""
VERSION = "tiny-1"


@pytest.fixture
def label_studio(services: Services) -> Iterator[StandInLabelStudio]:
    with StandInLabelStudio(CONFIG) as server:
        services.settings.label_studio_url = server.url
        yield server


def agent_may(services: Services, monkeypatch: pytest.MonkeyPatch, url: str, **more: Any) -> None:
    """Consent, for this process and the workers that it starts."""
    given = {"url": url, "model": "scripted", "send_images": True, "below": 1, **more}
    for name, value in given.items():
        monkeypatch.setenv(f"MEDSAM3_AGENT_{name.upper()}", str(value))
        setattr(services.settings, f"agent_{name}", value)


def only_run(services: Services, task_id: int) -> AgentRun:
    with services.database.reading() as session:
        return session.scalars(select(AgentRun).where(AgentRun.task_id == task_id)).one()


def is_over(services: Services, task_id: int) -> bool:
    with services.database.reading() as session:
        state = session.scalar(select(AgentRun.state).where(AgentRun.task_id == task_id))
    return state in (SuggestionState.DONE, SuggestionState.FAILED)


def is_done(services: Services, row_id: str) -> bool:
    with services.database.reading() as session:
        return session.get_one(Suggestion, row_id).state == SuggestionState.DONE


def ask(services: Services, label_studio: StandInLabelStudio, task_id: int) -> str:
    tasks = [label_studio.tasks[task_id]]
    ((row_id,),) = request_pushes(services, tasks, label_studio.project_id, CONFIG)
    return row_id


def test_a_killed_run_goes_on_and_its_answer_replaces_the_prediction(
    services: Services,
    label_studio: StandInLabelStudio,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
    web: FlaskClient,
) -> None:
    task, second = (label_studio.add_task(ellipse_file(seed, 120, 160)) for seed in (1, 2))
    partner, goes_on = Decided(), threading.Event()
    replies = [Reply(partner), Reply(partner, wait=goes_on)]
    with ChatServer(replies) as server:
        agent_may(services, monkeypatch, server.url, keep_pictures=True, price_prompt=1.0)
        start_worker("gpu")
        killed = start_worker("agent")
        row_id = ask(services, label_studio, task)
        wait_until(lambda: is_done(services, row_id))
        push(services, [row_id])
        (shown,) = label_studio.predictions.values()
        before = shown["result"]

        wait_until(lambda: len(server.requests) == 2)
        killed.kill()
        goes_on.set()
        agent = start_worker("agent")
        wait_until(
            lambda: is_over(services, task), otherwise=lambda: agent.log_path.read_text()[-3000:]
        )
    run = only_run(services, task)
    (outcome,) = run.outcomes
    assert (run.error, outcome["ending"]) == (None, "chosen"), outcome
    assert sum("The box found" not in text for text in partner.seen if "Two" not in text) == 1, (
        "what was decided before the kill is not asked again"
    )
    assert [one["action"]["name"] for one in run.exchanges][:2] == ["SegmentBox", "Choose"]
    assert run.requests == len(run.exchanges)
    assert run.cost == pytest.approx(900 * run.requests / 1e6)
    assert "data:image" not in str(run.exchanges)
    assert "/data/upload" not in str(run.questions)

    push(services, [run.id])
    push(services, [run.id])
    (stored,) = label_studio.predictions.values()
    assert stored["id"] == shown["id"]
    assert stored["result"] != before
    assert [r["value"]["brushlabels"] for r in stored["result"]].count(["Tumor"]) == 1
    with services.database.reading() as session:
        rows = session.scalars(select(Suggestion).order_by(Suggestion.created_at)).all()
        pictures = session.scalars(select(AgentPicture.run_id)).all()
    assert [(row.id, row.delivery) for row in rows] == [
        (row_id, Delivery.DELIVERED),
        (run.id, Delivery.DELIVERED),
    ]
    assert set(pictures) == {run.id}

    (listed,) = web.get(f"/api/v1/agent/runs?task={task}").get_json()["runs"]
    opened = web.get(f"/api/v1/agent/runs/{listed['id']}").get_json()
    assert opened["exchanges"] == run.exchanges
    assert opened["endings"][0]["ending"] == "chosen"
    sha256 = opened["exchanges"][0]["pictures"][0]
    picture = web.get(f"/api/v1/agent/runs/{run.id}/pictures/{sha256}")
    assert hashlib.sha256(picture.data).hexdigest() == sha256
    assert web.get(f"/api/v1/agent/runs/{run.id}/pictures/0").status_code == 404

    # The server is gone by now: the model's own prediction stays.
    row_id = ask(services, label_studio, second)
    wait_until(lambda: is_over(services, second))
    gone = only_run(services, second)
    assert (gone.outcomes[0]["ending"], gone.prediction_id) == ("failed", None)
    assert "cannot be reached" in gone.outcomes[0]["reason"]
    assert is_done(services, row_id)

    # A budget that is used up is as good as no server.
    services.settings.agent_requests_per_day = run.requests
    with pytest.raises(AgentError, match="used up"), services.database.reading() as session:
        check_budget(session, services, label_studio.project_id)


def finished(services: Services, task_id: int, delivery: Delivery, **fields: Any) -> Suggestion:
    row = Suggestion(
        project_id=StandInLabelStudio.project_id,
        task_id=task_id,
        config_hash="c",
        task_data={},
        model_version=VERSION,
        state=SuggestionState.DONE,
        delivery=delivery,
        score=0.5,
        finished_at=now(),
        **fields,
    )
    with services.database.session() as session:
        session.merge(LabelConfigText(hash="c", xml=CONFIG))
        session.flush()
        session.add(row)
    return row


def test_an_answer_waits_for_what_it_replaces_and_leaves_annotated_tasks_alone(
    services: Services, label_studio: StandInLabelStudio
) -> None:
    task = label_studio.add_task(b"")
    result = [{"id": "own", "value": {}}]
    own = finished(services, task, Delivery.PUSH, result=result)
    answer = finished(
        services,
        task,
        Delivery.PUSHING,
        result=[{"id": "agents", "value": {}}],
        agent_run_id="a" * 32,
        created_at=now() + timedelta(seconds=1),
    )
    with LabelStudio.from_settings(services.settings) as client:
        assert replaced(services, client, answer) == Delivery.PUSHING
        push(services, [own.id])
        # As an answer to Label Studio's request, which is looked after later.
        services.database.update(Suggestion, Suggestion.id == own.id, delivery=Delivery.ANSWERED)
        annotation = label_studio.annotate(task, [])
        assert replaced(services, client, answer) == Delivery.NONE
        label_studio.delete(annotation)
        assert replaced(services, client, answer) == Delivery.DELIVERED
        (stored,) = label_studio.predictions.values()
        assert stored["result"] == answer.result
        assert replaced(services, client, answer) == Delivery.DELIVERED
        assert len(label_studio.predictions) == 1
    with services.database.reading() as session:
        assert session.get_one(Suggestion, own.id).delivery == Delivery.DELIVERED


def test_what_an_agent_did_is_forgotten_with_its_task(services: Services) -> None:
    row = finished(services, 5, Delivery.DELIVERED, result=[])
    with services.database.session() as session:
        run = AgentRun(
            suggestion_id=row.id,
            project_id=row.project_id,
            task_id=5,
            config_hash="c",
            model_version=VERSION,
            questions=[],
        )
        session.add(run)
        session.flush()
        session.add(AgentPicture(run_id=run.id, sha256="0" * 64, jpeg=b"x"))
    masks = MaskStore(services.settings.storage)
    removed = forget(
        services.database, masks, embedding_places(services.settings), project_id=7, task_id=5
    )
    assert removed.agent_runs == 1
    with services.database.reading() as session:
        assert session.scalars(select(AgentRun)).all() == []
        assert session.scalars(select(AgentPicture)).all() == []
