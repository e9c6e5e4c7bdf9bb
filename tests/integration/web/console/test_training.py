"""The pages *Training*: a project's choices, and runs that are started, watched and cancelled."""

from flask.testing import FlaskClient

from backend.people import audit
from backend.processes.redis_server import RedisServer
from backend.services import Services
from backend.tables import ModelVersion, Project, TrainingPolicy
from backend.training import curves, run_log, runs
from backend.training.curves import CurvePoint, add_point, curve_of, thinned
from backend.training.tables import RunState, Stage, TrainingRun, Trigger
from medsam3_model.training.endings import ENDINGS
from tests.support.console import CONSOLE, admin, send

CHOSEN = {
    "after_corrections": "5",
    "schedule": "0 3 * * 1",
    "strategy": "random",
    "consensus": "",
    "auto_promote": "no",
    "agent": "",
    "adapter": "yes",
}


def words(client: FlaskClient, path: str) -> str:
    answer = client.get(f"{CONSOLE}{path}")
    assert answer.status_code == 200, path
    return " ".join(answer.text.split())


def chosen(services: Services) -> TrainingPolicy | None:
    with services.database.reading() as session:
        return session.get(TrainingPolicy, 7)


def add_project(services: Services) -> None:
    with services.database.session() as session:
        session.add(Project(id=7, title="Lesions"))


def trail(services: Services) -> list[tuple[str, str]]:
    """Actions by the console since its login, oldest first."""
    with services.database.reading() as session:
        entries = audit.entries(session)
    return [(entry.action, entry.via) for entry in entries[::-1] if entry.action != "log-in"]


def test_choices_are_stored_or_refused_beside_their_fields(services: Services) -> None:
    console = admin(services)
    assert "No project is connected yet" in words(console, "/training")
    add_project(services)
    page = words(console, "/training")
    assert "as the setting: uncertainty" in page
    assert '<option value="random">random</option>' in page

    assert "are stored" in send(console, "/training/7", **CHOSEN).text
    row = chosen(services)
    assert row is not None
    assert (row.after_corrections, row.schedule) == (5, "0 3 * * 1")
    chosen_words = (row.strategy, row.consensus, row.auto_promote, row.agent, row.adapter)
    assert chosen_words == ("random", None, False, None, True)
    page = words(console, "/training/7")
    assert 'value="0 3 * * 1"' in page
    assert '<option selected value="random">' in page

    for name, value, reason in (
        ("after_corrections", "many", "valid integer"),
        ("after_corrections", "-1", "valid integer"),
        ("after_corrections", "9999999999", "less than or equal"),
        ("schedule", "at dawn", "no cron line"),
        ("schedule", "0 0 30 2 *", "never comes due"),
        ("strategy", "guess", "Input should be"),
        ("auto_promote", "maybe", "valid boolean"),
    ):
        refused = send(console, "/training/7", **{**CHOSEN, name: value})
        assert refused.status_code == 400, value
        assert reason in refused.text.partition(f'id="{name}-error"')[2][:200], value
        assert 'aria-invalid="true"' in refused.text
        assert refused.text.count("is-invalid") == 1
    row = chosen(services)
    assert row is not None
    assert (row.after_corrections, row.schedule) == (5, "0 3 * * 1")

    # No schedule is a choice, and an empty field is none.
    sent = {**CHOSEN, "schedule": "none", "after_corrections": "", "auto_promote": ""}
    assert send(console, "/training/7", **sent).status_code == 200
    row = chosen(services)
    assert row is not None
    assert (row.after_corrections, row.schedule, row.auto_promote) == (None, "", None)
    assert 'value="none"' in words(console, "/training/7")
    assert trail(services) == [("set-policy", "console")] * 2
    assert console.get(f"{CONSOLE}/training/8").status_code == 404
    assert console.get(f"{CONSOLE}/training/{2**70}").status_code == 400


def test_a_run_is_started_watched_and_cancelled(
    services: Services, redis_server: RedisServer
) -> None:
    console = admin(services)
    add_project(services)
    assert "A run is asked for" in send(console, "/training/7/start").text
    assert "under way already" in send(console, "/training/7/start").text
    with services.database.reading() as session:
        (run,) = runs.list_runs(session)
    assert (run.project_id, run.trigger) == (7, Trigger.CONSOLE)
    assert "waits for the trainer" in words(console, "/training/7?fragment=1")
    assert "Cancel the run of project 7" in words(console, "?fragment=1")

    assert runs.claim(services, run.id)
    runs.report(
        services, run.id, stage=Stage.TRAINING, step=3, loss=1.5, validation_dice=0.75, eta_s=90.0
    )
    for step in (1, 2, 1, 2, 3):
        add_point(services.redis, run.id, CurvePoint(step, 3.0 / step, 0.75 if step > 1 else None))
    for path in ("/training/7?fragment=1", f"/training/runs/{run.id}?fragment=1"):
        page = words(console, path)
        assert "<html" not in page
        assert "3 of at most 2000" in page
        assert "2 min" in page
        assert page.count("<polyline") == 2
        table = page.partition('aria-label="Curve, newest step first"')[2].partition("</tbody>")[0]
        assert [part.partition("<")[0] for part in table.split('scope="row">')[1:]] == [
            "3",
            "2",
            "1",
        ]
    assert "ends at its next step" in send(console, f"/training/runs/{run.id}/cancel").text
    assert "is being cancelled" in words(console, "/training/7")
    runs.finish(services, run.id, RunState.CANCELLED)
    assert "The run is cancelled." in send(console, f"/training/runs/{run.id}/cancel").text
    page = words(console, "/training/7")
    assert "No run is under way" in page
    assert "<td>cancelled</td>" in page

    # Cancelled on the page *Work*, to which that returns.
    send(console, "/training/7/start")
    with services.database.reading() as session:
        (waiting,) = runs.under_way(session)
    done = send(console, f"/training/runs/{waiting.id}/cancel", back="work")
    assert "The run is cancelled." in done.text
    assert done.request.path == CONSOLE
    started, cancelled = ("train", "console"), ("cancel-training", "console")
    assert trail(services) == [started, started, cancelled, started, cancelled]

    assert console.get(f"{CONSOLE}/training/runs/unknown").status_code == 404
    assert send(console, "/training/runs/unknown/cancel").status_code == 409
    assert send(console, "/training/8/start").status_code == 404
    redis_server.stop()
    assert "The curve is not known: Redis does not answer" in words(
        console, f"/training/runs/{run.id}"
    )


def test_why_a_run_ended_and_a_curve_out_of_its_versions_card(services: Services) -> None:
    console = admin(services)
    add_project(services)
    history = [[20, 2.0, 0.5], [40, 1.0, None]]
    with services.database.session() as session:
        session.add_all(
            TrainingRun(id=name, project_id=7, trigger=Trigger.SCHEDULE, options={}, **values)
            for name, values in {
                "a": {"state": RunState.DONE, "stopped": "patience", "candidate": "tiny-p7"},
                "b": {"state": RunState.FAILED, "error": "the image is <gone>"},
            }.items()
        )
        card = {"training": {"history": history}}
        made = ModelVersion(version="tiny-p7", checkpoint="tiny", run_id="a", card=card)
        session.add(made)
    page = words(console, "/training/7")
    assert ENDINGS["patience"] in page
    assert "the image is &lt;gone&gt;" in page
    assert f"{CONSOLE}/models/tiny-p7" in page
    assert words(console, "/training/runs/a").count("<polyline") == 2
    assert curve_of(services.redis, "a", card) == [
        CurvePoint(20, 2.0, 0.5),
        CurvePoint(40, 1.0, None),
    ]


def test_a_long_curve_keeps_its_newest_points_and_is_thinned(services: Services) -> None:
    with services.redis.pipeline(transaction=False) as pipeline:
        for step in range(curves.MOST_POINTS):
            pipeline.rpush("medsam3:curve:long", f"[{step}, 1.0, null]")
        pipeline.execute()
    add_point(services.redis, "long", CurvePoint(9999, 1.0, None))
    points = curve_of(services.redis, "long")
    assert (len(points), points[0].step, points[-1].step) == (curves.MOST_POINTS, 1, 9999)
    few = thinned(points, 12)
    assert len(few) <= 12
    assert few[-1] == points[-1]
    assert thinned(few, 12) == few


def test_a_runs_page_has_its_log(services: Services, redis_server: RedisServer) -> None:
    console = admin(services)
    add_project(services)
    requested = runs.request_run(services, 7, Trigger.CONSOLE)
    path = f"/training/runs/{requested.run_id}?fragment=1"
    assert "No line is kept" in words(console, path)
    for number in range(run_log.MOST_LINES + 5):
        run_log.note(services.redis, requested.run_id, f"line {number} of many")
    run_log.note(services.redis, requested.run_id, "failed:\n\x1b[2J<script>alert(1)</script>")
    run_log.note(services.redis, requested.run_id, "x" * 10_000)
    lines = run_log.log_of(services.redis, requested.run_id)
    assert len(lines) == run_log.MOST_LINES
    assert len(lines[-1].text) == run_log.MOST_CHARACTERS
    assert lines[0].text == "line 7 of many"
    page = words(console, path)
    assert "<html" not in page
    assert "failed: [2J&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert page.index("line 204 of many") < page.index("line 7 of many"), "newest first"
    assert services.redis.ttl(f"medsam3:run-log:{requested.run_id}") > 0

    redis_server.stop()
    assert "The log is not known: Redis does not answer" in words(console, path)
    run_log.note(services.redis, requested.run_id, "is lost, and nothing else")
