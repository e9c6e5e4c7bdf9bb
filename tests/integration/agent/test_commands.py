"""`medsam3 agent show`: what was done on a task, for people, programs and with its pictures."""

from pathlib import Path

import pytest

from backend.services import Services
from tests.support.agent_rows import FAILED, PICTURE, RUN, SENT, add_agent_runs
from tests.support.commands import json_of, run


@pytest.fixture(autouse=True)
def runs(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.services.open_services", lambda: services)
    add_agent_runs(services)


def test_a_run_is_told_line_by_line_and_as_json(tmp_path: Path) -> None:
    shown = run("agent", "show", 11, "--pictures", tmp_path / "pictures")
    assert shown.exit_code == 0, shown.output
    for line in (
        "instruction: the larger one",
        "choose: mask 2",
        "Tumor: chosen, the language model chose mask 2",
        "1 requests, 930 tokens, 1.5 s, cost 0.0012",
        "1 pictures are in",
    ):
        assert line in shown.output
    assert "\x1b" not in shown.output, "a model's words do nothing to a terminal"
    assert (tmp_path / "pictures" / f"{SENT}.jpg").read_bytes() == PICTURE
    (told,) = json_of("agent", "show", 11)
    assert (told["id"], told["exchanges"][0]["pictures"][0]) == (RUN, SENT)
    (failed,) = json_of("agent", "show", 12)
    assert (failed["id"], failed["error"]) == (FAILED, "the server cannot be reached")
    assert "the server cannot be reached" in run("agent", "show", 12).output


def test_a_task_that_no_agent_looked_at_is_named() -> None:
    refused = run("agent", "show", 99)
    assert refused.exit_code != 0
    assert "task 99" in refused.output
