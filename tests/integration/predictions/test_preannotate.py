"""Pre-annotation: which tasks are predicted, from the console and by command, and cancelling it."""

from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from backend.errors import BackendError, LabelStudioError
from backend.label_studio import tabs
from backend.people import audit
from backend.predictions import preannotate, preview, requests
from backend.predictions.leased_rows import claim
from backend.predictions.preannotate import PreannotationProgress
from backend.predictions.preannotate_options import PreannotateOptions
from backend.predictions.propagations import EVENT
from backend.predictions.pushing import push
from backend.predictions.recover import recover
from backend.predictions.retry import count_failed
from backend.predictions.tables import Preannotation
from backend.processes.queues import QueueName, queue
from backend.processes.redis_server import RedisServer
from backend.services import use_services
from backend.tables import Delivery, Project, Suggestion, SuggestionState, now
from tests.support.commands import run
from tests.support.console import CONSOLE, admin, send, worker_turn
from tests.support.corrections_stage import CONFIG, Stage


@pytest.fixture
def console(stage: Stage) -> Iterator[FlaskClient]:
    """An admin's browser, beside a stand-in for Label Studio with a project."""
    use_services(stage.services)
    with stage.services.database.session() as session:
        session.add(Project(id=7, title="Lesions"))
    yield admin(stage.services)
    use_services(None)


def rows(stage: Stage) -> list[Suggestion]:
    with stage.services.database.reading() as session:
        return list(session.scalars(select(Suggestion).order_by(Suggestion.task_id)))


def states(stage: Stage) -> dict[int | None, str]:
    return {row.task_id: row.state for row in rows(stage)}


def trail(stage: Stage) -> list[tuple[str, str, str | None, str | None]]:
    """What was done but for the login, oldest first."""
    with stage.services.database.reading() as session:
        entries = audit.entries(session)[::-1]
    return [
        (entry.action, entry.via, entry.subject, entry.detail)
        for entry in entries
        if entry.action != audit.AuditedAction.LOG_IN
    ]


def test_the_console_asks_for_some_of_the_tasks(stage: Stage, console: FlaskClient) -> None:
    tasks = [stage.label_studio.add_task(b"", text="a patient") for _ in range(5)]
    stage.label_studio.annotate(tasks[0], [])
    version = preannotate.versions.in_service(stage.services, 7)
    stage.label_studio.predictions[1] = {"task": tasks[1], "model_version": version}
    page = console.get(f"{CONSOLE}/preannotate/7").text
    assert version in page
    for limit in ("none", "0", "-3", "1.5", 10 * "9"):
        refused = send(console, "/preannotate/7", limit=limit)
        assert refused.status_code == 400
        assert "a number of tasks from 1" in refused.text
    assert console.get(f"{CONSOLE}/preannotate/8").status_code == 404
    assert not queue(stage.services.redis, QueueName.INGEST).jobs

    done = send(console, "/preannotate/7", limit="2", unlabelled="y")
    assert "reads the first 2 unlabelled tasks of project 7" in done.text
    worker_turn(stage.services)
    assert states(stage) == dict.fromkeys(tasks[2:4], SuggestionState.QUEUED)
    assert {row.delivery for row in rows(stage)} == {Delivery.PUSH}
    # Once more: what is under way is not asked for twice.
    send(console, "/preannotate/7", limit="2", unlabelled="y")
    worker_turn(stage.services)
    assert len(rows(stage)) == 2
    send(console, "/preannotate/7", limit="")
    worker_turn(stage.services)
    assert list(states(stage)) == [tasks[0], *tasks[2:]]
    some = ("preannotate", "console", version, "the first 2 unlabelled tasks")
    assert trail(stage) == [some, some, ("preannotate", "console", version, "all tasks")]


def test_only_what_a_tab_of_the_data_manager_shows(
    stage: Stage, console: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tabs, "_PAGE", 2)
    tasks = [stage.label_studio.add_task(b"", text="a patient") for _ in range(6)]
    # In the tab's own order; a task stands there once for each of its predictions.
    stage.label_studio.tabs = {31: [tasks[4], tasks[4], tasks[0], tasks[2]], 32: []}
    for tab in ("none", "0", "-3"):
        refused = send(console, "/preannotate/7", limit="", tab=tab)
        assert refused.status_code == 400
        assert "after `tab=`" in refused.text
    done = send(console, "/preannotate/7", limit="2", tab="31")
    assert "reads the first 2 tasks of tab 31 of project 7" in done.text
    worker_turn(stage.services)
    assert list(states(stage)) == [tasks[0], tasks[2]]
    # A tab that is gone, or another project's, is no reason to predict everything.
    with pytest.raises(LabelStudioError, match=r"no tab 9 .* its tabs: 31 \(Tab 31\), 32"):
        preannotate.preannotate(stage.services, 7, PreannotateOptions(tab=9))
    with pytest.raises(BackendError, match="no such task"):
        preview.preview(stage.services, 7, PreannotateOptions(tab=32))
    assert len(rows(stage)) == 2
    report = preannotate.preannotate(stage.services, 7, PreannotateOptions(tab=32))
    assert report.progress.total == 0


def test_what_was_delivered_since_the_tasks_were_listed_is_not_predicted_again(
    stage: Stage,
) -> None:
    for _ in range(3):
        stage.label_studio.add_task(b"", text="a patient")
    ask = partial(
        requests.request_pushes, stage.services, list(stage.label_studio.tasks.values()), 7, CONFIG
    )
    listed_at = requests.database_time(stage.services)
    (ids,) = ask(listed_at=listed_at)
    done = {"state": SuggestionState.DONE, "result": []}
    stage.services.database.update(Suggestion, Suggestion.id.in_(ids[:2]), **done)
    push(stage.services, ids[:2])
    assert len(stage.label_studio.predictions) == 2
    # As who listed the tasks when they lacked it, and got to them only now.
    assert list(ask(listed_at=listed_at)) == [ids]
    assert len(rows(stage)) == 3
    (of_a_label,) = ask(["Tumor"], listed_at=listed_at)
    assert not {*of_a_label} & {*ids}
    # Listed since, they lack it again: somebody deleted it in Label Studio.
    (later,) = ask(listed_at=requests.database_time(stage.services))
    assert [id_ in ids for id_ in later] == [False, False, True]


def test_what_waits_is_cancelled_and_what_is_under_way_finishes(
    stage: Stage, console: FlaskClient, redis_server: RedisServer
) -> None:
    tasks = [stage.label_studio.add_task(b"", text="a patient") for _ in range(6)]
    send(console, "/preannotate/7", limit="")
    worker_turn(stage.services)
    ids = [row.id for row in rows(stage)]
    assert claim(stage.services, Suggestion, ids[:1])
    with stage.services.database.session() as session:
        session.get_one(Suggestion, ids[1]).interactive = True
        session.get_one(Suggestion, ids[2]).delivery = Delivery.REPLY
        session.get_one(Suggestion, ids[3]).context = {"event": EVENT}
    page = console.get(CONSOLE).text
    assert "Cancel the 2 waiting tasks of project 7" in page
    # Asked for before it is cancelled, and not begun: that is cancelled as well.
    send(console, "/preannotate/7", limit="6")
    assert "2 waiting tasks are cancelled" in send(console, "/preannotate/7/cancel").text
    worker_turn(stage.services)
    queued, cancelled = SuggestionState.QUEUED, SuggestionState.CANCELLED
    assert list(states(stage).values()) == [
        SuggestionState.RUNNING,
        *[queued] * 3,
        *[cancelled] * 2,
    ]
    (row,) = [row for row in rows(stage) if row.task_id == tasks[5]]
    assert (row.delivery, row.task_data, row.active_key, row.error) == ("none", {}, None, None)
    assert claim(stage.services, Suggestion, ids[4:]) == []
    page = console.get(CONSOLE).text
    assert "Cancel the" not in page
    with stage.services.database.reading() as session:
        assert count_failed(session) == {}
    assert trail(stage)[-1] == ("cancel-preannotation", "console", "2 waiting tasks", None)

    # Cancelled is not for ever.
    send(console, "/preannotate/7", limit="")
    worker_turn(stage.services)
    assert [row.state for row in rows(stage) if row.task_id == tasks[5]].count(queued) == 1
    redis_server.stop()
    assert "tasks are cancelled" in send(console, "/preannotate/7/cancel").text
    assert [row.state for row in rows(stage) if row.task_id == tasks[5]].count(queued) == 0


def wish(stage: Stage) -> Preannotation:
    with stage.services.database.reading() as session:
        return session.scalars(select(Preannotation)).one()


def age(stage: Stage, **fields: object) -> None:
    """Nobody is on the way to queue the wish's job any more."""
    long_ago = now() - timedelta(hours=1)
    stage.services.database.update(Preannotation, created_at=long_ago, **fields)


def test_a_wish_is_not_lost_with_redis(
    stage: Stage,
    console: FlaskClient,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preannotate, "SETTLING_S", 1800)
    stage.label_studio.add_task(b"", text="a patient")
    send(console, "/preannotate/7", limit="")
    stage.services.redis.flushall()
    assert recover(stage.services).preannotations == 0, "its job may be on the way"
    age(stage)
    assert [recover(stage.services).preannotations for _ in range(2)] == [1, 0]
    worker_turn(stage.services)
    assert list(states(stage).values()) == [SuggestionState.QUEUED]
    assert (wish(stage).state, wish(stage).error) == (SuggestionState.DONE, None)
    assert recover(stage.services).preannotations == 0
    redis_server.stop()
    assert "A worker reads all tasks" in send(console, "/preannotate/7", limit="").text
    redis_server.start()


def test_a_wish_whose_worker_died_is_gone_on_with(stage: Stage, console: FlaskClient) -> None:
    stage.label_studio.add_task(b"", text="a patient")
    send(console, "/preannotate/7", limit="")
    (job,) = queue(stage.services.redis, QueueName.INGEST).jobs
    (row,) = claim(stage.services, Preannotation, job.args[0])
    job.delete()
    age(stage)
    assert recover(stage.services).preannotations == 0, "somebody is at work on it"
    dead = now() - timedelta(seconds=1)
    age(stage, lease_until=dead)
    assert recover(stage.services).preannotations == 1
    worker_turn(stage.services)
    assert (len(rows(stage)), wish(stage).state) == (1, SuggestionState.DONE)
    age(stage, state=SuggestionState.RUNNING, lease_until=dead, attempts=row.attempts + 2)
    assert recover(stage.services).preannotations == 0
    assert "died 3 times" in (wish(stage).error or "")


def test_a_wish_waits_for_label_studio_and_says_so(
    stage: Stage, console: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preannotate, "RETRY_LATER_S", 0)
    stage.label_studio.add_task(b"", text="a patient")
    send(console, "/preannotate/7", limit="")
    (job,) = queue(stage.services.redis, QueueName.INGEST).jobs
    stage.label_studio.down = True
    preannotate.start_preannotation(*job.args)
    assert (wish(stage).state, wish(stage).attempts) == (SuggestionState.QUEUED, 0)
    assert (wish(stage).error or "").startswith("waits: ")
    stage.label_studio.down, stage.label_studio.project_is_gone = False, True
    preannotate.start_preannotation(*job.args)
    assert wish(stage).state == SuggestionState.FAILED
    assert "404" in (wish(stage).error or "")


def test_a_worker_that_is_told_to_stop_leaves_the_rest_of_a_wish(
    stage: Stage, console: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "BATCH_TASKS", 1)
    for _ in range(3):
        stage.label_studio.add_task(b"", text="a patient")
    send(console, "/preannotate/7", limit="")
    with monkeypatch.context() as told:
        told.setattr(preannotate.stopping, "is_set", lambda: True)
        worker_turn(stage.services)
    assert (len(rows(stage)), wish(stage).state) == (1, SuggestionState.QUEUED)
    age(stage)
    assert recover(stage.services).preannotations == 1
    worker_turn(stage.services)
    assert (len(rows(stage)), wish(stage).state) == (3, SuggestionState.DONE)


def test_a_failed_task_whose_retry_is_cancelled_is_still_failed(
    stage: Stage, console: FlaskClient
) -> None:
    stage.label_studio.add_task(b"", text="a patient")
    for _ in range(2):
        send(console, "/preannotate/7", limit="")
        worker_turn(stage.services)
        with stage.services.database.session() as session:
            for row in session.scalars(select(Suggestion).where(Suggestion.error.is_(None))):
                row.state, row.delivery, row.active_key = SuggestionState.FAILED, "none", None
                row.error = "no image"
    send(console, "/preannotate/7", limit="")
    worker_turn(stage.services)
    send(console, "/preannotate/7/cancel")
    with stage.services.database.reading() as session:
        assert count_failed(session) == {7: 1}


def test_the_command_has_the_same_options_and_ends_when_it_is_cancelled(
    stage: Stage, console: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        stage.label_studio.add_task(b"", text="a patient")

    def cancel_once(progress: PreannotationProgress) -> None:
        if not progress.cancelled:
            preannotate.cancel(stage.services, 7)

    report = preannotate.preannotate(
        stage.services, 7, PreannotateOptions(limit=2), on_progress=cancel_once
    )
    assert report.progress == PreannotationProgress(2, 0, 0, 2)
    assert report.errors == {}
    with pytest.raises(BackendError, match="from 1"):
        PreannotateOptions(limit=0)

    settings = stage.services.settings
    monkeypatch.setenv("MEDSAM3_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("LABEL_STUDIO_URL", settings.label_studio_url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    asked = run("preannotate", "7", "--limit", "1", "--unlabelled", "--wait", "0")
    assert "1 of 1 tasks are not predicted yet" in asked.output
    assert run("preannotate", "7", "--cancel", "--limit", "3").exit_code == 1
    assert run("preannotate", "7", "--limit", "0").exit_code == 1
    assert run("preannotate", "7", "--cancel").output == "cancelled: 1\n"
    actions = [(action, via, detail) for action, via, _, detail in trail(stage)]
    assert actions[-2:] == [
        ("preannotate", "command", "the first 1 unlabelled tasks"),
        ("cancel-preannotation", "command", None),
    ]
