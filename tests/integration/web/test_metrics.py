"""/metrics as Prometheus reads it, and the dashboard that asks for it by name."""

import json
import re
from typing import Any

from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from backend.processes.counters import BOUNDS_S, StageTimes, WorkStage, publish
from backend.services import Services
from backend.tables import Event, LabelConfigText, Suggestion
from tests.support.repository import ROOT
from tests.support.training_rows import add_runs

DASHBOARD = ROOT / "docs" / "grafana.json"


def samples(web: FlaskClient) -> list[Any]:
    families = text_string_to_metric_families(web.get("/metrics").text)
    return [sample for family in families for sample in family.samples]


def values(web: FlaskClient, name: str, label: str) -> dict[str, float]:
    """Samples of a metric by one of its labels."""
    return {one.labels[label]: one.value for one in samples(web) if one.name == name}


def test_a_histogram_is_the_sum_of_all_processes(web: FlaskClient, services: Services) -> None:
    for seconds in ((0.02, 0.02, 7200.0), (0.2,)):
        times = StageTimes()
        for one in seconds:
            times.observe(WorkStage.FETCH, one)
        publish(services.redis, times.take())
    buckets = {
        one.labels["le"]: one.value
        for one in samples(web)
        if one.name == "medsam3_stage_seconds_bucket" and one.labels["stage"] == "fetch"
    }
    assert list(buckets) == [*map(str, BOUNDS_S), "+Inf"]
    assert [buckets[bound] for bound in ("0.01", "0.03", "0.1", "0.3", "3600.0", "+Inf")] == [
        0, 2, 2, 3, 3, 4,
    ]  # fmt: skip
    assert values(web, "medsam3_stage_seconds_count", "stage") == {
        "wait": 0, "fetch": 4, "encode": 0, "detect": 0, "push": 0,
    }  # fmt: skip
    assert values(web, "medsam3_stage_seconds_sum", "stage")["fetch"] == 7200.24


def test_training_is_shown_while_it_is_at_work(web: FlaskClient, services: Services) -> None:
    assert values(web, "medsam3_training_step", "project") == {}
    add_runs(services)
    assert values(web, "medsam3_training_step", "project") == {"7": 40}
    assert values(web, "medsam3_training_steps", "project") == {"7": 2000}
    assert values(web, "medsam3_training_loss", "project") == {"7": 1.234}
    assert values(web, "medsam3_training_validation_dice", "project") == {"7": 0.8}
    assert values(web, "medsam3_training_runs", "state") == {
        "queued": 0, "running": 1, "done": 1, "failed": 1, "cancelled": 1,
    }  # fmt: skip


def test_the_dashboard_asks_for_what_is_there(web: FlaskClient, services: Services) -> None:
    add_runs(services)
    services.redis.hset("medsam3:last-rounds", "sync", 0)
    with services.database.session() as session:
        session.add(LabelConfigText(hash="x", xml="<View/>"))
        session.flush()
        session.add(Event(action="ANNOTATION_CREATED", task_ids=[], annotation_ids=[]))
        session.add(Suggestion(project_id=7, config_hash="x", task_data={}, model_version="v"))
    known: dict[str, set[str]] = {}
    for sample in samples(web):
        known.setdefault(sample.name, set()).update(sample.labels)
    dashboard = json.loads(DASHBOARD.read_text())
    sources = [one for one in dashboard["templating"]["list"] if one["type"] == "datasource"]
    assert [(one["name"], one["query"]) for one in sources] == [("datasource", "prometheus")]
    asked: set[str] = set()
    assert len(dashboard["panels"]) > 10
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for part in (panel, target):
                assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            names = set(re.findall(r"medsam3_\w+", expression))
            assert names, panel["title"]
            assert names <= known.keys(), (panel["title"], names - known.keys())
            labels = {
                label.strip()
                for grouped in re.findall(r"by \(([^)]*)\)", expression)
                for label in grouped.split(",")
            } | set(re.findall(r"[{,]\s*(\w+)[=!]", expression))
            of_metrics = set.union(*(known[name] for name in names))
            # Prometheus adds the instance that it asked.
            assert labels <= of_metrics | {"instance"}, (panel["title"], labels)
            legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert legend <= labels, panel["title"]
            asked |= names
    stages = {"medsam3_stage_seconds_bucket", "medsam3_stage_seconds_count"}
    assert stages | {"medsam3_jobs_total", "medsam3_workers", "medsam3_training_step"} <= asked
