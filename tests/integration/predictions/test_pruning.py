"""Old predictions of earlier versions go; what serves, is new or is named by a correction stays."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from backend.corrections.tables import RegionOutcome
from backend.people import audit
from backend.predictions import pruning
from backend.predictions.pruning import prune, prune_job
from backend.services import Services
from backend.tables import Delivery, LabelConfigText, Project, Suggestion, SuggestionState, now
from tests.support.commands import json_of, run
from tests.support.correction_rows import add_corrections

OLD = 100


@pytest.fixture(autouse=True)
def predictions(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of project 7, which `new` serves: eight old ones of `old` and some that have to stay."""
    monkeypatch.setattr("backend.services.open_services", lambda: services)
    monkeypatch.setattr(pruning, "TOGETHER", 3)
    with services.database.session() as session:
        session.add(Project(id=7, model_version="new"))
        session.add(LabelConfigText(hash="c", xml="<View/>"))
        session.flush()
        session.add_all(row(f"old{number}") for number in range(8))
        session.add(row("serves", model_version="new"))
        session.add(row("young", days=10))
        session.add(row("waits", delivery=Delivery.PUSH))
        session.add(row("runs", state=SuggestionState.RUNNING, finished_at=None))
        session.add(row("other", project_id=8))
    # A correction was made of two of them: of one whole, of one region of the other.
    add_corrections(services, 2)
    with services.database.session() as session:
        session.execute(update(RegionOutcome).values(suggestion_id="old3"))


def row(id_: str, *, days: int = OLD, **fields: Any) -> Suggestion:
    moment = now() - timedelta(days=days)
    return Suggestion(
        **{
            "id": id_,
            "project_id": 7,
            "task_id": 1,
            "config_hash": "c",
            "task_data": {},
            "model_version": "old",
            "state": SuggestionState.DONE,
            "delivery": Delivery.DELIVERED,
            "created_at": moment,
            "finished_at": moment,
            **fields,
        }
    )


def left(services: Services) -> set[str]:
    with services.database.reading() as session:
        return set(session.scalars(select(Suggestion.id)))


STAYS = {"old3", "serves", "young", "waits", "runs", "other"}


def test_only_what_nobody_needs_goes(services: Services) -> None:
    before = left(services)
    counted = prune(services, days=30, project_id=7, dry_run=True)
    assert (counted.by_project, counted.kept, left(services)) == ({7: 7}, 1, before)
    assert prune(services, days=30, project_id=7) == counted
    assert left(services) == STAYS
    assert prune(services, days=30, project_id=7).by_project.total() == 0
    with services.database.reading() as session:
        (entry,) = audit.entries(session)
    assert (entry.action, entry.subject) == ("prune", "7 predictions older than 30 days")


def test_all_projects_and_as_a_command(services: Services) -> None:
    refused = run("prune")
    assert refused.exit_code == 1
    assert "MEDSAM3_PRUNE_DAYS" in refused.output
    assert json_of("prune", "--days", 30, "--dry-run")["by_project"] == {"7": 7, "8": 1}
    shown = run("prune", "--days", 30).output
    assert "8 predictions were removed; 1 others are old and still needed" in shown
    assert "project 8: 1" in shown
    assert left(services) == STAYS - {"other"}


def test_an_ingest_worker_prunes_by_the_setting(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "current_services", lambda: services)
    before = left(services)
    prune_job([])
    assert left(services) == before, "no setting, no pruning"
    services.settings.prune_days = 30
    prune_job([])
    assert left(services) == STAYS - {"other"}
