"""The pages *Corrections* and *Agreement*: figures, quarantine, pictures of suggestions."""

import io

import numpy as np
from PIL import Image

from backend.corrections.agreement import compute_job
from backend.corrections.statistics import compute
from backend.corrections.totals import compute_totals
from backend.processes.queues import QueueName, count_jobs
from backend.processes.redis_server import RedisServer
from backend.services import Services, use_services
from tests.support.console import CONSOLE, admin
from tests.support.corrections_stage import HEIGHT, WIDTH, Stage, brush, drawn, image_file


def annotated(stage: Stage) -> list[int]:
    """An accepted, an edited and a rejected suggestion, one addition, one broken annotation."""
    tasks = [stage.label_studio.add_task(image_file(seed)) for seed in range(4)]
    for seed, task in enumerate(tasks):
        stage.suggest(task, [brush(f"a{seed}", drawn(seed))])
    stage.label_studio.annotate(tasks[0], [brush("a0", drawn(0))])
    stage.label_studio.annotate(tasks[1], [brush("a1", drawn(9))], completed_by=2)
    corner = np.zeros((HEIGHT, WIDTH), bool)
    corner[:6, :6] = True
    stage.label_studio.annotate(tasks[1], [brush("n1", corner, label="Cyst")])
    stage.label_studio.annotate(tasks[2], [])
    stage.label_studio.annotate(tasks[3], [{**brush("a3", drawn(3)), "original_width": None}])
    stage.hear_all()
    return tasks


def waiting(stage: Stage) -> int:
    (ingest,) = [one for one in count_jobs(stage.services.redis) if one.name == QueueName.INGEST]
    return ingest.waiting


def test_totals_are_the_statistics(stage: Stage) -> None:
    annotated(stage)
    with stage.services.database.reading() as session:
        slow, fast = compute(session, 7), compute_totals(session, 7)
        assert compute_totals(session, 8).by_week == {}
    for name, parts in (
        ("by_concept", fast.by_label),
        ("by_annotator", fast.by_annotator),
        ("by_model_version", fast.by_model_version),
        ("by_week", fast.by_week),
    ):
        assert slow[name].keys() == parts.keys()
        for key, total in parts.items():
            figures = slow[name][key]
            for kind in ("accepted", "edited", "rejected", "added"):
                assert figures[kind] == getattr(total, kind)
            assert figures["dice"] == (total.dice and round(total.dice, 4))
            if name != "by_concept":
                assert figures["annotations"] == total.annotations
                assert figures["total_seconds"] == total.seconds_sum
    assert round(fast.overall.drawn_each or 0, 4) == slow["overall"]["added_path_length"]


def test_pages_show_corrections_agreement_and_pictures(
    stage: Stage, redis_server: RedisServer
) -> None:
    tasks = annotated(stage)
    console = admin(stage.services)
    page = console.get(f"{CONSOLE}/corrections/7").text
    assert page.count('<rect class="plot-') == 8  # the legend's four, and four of this week
    address = f"{stage.label_studio.url}/projects/7/data?task={tasks[3]}"
    assert f'href="{address}"' in page.partition("Quarantined annotations")[2]
    assert "original_width" in page
    picture = page.partition('loading="lazy"')[2].partition('src="')[2].partition('"')[0]
    answer = console.get(picture)
    assert answer.headers["Cache-Control"] == "no-store"
    shown = np.array(Image.open(io.BytesIO(answer.data)))
    assert max(shown.shape) == 240
    for colour in ((255, 150, 40), (60, 220, 255)):
        assert (shown == colour).all(axis=2).sum() > 50
    assert console.get(f"{CONSOLE}/corrections/pictures/1/9").status_code == 404

    before = waiting(stage)
    assert "are being compared" in console.get(f"{CONSOLE}/agreement").text
    console.get(f"{CONSOLE}/agreement/7")
    # However often somebody looks, it is one job.
    assert waiting(stage) == before + 1
    use_services(stage.services)
    compute_job(["7"])
    use_services(None)
    page = console.get(f"{CONSOLE}/agreement?fragment=1").text
    assert f"{stage.label_studio.url}/projects/7/data?task={tasks[1]}" in page
    assert "come in since" not in page

    # What comes in later is seen, though totals are kept.
    assert "<dd>4</dd>" in console.get(f"{CONSOLE}/corrections/7").text
    stage.label_studio.annotate(tasks[2], [brush("a2", drawn(2))], completed_by=3)
    stage.hear_all()
    assert "<dd>5</dd>" in console.get(f"{CONSOLE}/corrections/7").text

    settings = stage.services.settings.model_copy(update={"console_gallery": False})
    closed = admin(Services(settings, stage.services.database, stage.services.redis))
    assert "edited most" not in closed.get(f"{CONSOLE}/corrections").text
    assert closed.get(picture).status_code == 404
