"""The page *Agent*: runs, their transcripts and pictures; what a model wrote stays text."""

from backend.services import Services
from tests.support.agent_rows import FAILED, NOT_KEPT, PICTURE, RUN, SENT, add_agent_runs
from tests.support.console import CONSOLE, admin


def test_a_run_is_found_and_its_transcript_opened(services: Services) -> None:
    console = admin(services)
    assert "No agent has looked at a task yet" in console.get(f"{CONSOLE}/agent").text
    add_agent_runs(services)
    listed = console.get(f"{CONSOLE}/agent").text
    for shown in ("task 11", "the larger one", "Tumor: chosen", "930", "0.0012"):
        assert shown in listed
    assert "the server cannot be reached" in listed
    only = console.get(f"{CONSOLE}/agent?task=12").text
    assert "task 12" in only
    assert "task 11" not in only

    opened = console.get(f"{CONSOLE}/agent/{RUN}").text
    for shown in ("the larger one", "choose: mask 2", "Label: Tumor", f"{NOT_KEPT[:12]}… was sent"):
        assert shown in opened
    assert "&lt;script&gt;alert(1)" in opened
    assert "<script>alert" not in opened
    picture = console.get(f"{CONSOLE}/agent/{RUN}/pictures/{SENT}")
    assert (picture.data, picture.mimetype) == (PICTURE, "image/jpeg")
    assert picture.headers["Cache-Control"] == "no-store"


def test_without_a_gallery_no_picture_is_shown(services: Services) -> None:
    console = admin(services)
    add_agent_runs(services)
    services.settings.console_gallery = False
    assert f"{SENT[:12]}… was sent" in console.get(f"{CONSOLE}/agent/{RUN}").text
    assert console.get(f"{CONSOLE}/agent/{RUN}/pictures/{SENT}").status_code == 404


def test_what_is_not_there_is_said(services: Services) -> None:
    console = admin(services)
    add_agent_runs(services)
    assert "Nothing was asked yet" in console.get(f"{CONSOLE}/agent/{FAILED}").text
    for path in ("/agent/nothing", f"/agent/{RUN}/pictures/{NOT_KEPT}"):
        assert console.get(CONSOLE + path).status_code == 404
