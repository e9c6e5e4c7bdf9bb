"""A preview: a sheet of pictures of some tasks, of which nothing is left behind."""

import io
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image
from sqlalchemy import func, select

from backend.errors import BackendError
from backend.predictions.preannotate_options import PreannotateOptions
from backend.predictions.preview import preview
from backend.predictions.preview_sheet import CAPTION, GAP, TILE, save_sheet
from backend.predictions.recover import PREVIEW_S, recover
from backend.services import Services, use_services
from backend.tables import Delivery, Project, Suggestion, now
from medsam3_model.pretraining.phantoms.phantoms import phantom
from tests.support.commands import run
from tests.support.console import CONSOLE, admin, browser, send, worker_turn
from tests.support.images import png
from tests.support.label_configs import DISC_AND_CUP_CONFIG
from tests.support.processes import StartWorker
from tests.support.stand_in_label_studio import StandInLabelStudio
from tests.support.waiting import wait_until


@pytest.fixture
def fundus_project(services: Services) -> Iterator[StandInLabelStudio]:
    """Five retinas and a file that is no image."""
    with StandInLabelStudio(DISC_AND_CUP_CONFIG) as server:
        services.settings.label_studio_url = server.url
        for seed in range(5):
            server.add_task(png(phantom("fundus", seed).image))
        server.add_task(b"no image")
        yield server


def test_a_sheet_shows_what_would_come_and_nothing_is_left(
    services: Services,
    fundus_project: StandInLabelStudio,
    start_worker: StartWorker,
    tmp_path: Path,
) -> None:
    start_worker("gpu")
    seen: list[tuple[int, int]] = []
    found = preview(
        services,
        7,
        PreannotateOptions(),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (6, 6)
    assert [task.task_id for task in found.tasks] == list(fundus_project.tasks)
    *retinas, broken = found.tasks
    assert all(task.regions and not task.error for task in retinas)
    assert broken.error
    assert not fundus_project.predictions
    with services.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Suggestion)) == 0

    path = tmp_path / "sheet.png"
    save_sheet(services, found, path)
    with Image.open(path) as opened:
        sheet = np.asarray(opened.convert("RGB")).astype(int)
    for place, task in enumerate(found.tasks):
        top = GAP + CAPTION + place // 4 * (TILE + CAPTION + GAP)
        left = GAP + place % 4 * (TILE + GAP)
        tile = sheet[top : top + TILE, left : left + TILE]
        orange = (np.abs(tile - (230, 159, 0)).sum(axis=-1) < 60).sum()
        blue = (np.abs(tile - (86, 180, 233)).sum(axis=-1) < 60).sum()
        assert (orange > 20, blue > 20) == ((False, False) if task.error else (True, True))
    with pytest.raises(BackendError, match=r"cannot be written .* try preview.png"):
        save_sheet(services, found, tmp_path / "sheet.unknown")


def test_one_label_of_a_few_tasks_by_command(
    services: Services,
    fundus_project: StandInLabelStudio,
    start_worker: StartWorker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("label_studio_url", "label_studio_api_key", "data_dir"):
        value = getattr(services.settings, name)
        prefix = "" if name.startswith("label_studio") else "medsam3_"
        text = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
        monkeypatch.setenv((prefix + name).upper(), text)
    sheet = tmp_path / "sheet.png"
    options = ("preannotate", 7, "--preview", sheet)
    late = run(*options, "--wait", 0)
    assert "of 6 tasks of the preview are not predicted yet" in late.output
    assert "at most 60 tasks" in run(*options, "--limit", 61).output
    assert 'no label "Bone"' in run(*options, "--label", "Bone").output
    assert run(*options, "--cancel").exit_code == 1
    assert not sheet.exists()
    start_worker("gpu")
    done = run(*options, "--limit", 2, "--label", "Disc")
    assert done.exit_code == 0, done.output
    assert "shows 2 tasks" in done.output
    assert "Nothing was pushed." in done.output
    with Image.open(sheet) as opened:
        assert opened.size == (4 * (TILE + GAP) + GAP, TILE + CAPTION + 3 * GAP + CAPTION)
    assert not fundus_project.predictions


def test_the_console_shows_a_sample_as_it_comes(
    services: Services, fundus_project: StandInLabelStudio, start_worker: StartWorker
) -> None:
    page = f"{CONSOLE}/preannotate/7/sample"
    use_services(services)
    console = admin(services)
    assert console.get(page).status_code == 404
    with services.database.session() as session:
        session.add(Project(id=7, title="Retinas", label_config=DISC_AND_CUP_CONFIG))
    assert "No sample was asked for" in console.get(page).text

    send(console, "/preannotate/7", limit="61", sample="1")
    worker_turn(services)
    assert "at most 60 tasks" in console.get(page).text
    asked = send(console, "/preannotate/7", limit="", sample="1")
    assert "A worker asks Label Studio for a sample of all tasks" in asked.text
    worker_turn(services)
    assert "0 of 6 are predicted" in console.get(page).text
    start_worker("gpu")
    wait_until(lambda: "6 of 6 are predicted" in console.get(page).text, 120)

    shown = console.get(page).text
    pictures = re.findall(r'src="([^"]+/pictures/[^"]+)"', shown)
    assert len(pictures) == 5
    with services.database.reading() as session:
        (reason,) = session.scalars(select(Suggestion.error).where(Suggestion.error.is_not(None)))
    assert str(escape(reason)) in shown
    for address in pictures:
        answer = console.get(address)
        assert "no-store" in answer.headers["Cache-Control"]
        with Image.open(io.BytesIO(answer.data)) as opened:
            colours = np.asarray(opened.convert("RGB")).astype(int)
        assert (np.abs(colours - (230, 159, 0)).sum(axis=-1) < 60).sum() > 20
    assert not fundus_project.predictions
    assert "/console/login" in browser(services).get(pictures[0]).headers["Location"]
    assert console.get(f"{CONSOLE}/preannotate/pictures/none").status_code == 404

    # What was for Label Studio is no sample, and one that nobody looks at any more makes room.
    hidden = pictures[0].rpartition("/")[2]
    services.database.update(Suggestion, Suggestion.id == hidden, delivery=Delivery.DELIVERED)
    assert console.get(pictures[0]).status_code == 404
    services.database.update(
        Suggestion, Suggestion.id != hidden, created_at=now() - timedelta(seconds=PREVIEW_S + 1)
    )
    recover(services)
    with services.database.reading() as session:
        assert list(session.scalars(select(Suggestion.id))) == [hidden]
    assert "not kept any more" in console.get(page).text
    use_services(None)
