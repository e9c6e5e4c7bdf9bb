"""Corrections as programs and people see them: commands, API, doctor, upkeep."""

import base64
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select, update

from backend.corrections.sync import keep_up
from backend.corrections.tables import Revision
from backend.doctor.check import Status
from backend.doctor.database import check_quarantined
from backend.services import WEBHOOK_SECRET_HEADER, open_services
from backend.settings import Settings, get_settings
from backend.tables import Event, now
from backend.web.app import create_app
from tests.support.commands import json_of, run
from tests.support.corrections_stage import CONFIG, Stage, brush, drawn, image_file, stage_at
from tests.support.stand_in_label_studio import StandInLabelStudio


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Two corrected tasks, one broken annotation; commands use the same store."""
    with StandInLabelStudio(CONFIG) as label_studio:
        monkeypatch.setenv("MEDSAM3_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("LABEL_STUDIO_URL", label_studio.url)
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
        monkeypatch.setenv("MEDSAM3_RETENTION_DAYS", "30")
        get_settings.cache_clear()
        services = open_services(Settings())
        with stage_at(services, label_studio) as opened:
            for seed in range(3):
                task = label_studio.add_task(image_file(seed))
                opened.suggest(task, [brush(f"a{seed}", drawn(seed))])
                broken = {"original_width": None} if seed == 2 else {}
                label_studio.annotate(task, [{**brush(f"a{seed}", drawn(seed)), **broken}])
            opened.hear_all()
            yield opened
        services.close()
    get_settings.cache_clear()


@pytest.fixture
def web(stage: Stage) -> FlaskClient:
    client = create_app(stage.services).test_client()
    credentials = stage.services.credentials
    basic = base64.b64encode(f"{credentials.user}:{credentials.password}".encode()).decode()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Basic {basic}"
    return client


def test_list_show_and_stats(stage: Stage) -> None:
    listed = json_of("corrections", "list", "--project", 7)
    assert listed == stage.state()
    (bad,) = json_of("corrections", "list", "--state", "quarantined")
    assert bad["trouble"] == "content"
    shown = json_of("corrections", "show", listed[0]["annotation"])
    assert shown["versions"] == [listed[0]["revision"]]
    stats = json_of("corrections", "stats", "--project", 7)
    assert stats["annotations"] == {"valid": 2, "skipped": 0, "quarantined": 1}
    assert stats["overall"]["acceptance_rate"] == 1.0


def test_people_get_sentences(stage: Stage) -> None:
    listed = run("corrections", "list").stdout.splitlines()
    assert len(listed) == 3
    assert "Tumor" in listed[0]
    assert "original_width" in listed[2]
    assert "100 % accepted" in run("corrections", "stats").stdout
    first = stage.state()[0]["annotation"]
    assert "accepted Tumor  Dice 1.000" in run("corrections", "show", first).stdout


def test_unknown_annotation_is_one_sentence(stage: Stage) -> None:
    result = run("corrections", "show", 999)
    assert result.exit_code == 1
    assert "annotation 999 is not in the store" in result.stderr


def test_sync_and_forget(stage: Stage) -> None:
    stage.label_studio.annotate(next(iter(stage.label_studio.tasks)), [])
    (report,) = json_of("corrections", "sync", "--project", 7)
    assert (report["project_id"], report["revisions"]) == (7, 1)
    assert "0 repaired" in run("corrections", "sync", "--project", 7).stdout
    task = stage.state()[0]["task"]
    refused = run("corrections", "forget", "--task", task, "--yes")
    assert refused.exit_code == 1
    removed = json_of("corrections", "forget", "--project", 7, "--task", task, "--yes")
    assert (removed["annotations"], removed["masks"]) == (2, 1)
    assert task not in {one["task"] for one in stage.state()}


@pytest.mark.parametrize("command", ["sync", "export"])
@pytest.mark.parametrize(("extra", "shown"), [((), True), (("--json",), False)])
def test_progress_is_shown_to_people_at_a_terminal(
    stage: Stage, tmp_path: Path, command: str, extra: tuple[str, ...], shown: bool
) -> None:
    words = {
        "sync": ("corrections", "sync", "--project", "7", "--from-start"),
        "export": ("export", str(tmp_path / "out"), "--project", "7", "--format", "masks"),
    }[command]
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "backend.cli.main", *words, *extra],
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=True,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    assert done.stdout
    title = {"sync": b"Reading project 7", "export": b"Exporting"}[command]
    written = read_terminal(ours)  # warnings among it
    assert (title in written) is shown


def read_terminal(descriptor: int) -> bytes:
    """What a program that has ended wrote to its terminal."""
    read = b""
    try:
        while piece := os.read(descriptor, 4096):
            read += piece
    except OSError:  # Linux: nobody has the other end open any more
        pass
    finally:
        os.close(descriptor)
    return read


def test_export(stage: Stage, tmp_path: Path) -> None:
    options = ("--project", 7, "--format", "coco", "--version", "first")
    answer = json_of("export", tmp_path / "out", *options)
    assert (answer["version"], answer["images"]) == ("first", 2)
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2
    again = run("export", tmp_path / "out", *options)
    assert again.exit_code == 1
    assert "not empty" in again.stderr


def test_api_lists_pages_and_counts(stage: Stage, web: FlaskClient) -> None:
    everything = web.get("/api/v1/corrections?project=7").json
    assert everything == {"corrections": stage.state()}
    first = stage.state()[0]["annotation"]
    rest = web.get(f"/api/v1/corrections?after={first}").json
    assert rest["corrections"] == stage.state()[1:]
    (bad,) = web.get("/api/v1/corrections?state=quarantined").json["corrections"]
    one = web.get(f"/api/v1/corrections/{bad['annotation']}").json
    assert "original_width" in one["reason"]
    assert web.get("/api/v1/corrections/999").status_code == 404
    assert web.get("/api/v1/corrections?state=odd").status_code == 400
    assert web.get("/api/v1/corrections/stats").json == json_of("corrections", "stats")


def test_api_tells_what_the_last_sync_did(stage: Stage, web: FlaskClient) -> None:
    stage.sync()
    (project,) = web.get("/api/v1/corrections/sync").json["projects"]
    assert project["project"] == 7
    assert project["report"]["read"] == 3


def test_doctor_shows_what_is_quarantined(stage: Stage) -> None:
    found = check_quarantined(stage.services.database)
    assert found.status is Status.WARN
    assert found.message.startswith("1 annotations are quarantined: annotation ")
    bad = stage.state()[2]["annotation"]
    stage.label_studio.update(bad, result=[])
    stage.hear_all()
    assert check_quarantined(stage.services.database).status is Status.OK


def test_upkeep_switches_our_webhook_on_again(stage: Stage) -> None:
    def hook(number: int, secret: str, *, is_active: bool) -> dict[str, Any]:
        return {
            "id": number,
            "url": f"http://backend{number}.example.org/webhook",
            "headers": {WEBHOOK_SECRET_HEADER: secret},
            "actions": ["ANNOTATION_CREATED"],
            "send_payload": True,
            "send_for_all_actions": False,
            "is_active": is_active,
        }

    ours, others = stage.services.credentials.webhook_secret, "of another backend"
    hooks = [hook(1, ours, is_active=False), hook(2, others, is_active=False)]
    stage.label_studio.webhooks = [dict(one) for one in hooks]
    keep_up(stage.services)
    assert stage.label_studio.webhooks[0] == {**hooks[0], "is_active": True}
    assert stage.label_studio.webhooks[1] == hooks[1]


def test_upkeep_syncs_and_removes(stage: Stage) -> None:
    stage.label_studio.delete_task(stage.state()[0]["task"])
    settings = stage.services.settings
    left_by_killed = [
        folder / f".{'a' * 16}" for folder in (settings.data_dir, Path(settings.storage))
    ]
    for draft in left_by_killed:
        draft.touch()
        os.utime(draft, (0, 0))
    keep_up(stage.services)
    assert not any(draft.exists() for draft in left_by_killed)
    assert len(stage.state()) == 2
    with stage.services.database.session() as session:
        # Thirty days have not gone by.
        assert len(session.scalars(select(Revision)).all()) == 2
        assert len(session.scalars(select(Event)).all()) == 3
        session.execute(update(Revision).values(ingested_at=now() - timedelta(days=31)))
        session.execute(update(Event).values(finished_at=now() - timedelta(days=31)))
    keep_up(stage.services)
    with stage.services.database.reading() as session:
        (kept,) = session.scalars(select(Revision.annotation_id))
        assert kept == stage.state()[0]["annotation"]
        assert session.scalars(select(Event)).all() == []
