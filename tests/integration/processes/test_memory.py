"""A worker whose memory is limited: what does not fit fails by itself, and the worker goes on."""

import base64
import io
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image
from sqlalchemy import select

from backend.errors import CorrectionsError
from backend.processes.memory import OUT_OF_MEMORY, ran_out_of_memory
from backend.services import Services
from backend.tables import Suggestion
from tests.support.corrections_stage import Stage, brush, drawn, image_file, region
from tests.support.images import inline_tasks
from tests.support.label_configs import BRAIN_CONFIG
from tests.support.processes import StartWorker, WorkerProcess
from tests.support.waiting import wait_until


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    # The bundled model takes 1.1 GB on two threads; an image of 100 megapixels 700 MB at least.
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    monkeypatch.setenv("MEDSAM3_WORKER_MEMORY_MB", "1500")


def huge_task(number: int) -> dict[str, object]:
    """A task with an image of 100 megapixels in 0.3 MB."""
    buffer = io.BytesIO()
    Image.new("RGB", (10_000, 10_000)).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"id": number, "data": {"image": url}}


def test_a_task_that_needs_too_much_memory_fails_alone(
    limit: None, web: FlaskClient, services: Services, start_worker: StartWorker
) -> None:
    worker = start_worker()
    first, second = inline_tasks(2)
    answer = web.post(
        "/predict",
        json={
            "tasks": [first, huge_task(9), second],
            "project": "7.1795421465",
            "label_config": BRAIN_CONFIG,
            "params": {"context": None},
        },
    ).get_json()
    with services.database.reading() as session:
        rows = {row.task_id: row for row in session.scalars(select(Suggestion))}
    assert {number: row.state for number, row in rows.items()} == {
        1: "done",
        2: "done",
        9: "failed",
    }
    assert rows[9].error == OUT_OF_MEMORY
    assert rows[9].attempts == 1
    assert worker.process.poll() is None
    assert OUT_OF_MEMORY in str(answer)


def test_a_model_that_does_not_fit_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, services: Services, start_worker: StartWorker
) -> None:
    monkeypatch.setenv("MEDSAM3_WORKER_MEMORY_MB", "900")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    worker = start_worker()
    wait_until(lambda: worker.process.poll() is not None)
    assert worker.process.returncode == 1
    log = worker.log_path.read_text()
    assert "before its first job: raise MEDSAM3_WORKER_MEMORY_MB, which is 900" in log
    assert "Traceback" not in log


def test_an_annotation_that_needs_too_much_memory_is_quarantined_alone(stage: Stage) -> None:
    settings = stage.services.settings
    worker = WorkerProcess(settings, "ingest")
    label_studio = stage.label_studio

    def taken_in(count: int) -> list[dict[str, Any]]:
        wait_until(lambda: len(stage.state()) == count, otherwise=worker.log_path.read_text)
        return stage.state()

    try:
        small = label_studio.add_task(image_file(0))
        label_studio.annotate(small, [brush("a", drawn(1))])
        stage.hear(label_studio.events.pop())
        taken_in(1)
        # From here on 60 MB more; the mask of the next annotation has 100.
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
        used = int(status.partition("VmData:")[2].split()[0]) * 1024
        resource.prlimit(worker.process.pid, resource.RLIMIT_DATA, (used + 60 * 2**20, -1))
        whole = {"x": 0, "y": 0, "width": 100, "height": 100, "rectanglelabels": ["Tumor"]}
        size = 10_000, 10_000
        buffer = io.BytesIO()
        Image.new("1", size).save(buffer, "PNG")
        large = label_studio.add_task(buffer.getvalue())
        label_studio.annotate(large, [region("b", "box", "rectanglelabels", whole, *size)])
        stage.hear(label_studio.events.pop())
        second = taken_in(2)[1]
        assert (second["state"], second["trouble"]) == ("quarantined", "unforeseen")
        assert second["reason"] == OUT_OF_MEMORY
        label_studio.annotate(small, [brush("c", drawn(2))])
        stage.hear(label_studio.events.pop())
        assert taken_in(3)[2]["state"] == "valid"
        assert worker.process.poll() is None
    finally:
        worker.kill()


def behind(error: Exception) -> Exception:
    wrapped = CorrectionsError("wrapped")
    wrapped.__cause__ = error
    return wrapped


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(12, os.strerror(12)), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."), True),
        (RuntimeError("can't start new thread"), True),
        (Exception("OpenCV(4.12.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed"), True),
        (behind(MemoryError()), True),
        (behind(ValueError("x")), False),
        (RuntimeError("no such thing"), False),
    ],
)
def test_every_library_says_it_in_its_own_way(error: Exception, expected: bool) -> None:
    assert ran_out_of_memory(error) is expected
