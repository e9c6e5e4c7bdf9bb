"""The page *Work*: what waits, runs and failed, and failed tasks that are predicted again."""

from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from backend.predictions.retry import failed_rows, retry_failed
from backend.processes.queues import QueueName, count_jobs
from backend.processes.redis_server import RedisServer
from backend.services import Services, use_services
from backend.tables import Delivery, Project, Suggestion, SuggestionState, now
from tests.support.console import CONSOLE, admin, send
from tests.support.corrections_stage import Stage
from tests.support.processes import StartWorker
from tests.support.waiting import wait_until


@pytest.fixture
def console(stage: Stage) -> Iterator[FlaskClient]:
    """An admin's browser, beside a stand-in for Label Studio."""
    use_services(stage.services)
    yield admin(stage.services)
    use_services(None)


def add_row(stage: Stage, task: int, state: SuggestionState, error: str | None = None) -> str:
    """A row of pre-annotation as workers leave it."""
    id_ = stage.suggest(task, [])
    failed = state == SuggestionState.FAILED
    with stage.services.database.session() as session:
        row = session.get_one(Suggestion, id_)
        row.state, row.error, row.created_at = state, error, now()
        row.delivery = Delivery.NONE if failed else Delivery.PUSH
        row.finished_at = now() if failed else None
    return id_


def rows_of(stage: Stage, task: int) -> list[Suggestion]:
    with stage.services.database.reading() as session:
        rows = select(Suggestion).where(Suggestion.task_id == task)
        return list(session.scalars(rows.order_by(Suggestion.created_at)))


def test_the_page_says_what_waits_runs_and_failed(
    stage: Stage, console: FlaskClient, redis_server: RedisServer
) -> None:
    assert "No project is connected yet" in console.get(CONSOLE).text
    with stage.services.database.session() as session:
        session.add(Project(id=7, title="Lesions <b>"))
    tasks = [stage.label_studio.add_task(b"") for _ in range(4)]
    add_row(stage, tasks[0], SuggestionState.QUEUED)
    add_row(stage, tasks[1], SuggestionState.RUNNING)
    add_row(stage, tasks[2], SuggestionState.FAILED, "its image is <gone>")
    add_row(stage, tasks[3], SuggestionState.DONE)
    page = console.get(f"{CONSOLE}?fragment=1").text
    assert "<html" not in page
    assert "Lesions &lt;b&gt;" in page
    cells = page.partition('<th scope="row">7 ')[2].partition("</tr>")[0]
    assert [cells.count(f"<td>{number}</td>") for number in (1, 0)] == [4, 0]
    assert "its image is &lt;gone&gt;" in page
    address = f"{stage.label_studio.url}/projects/7/data?task={tasks[2]}"
    assert f'href="{address}"' in page
    assert "Retry all 1" in page
    redis_server.stop()
    page = console.get(CONSOLE).text
    assert "Redis does not answer" in page
    assert "its image is &lt;gone&gt;" in page


def test_failed_tasks_are_asked_for_again_once(stage: Stage, console: FlaskClient) -> None:
    tasks = [stage.label_studio.add_task(b"", text="a patient") for _ in range(3)]
    ids = [add_row(stage, task, SuggestionState.FAILED, "no image") for task in tasks]
    assert "No such task" in send(console, "/retry", row="unknown").text
    assert console.post(f"{CONSOLE}/retry").status_code == 400

    assert "1 task is predicted again." in send(console, "/retry", row=ids[0]).text
    (ingest,) = [one for one in count_jobs(stage.services.redis) if one.name == QueueName.INGEST]
    assert ingest.waiting == 1
    retry_failed([ids[0]])
    retry_failed([ids[0]])
    before, after = rows_of(stage, tasks[0])
    assert (before.state, before.error) == (SuggestionState.FAILED, "no image")
    assert (after.state, after.delivery) == (SuggestionState.QUEUED, Delivery.PUSH)
    assert after.task_data["image"]

    page = send(console, "/retry")
    assert "2 tasks are predicted again." in page.text
    assert "Retry all 2" in page.text
    # A task that is gone from Label Studio stays failed, and takes no other one along.
    stage.label_studio.delete_task(tasks[1])
    retry_failed(ids)
    assert [len(rows_of(stage, task)) for task in tasks] == [2, 1, 2]
    with stage.services.database.reading() as session:
        assert [row.id for row in failed_rows(session, 10)] == [ids[1]]


def test_a_worker_shows_with_its_signs_of_life(
    services: Services, start_worker: StartWorker
) -> None:
    console = admin(services)
    assert "No worker is alive" in console.get(CONSOLE).text
    worker = start_worker("ingest")
    page = wait_until(
        lambda: (page := console.get(CONSOLE).text) and "No worker" not in page and page,
        otherwise=worker.log_path.read_text,
    )
    row = page.partition('aria-label="Workers"')[2].partition("</tbody>")[0]
    assert "<td>ingest</td>" in row
