"""`make bench-scale`: 100,000 tasks, four GPU workers, and a worker against its bare model.

It measures and judges nothing; one JSON object is its last line. Everything is real (PostgreSQL,
Redis, the processes of web and workers) but for two things: Label Studio, which would be filled for
longer than all this takes (`tests.perf.scale_label_studio`), and, where the model is not what is
measured, the model (`tests.perf.scale_worker`).

100,000 tasks are not predicted one by one. Of a project with 1,000 tasks the cost of each is
measured; then 98,000 more get their rows in bulk, as if they were finished, and 1,000 more are
predicted beside them. Of a second project all 100,000 tasks are asked for, the first few thousand
are predicted while the rest waits, and what still waits is cancelled. `--tasks` makes it smaller.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from backend.label_studio.server import free_port
from backend.predictions import preannotate
from backend.processes.redis_server import RedisServer
from backend.processes.stopping import end_processes
from backend.services import Services, open_services
from backend.settings import Settings
from backend.tables import Suggestion, SuggestionState, new_id, now
from tests.perf.scale_label_studio import ManyTasks, serve
from tests.support.console import CONSOLE, admin
from tests.support.images import png
from tests.support.postgres import new_database, postgres_server
from tests.support.processes import answers, memory_mb
from tests.support.waiting import wait_until

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image"><Label value="Disc" prompt="optic disc"/></BrushLabels>
</View>
"""
TOKEN = "0" * 40
FEW = 1000
WARM_UP = 40
STUB_MS, SLOW_STUB_MS = 1, 50
TASKS_OF_A_SLOW_WORKER = 250
IMAGES, DRAWN = 2000, 250
# Images that the bare model is given in a row, before and after and between the worker's.
BARE_ROUNDS, BARE_IMAGES = 3, 200
PAGES = (CONSOLE, f"{CONSOLE}/corrections", f"{CONSOLE}/agreement", f"{CONSOLE}/models")
LISTS = ("", "?project=1", "?state=done", "?state=failed", "?state=queued")
REPEATS = 7
BULK = 5000


@dataclass(frozen=True)
class Backend:
    """Processes of one installation.

    Attributes:
        services: this process's own connections.
        processes: web and workers, by name.
    """

    services: Services
    processes: dict[str, subprocess.Popen[bytes]]

    def memory(self) -> dict[str, float]:
        """Resident memory of each process in MB."""
        return {name: memory_mb(process) for name, process in self.processes.items()}

    def processor_s(self) -> float:
        """Seconds of processor that web and workers took so far."""
        ticks = 0
        for process in self.processes.values():
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            for pid in (process.pid, *map(int, children.split())):
                # The name, which may hold spaces, ends with a bracket; two of the fields after it.
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def backend(
    server: str, label_studio: str, *, stub_ms: float | None = None, gpu_workers: int = 1
) -> Iterator[Backend]:
    """Start web, GPU workers and an ingest worker on a database of their own.

    Args:
        server: the address of a PostgreSQL server.
        label_studio: where the workers find tasks and images.
        stub_ms: milliseconds of the stub that stands for the model; None: the bundled model.
        gpu_workers: how many.
    """
    with tempfile.TemporaryDirectory(prefix="m3-") as folder:
        port = free_port()
        chosen = {
            "MEDSAM3_DATA_DIR": folder,
            "MEDSAM3_PORT": str(port),
            "DATABASE_URL": new_database(server),
            "LABEL_STUDIO_URL": label_studio,
            "LABEL_STUDIO_API_KEY": TOKEN,
        }
        settings = Settings(
            data_dir=Path(folder),
            port=port,
            database_url=chosen["DATABASE_URL"],
            label_studio_url=label_studio,
            label_studio_api_key=TOKEN,
        )
        processes: dict[str, subprocess.Popen[bytes]] = {}

        def start(name: str, *arguments: str) -> None:
            command = [sys.executable, "-m", *arguments]
            with (Path(folder) / f"{name}.log").open("wb") as log:
                processes[name] = subprocess.Popen(
                    command, env=os.environ | chosen, stdout=log, stderr=log, start_new_session=True
                )

        with RedisServer(settings.redis_socket):
            services = open_services(settings)
            try:
                medsam3 = "backend.cli.main"
                start("web", medsam3, "web")
                start("ingest", medsam3, "worker", "--queue", "ingest")
                for number in range(1, gpu_workers + 1):
                    if stub_ms is None:
                        start(f"gpu{number}", medsam3, "worker", "--queue", "gpu")
                    else:
                        start(f"gpu{number}", "tests.perf.scale_worker", str(stub_ms))
                wait_until(lambda: answers(f"http://127.0.0.1:{port}"), 120)
                yield Backend(services, processes)
            finally:
                end_processes(list(processes.values()), 30)
                services.close()


def predict_all(running: Backend, project: ManyTasks, *, timeout_s: float = 900) -> float:
    """Pre-annotate a project, until the last prediction is in Label Studio; seconds for each."""
    before = len(project.predicted)
    started = time.monotonic()
    report = preannotate.preannotate(running.services, project.number, timeout_s=timeout_s)
    assert not report.errors, next(iter(report.errors.values()))
    return (project.pushed_at[-1][0] - started) / (len(project.predicted) - before)


def warm_up(running: Backend, project: ManyTasks) -> None:
    """Let workers load what they load once."""
    project.count += WARM_UP * sum(name.startswith("gpu") for name in running.processes)
    predict_all(running, project)


# -- 100,000 tasks --------------------------------------------------------------------------------


def growth(server: str, tasks: int) -> dict[str, float]:
    """What a task, a page and a list cost in a project that grows to `tasks` tasks."""
    content = png(_drawn("fundus", 0))

    def image(task: int) -> bytes:
        # After its end a PNG may hold anything: the same picture, and another file.
        return content + task.to_bytes(4, "big")

    project, all_waiting = (ManyTasks(number, CONFIG, image) for number in (1, 2))
    with (
        serve(project, all_waiting) as label_studio,
        backend(server, label_studio.url, stub_ms=STUB_MS) as running,
    ):
        warm_up(running, project)
        project.count = FEW
        few = {**_task_ms(running, project), **_pages(running)}
        _say("1,000 tasks", few)
        _fill(running.services, project, tasks - FEW)
        project.count = tasks
        many = {**_task_ms(running, project), **_pages(running)}
        _say(f"{tasks:,} tasks", many)
        all_waiting.count = tasks
        waiting = _while_the_rest_waits(running, all_waiting)
        _say(f"{tasks:,} tasks wait", waiting)
    figures: dict[str, float] = {}
    for name, value in few.items():
        figures |= {f"scale_{name}_at_1000": value, f"scale_{name}": many[name]}
    return {
        **figures,
        **{f"scale_{name}_while_all_wait": value for name, value in waiting.items()},
        "scale_task_ratio": many["task_ms"] / few["task_ms"],
        "scale_task_processor_ratio": many["task_processor_ms"] / few["task_processor_ms"],
        "scale_task_ratio_while_all_wait": waiting["task_ms"] / few["task_ms"],
        "scale_task_processor_ratio_while_all_wait": waiting["task_processor_ms"]
        / few["task_processor_ms"],
    }


def _task_ms(running: Backend, project: ManyTasks) -> dict[str, float]:
    """Time, and time of processor, that each of the new tasks takes, in ms."""
    before, busy = len(project.predicted), running.processor_s()
    task_s = predict_all(running, project)
    busy_s = (running.processor_s() - busy) / (len(project.predicted) - before)
    return {"task_ms": 1000 * task_s, "task_processor_ms": 1000 * busy_s}


def _pages(running: Backend) -> dict[str, float]:
    """The slowest page, list and the metrics in ms; memory in MB."""
    services = running.services
    client = admin(services)
    header = {"Authorization": f"Bearer {services.credentials.api_token}"}
    return {
        "console_page_ms": max(_median_ms(lambda page=page: client.get(page)) for page in PAGES),
        "list_ms": max(
            _median_ms(lambda end=end: client.get(f"/api/v1/predictions{end}", headers=header))
            for end in LISTS
        ),
        "metrics_ms": _median_ms(lambda: client.get("/metrics", headers=header)),
        **{f"{name}_rss_mb": value for name, value in running.memory().items()},
    }


def _median_ms(ask: Callable[[], Any]) -> float:
    spent = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        answer = ask()
        spent.append(1000 * (time.perf_counter() - started))
        assert answer.status_code == 200, answer.text
    return statistics.median(spent)


def _fill(services: Services, project: ManyTasks, until: int) -> None:
    """Rows of tasks that were predicted, copies of one that was."""
    with services.database.reading() as session:
        row = session.scalars(
            select(Suggestion).where(Suggestion.state == SuggestionState.DONE).limit(1)
        ).one()
    copied = {
        name: getattr(row, name)
        for name in [column.name for column in Suggestion.__table__.columns]
        if name not in ("id", "task_id", "image_hash", "created_at", "finished_at")
    }
    began = now()
    for first in range(len(project.predicted) + 1, until + 1, BULK):
        numbers = range(first, min(first + BULK, until + 1))
        with services.database.session() as session:
            session.execute(
                insert(Suggestion),
                [
                    _finished(copied, task, began - timedelta(seconds=until - task))
                    for task in numbers
                ],
            )
        project.predicted.update(numbers)
    with services.database.engine.begin() as connection:
        # As its autovacuum does, a minute later.
        connection.exec_driver_sql("ANALYZE")


def _finished(copied: dict[str, Any], task: int, moment: Any) -> dict[str, Any]:
    of_task = {"id": new_id(), "task_id": task, "image_hash": f"{task:064x}"}
    return {**copied, **of_task, "created_at": moment, "finished_at": moment}


def _while_the_rest_waits(running: Backend, project: ManyTasks) -> dict[str, float]:
    """Ask for all tasks at once; what each costs while the others wait; cancel the others."""
    services = running.services
    thread = threading.Thread(
        target=preannotate.preannotate, args=(services, project.number), daemon=True
    )
    started = time.monotonic()
    thread.start()

    def asked() -> bool:
        with services.database.reading() as session:
            return _count(session, project.number) == project.count

    wait_until(asked, 900, pause_s=0.5)
    asked_s = time.monotonic() - started
    before, busy = len(project.predicted), running.processor_s()
    started = time.monotonic()
    wait_until(lambda: len(project.predicted) >= before + FEW, 300, pause_s=0.05)
    last, done = project.pushed_at[-1][0], len(project.predicted) - before
    busy_s, memory = running.processor_s() - busy, running.memory()
    client = admin(services)
    page_ms = _median_ms(lambda: client.get(CONSOLE))
    cancelled_at = time.monotonic()
    preannotate.cancel(services, project.number)
    cancel_s = time.monotonic() - cancelled_at
    thread.join(120)
    return {
        "task_ms": 1000 * (last - started) / done,
        "task_processor_ms": 1000 * busy_s / done,
        "asked_task_ms": 1000 * asked_s / project.count,
        "console_page_ms": page_ms,
        "cancel_s": cancel_s,
        **{f"{name}_rss_mb": value for name, value in memory.items()},
    }


def _count(session: Session, project_id: int) -> int:
    rows = select(func.count()).select_from(Suggestion)
    return session.scalar(rows.where(Suggestion.project_id == project_id)) or 0


# -- four workers ---------------------------------------------------------------------------------


def workers(server: str, tasks: int) -> dict[str, float]:
    """Tasks per second of one GPU worker and of four, with a stub that takes 50 ms."""
    content = png(_drawn("fundus", 0))
    per_s = {}
    for count in (1, 4):
        project = ManyTasks(1, CONFIG, lambda task: content + task.to_bytes(4, "big"))
        with (
            serve(project) as label_studio,
            backend(server, label_studio.url, stub_ms=SLOW_STUB_MS, gpu_workers=count) as running,
        ):
            warm_up(running, project)
            project.count += tasks * count
            per_s[count] = 1 / predict_all(running, project)
        _say(f"{count} workers", {"tasks_per_s": per_s[count]})
    return {
        "gpu_worker_tasks_per_s": per_s[1],
        "four_gpu_workers_tasks_per_s": per_s[4],
        "four_gpu_workers_ratio": per_s[4] / per_s[1],
    }


# -- a worker against its bare model --------------------------------------------------------------


def against_bare(server: str, images: int) -> dict[str, float]:
    """Images per second that are pre-annotated, of those that the bare model answers.

    Bare: pixels that are in memory, `encode_image` and `detect_all`, one image after the other, in
    a process of its own that does nothing else; before, between and after the worker's turns.
    """
    kinds = ("fundus", "dermoscopy", "chest_xray", "cardiac_mri")
    pictures = [_drawn(kinds[seed % len(kinds)], seed) for seed in range(min(DRAWN, images))]
    turned = [np.rot90(one, quarter) for quarter in range(4) for one in pictures]
    turned += [one[:, ::-1] for one in turned]
    files = [png(np.ascontiguousarray(one)) for one in turned[:images]]
    project = ManyTasks(1, CONFIG, lambda task: files[task - 1])
    bare, spent = [], []
    with tempfile.TemporaryDirectory() as folder:
        pixels = Path(folder) / "pixels.npy"
        np.save(pixels, np.stack([np.ascontiguousarray(one) for one in turned[:BARE_IMAGES]]))
        bare.append(_bare_image_s(pixels))
        with serve(project) as label_studio, backend(server, label_studio.url) as running:
            warm_up(running, project)
            share = -(-(images - project.count) // BARE_ROUNDS)
            while project.count < images:
                project.count = min(images, project.count + share)
                spent.append(predict_all(running, project))
                # The worker waits meanwhile.
                bare.append(_bare_image_s(pixels))
                _say("bare, worker", {"bare_ms": 1000 * bare[-1], "task_ms": 1000 * spent[-1]})
            memory = running.memory()
    return {
        "bare_image_ms": 1000 * statistics.fmean(bare),
        "preannotated_image_ms": 1000 * statistics.fmean(spent),
        "preannotation_to_bare": statistics.fmean(bare) / statistics.fmean(spent),
        "preannotation_gpu_rss_mb": memory["gpu1"],
    }


def _bare_image_s(pixels: Path) -> float:
    command = [sys.executable, "-m", "tests.perf.bench_scale", "--bare", str(pixels)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def bare_model(pixels: Path) -> float:
    """Seconds of the bundled model for each of the images in a file."""
    from medsam3_model import MedSAM3

    model = MedSAM3.from_pretrained("tiny")
    text = model.encode_text(["optic disc"])
    images = np.load(pixels)
    for picture in images[:10]:
        model.detect_all(model.encode_image(picture), text)
    started = time.perf_counter()
    for picture in images:
        model.detect_all(model.encode_image(picture), text)
    return (time.perf_counter() - started) / len(images)


def _drawn(kind: str, seed: int) -> np.ndarray:
    from medsam3_model.pretraining.phantoms.phantoms import phantom

    return phantom(kind, seed).image


def _say(what: str, figures: dict[str, float]) -> None:
    rounded = {name: round(value, 2) for name, value in figures.items()}
    print(f"{what}: {json.dumps(rounded)}", file=sys.stderr, flush=True)


PARTS = ("growth", "workers", "bare")


def main() -> None:
    """Measure every part, or those named on the command line."""
    parser = argparse.ArgumentParser(
        description="Measure, and print one JSON object as the last line."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--tasks", type=int, default=100_000, help="of a large project")
    parser.add_argument("--images", type=int, default=IMAGES, help="for the bundled model")
    parser.add_argument("--bare", type=Path, metavar="PIXELS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(bare_model(options.bare))
        return
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    named = options.parts or PARTS
    figures: dict[str, float] = {}
    with postgres_server() as server:
        if "growth" in named:
            figures |= growth(server, options.tasks)
        if "workers" in named:
            figures |= workers(server, TASKS_OF_A_SLOW_WORKER)
        if "bare" in named:
            figures |= against_bare(server, options.images)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
