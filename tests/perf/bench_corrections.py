"""Ten thousand corrections of 1024² masks: how fast they come in, what they weigh, what they cost.

By two workers at the same time, as on two cores, and without the network: Label Studio's answers
are made here, and the time that takes is not counted. Everything else is: reading the JSON,
decoding, comparing, writing mask files and rows.
"""

import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import bindparam, text

from backend.corrections import store
from backend.corrections.ingest import Ingest
from backend.corrections.mask_store import MaskStore
from backend.corrections.source import AnnotationSource
from backend.corrections.statistics import compute
from backend.corrections.submissions import read_annotation
from backend.database import Database
from backend.label_studio.client import LabelStudio
from backend.settings import Settings
from backend.tables import LabelConfigText, Suggestion
from tests.support.images import png
from tests.support.regions import brush

COUNT = 10_000
SIZE = 1024
WORKERS = 2
PROJECT = 1
CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Tumor"/><Label value="Cyst"/></BrushLabels>
</View>
"""
# Every n-th mask is also written by Pillow, for the weight of a plain PNG.
WEIGHED = 20
# Caches fill in the beginning; memory is compared from here on.
WARM = 1000
_WAVES = range(1, 24)


class AnswersFromMemory(AnnotationSource):
    """A source whose images are there already; nothing else is asked of it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(LabelStudio("http://127.0.0.1:1", "0" * 40), settings)
        self._image = png(np.zeros((SIZE, SIZE), np.uint8))

    def image(self, reference: str, *, project_id: int, task_id: int) -> bytes:
        return self._image + task_id.to_bytes(4, "big")


@dataclass(frozen=True)
class Share:
    """What one ingest worker measured."""

    count: int
    seconds: float
    rss_growth_mb: float
    png_bytes: int  # of `weighed` of its masks
    weighed: int


def measure(count: int = COUNT) -> dict[str, float]:
    """`ingest_per_s`, `store_bytes_ratio`, `stats_s`, `ingest_rss_growth_mb`."""
    with tempfile.TemporaryDirectory(prefix="bench-corrections-") as folder:
        ingest = _open(Path(folder))
        ingest.database.migrate()
        with ingest.database.session() as session:
            store.see_config(session, store.observe(session), PROJECT, CONFIG)
            session.add(LabelConfigText(hash="c" * 64, xml=CONFIG))
        with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
            parts = [(Path(folder), range(first, count, WORKERS)) for first in range(WORKERS)]
            shares = pool.starmap(_work, parts)
        figures = _figures(ingest, count, shares)
        ingest.database.dispose()
    return figures


def _open(folder: Path) -> Ingest:
    settings = Settings(data_dir=folder, database_url=None, storage_url=None)
    return Ingest(
        Database(settings.database),
        MaskStore(settings.storage),
        AnswersFromMemory(settings),
        settings,
    )


def _work(folder: Path, numbers: range) -> Share:
    """One ingest worker's part."""
    ingest = _open(folder)
    blobs = [_blob(seed) for seed in range(40)]
    random = np.random.default_rng(numbers.start)
    spent, png_bytes, weighed, warm_rss = 0.0, 0, 0, 0.0
    for done, number in enumerate(numbers):
        drawn = [_moved(blobs, random) for _ in range(2)]
        payload, suggestion = _answers(number, drawn, random)
        with ingest.database.session() as session:
            session.add(suggestion)
        if done % WEIGHED == 0:
            png_bytes += sum(map(_png_size, drawn))
            weighed += len(drawn)
        began = time.perf_counter()
        _take_in(ingest, payload)
        spent += time.perf_counter() - began
        if done == min(WARM, len(numbers) // 2):
            warm_rss = _rss_mb()
    return Share(len(numbers), spent, _rss_mb() - warm_rss, png_bytes, weighed)


def _figures(ingest: Ingest, count: int, shares: list[Share]) -> dict[str, float]:
    timings = []
    for _ in range(3):
        began = time.perf_counter()
        with ingest.database.reading() as session:
            found = compute(session)
        timings.append(time.perf_counter() - began)
    assert found["annotations"]["valid"] == count
    files = list(Path(ingest.settings.storage).rglob("*.png"))
    file_bytes = sum(file.stat().st_size for file in files)
    stored = file_bytes + _row_bytes(ingest.database)
    pngs = sum(one.png_bytes for one in shares) / sum(one.weighed for one in shares) * len(files)
    print(
        f"{len(files)} masks: files {file_bytes / pngs:.2f} of their PNGs' bytes, rows "
        f"{(stored - file_bytes) / pngs:.2f}",
        file=sys.stderr,
    )
    return {
        "ingest_per_s": round(sum(one.count / one.seconds for one in shares), 1),
        "store_bytes_ratio": round(stored / pngs, 3),
        "stats_s": round(statistics.median(timings), 3),
        "ingest_rss_growth_mb": round(max(one.rss_growth_mb for one in shares), 1),
    }


def _take_in(ingest: Ingest, payload: bytes) -> None:
    with ingest.database.session() as session:
        number = store.observe(session)
    record = read_annotation(json.loads(payload))
    draft = ingest.draft(record, CONFIG, {"image": f"/data/upload/1/{record.task}.png"})
    assert ingest.save(number, draft) == "revision"


def _answers(
    number: int, drawn: list[NDArray[np.bool_]], random: np.random.Generator
) -> tuple[bytes, Suggestion]:
    """An annotation's JSON, and the suggestion it began with: one region kept, one brushed over."""
    moment = datetime(2026, 1, 5, tzinfo=UTC) + timedelta(minutes=11 * number)
    kept, edited = drawn
    before = np.roll(edited, int(random.integers(2, 12)), axis=1)
    ids = [f"{number:06x}{position}" for position in "ab"]
    suggestion = Suggestion(
        project_id=PROJECT,
        task_id=number + 1,
        config_hash="c" * 64,
        task_data={},
        model_version=f"tiny-{number % 3}",
        state="done",
        delivery="delivered",
        result=[brush(ids[0], kept, "Tumor"), brush(ids[1], before, "Cyst")],
        finished_at=moment,
    )
    annotation = {
        "id": number + 1,
        "task": number + 1,
        "project": PROJECT,
        "result": [brush(ids[0], kept, "Tumor"), brush(ids[1], edited, "Cyst")],
        "completed_by": 1 + number % 4,
        "updated_by": 1 + number % 4,
        "created_at": moment.isoformat(),
        "updated_at": moment.isoformat(),
        "lead_time": float(random.uniform(5, 90)),
    }
    return json.dumps(annotation).encode(), suggestion


def _blob(seed: int) -> NDArray[np.bool_]:
    """A lesion-like outline with the jitter of a hand."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    angles = np.linspace(-np.pi, np.pi, 4096)
    waves = [random.normal(0, 0.3 / k) * np.cos(k * angles + random.uniform(0, 6)) for k in _WAVES]
    outline = random.uniform(60, 180) * (1 + np.sum(waves, axis=0))
    radius = np.interp(np.arctan2(rows, columns), angles, outline)
    found: NDArray[np.bool_] = rows**2 + columns**2 < radius**2
    return found


def _moved(blobs: list[NDArray[np.bool_]], random: np.random.Generator) -> NDArray[np.bool_]:
    shift = tuple(int(value) for value in random.integers(-300, 300, 2))
    return np.roll(blobs[int(random.integers(len(blobs)))], shift, axis=(0, 1))


def _png_size(mask: NDArray[np.bool_]) -> int:
    return len(png(mask))


def _row_bytes(database: Database) -> int:
    """What the corrections' tables and indices take in the database; suggestions are not theirs."""
    names = [
        "annotations",
        "revisions",
        "region_masks",
        "concept_masks",
        "region_outcomes",
        "images",
    ]
    of_tables = text(
        "SELECT SUM(pgsize) FROM dbstat WHERE name IN "
        "(SELECT name FROM sqlite_master WHERE tbl_name IN :names)"
    ).bindparams(bindparam("names", names, expanding=True))
    with database.reading() as session:
        return int(session.execute(of_tables).scalar_one())


def _rss_mb() -> float:
    """What this process keeps in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else COUNT)))
