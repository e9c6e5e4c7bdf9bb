"""The web process and the queue: their cost around the model."""

import threading
import time
from typing import Any

import httpx2
import numpy as np
from sqlalchemy import select

from backend.tables import Suggestion
from tests.perf.empty_job import empty_jobs
from tests.support.processes import Running, memory_mb, running

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image"><Label value="Brain" prompt="brain"/></BrushLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="Brain"/></RectangleLabels>
</View>
"""
PROMPTS = 200
WARM_UP = 20
IN_FLIGHT = 16


def measure() -> dict[str, float]:
    """Overhead of a prompt on a cached image; start, memory and health of the web process."""
    with running() as target:
        return {
            "web_ready_s": round(target.ready_s, 3),
            **_overhead(target),
            "health_p99_ms": round(_health_p99_ms(target), 2),
            "web_rss_mb": round(memory_mb(target.web), 1),
        }


def _overhead(target: Running) -> dict[str, float]:
    """Latency of an interactive prompt minus what the model itself took, in milliseconds.

    Empty jobs are done in turn with the prompts: how many of them the overhead is worth.
    """
    image = "/data/upload/1.png"
    latencies, empty = {}, []
    with empty_jobs(target.services.settings.redis_socket) as empty_job_s:
        for index in range(WARM_UP + PROMPTS):
            empty_s = empty_job_s()
            started = time.perf_counter()
            answer = target.client.post("/predict", json=body(index, image, box(index)))
            elapsed = time.perf_counter() - started
            answer.raise_for_status()
            assert len(answer.json()["results"]) == 1, answer.text
            if index >= WARM_UP:
                latencies[index] = elapsed
                empty.append(1000 * empty_s)
    with target.services.database.reading() as session:
        found = session.execute(select(Suggestion.task_id, Suggestion.model_s))
        model_s = dict(found.tuples().all())
    overheads = [1000 * (elapsed - model_s[task]) for task, elapsed in latencies.items()]
    return {
        "overhead_p50_ms": round(float(np.percentile(overheads, 50)), 2),
        "overhead_p99_ms": round(float(np.percentile(overheads, 99)), 2),
        "empty_job_p50_ms": round(float(np.median(empty)), 2),
        "overhead_over_empty_job": round(float(np.median(overheads) / np.median(empty)), 2),
        "prompt_p50_ms": round(1000 * float(np.median(list(latencies.values()))), 2),
    }


def _health_p99_ms(target: Running) -> float:
    """Latency of /health while sixteen predictions of new images are in flight."""
    stop = threading.Event()

    def keep_predicting(worker: int) -> None:
        with httpx2.Client(base_url=target.url, auth=target.client.auth, timeout=120) as client:
            index = 0
            while not stop.is_set():
                index += 1
                task = 10_000 * (worker + 1) + index
                client.post("/predict", json=body(task, f"/data/upload/{task}.png", None))

    threads = [threading.Thread(target=keep_predicting, args=(one,)) for one in range(IN_FLIGHT)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    latencies = []
    for _ in range(300):
        started = time.perf_counter()
        target.client.get("/health").raise_for_status()
        latencies.append(time.perf_counter() - started)
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    return 1000 * float(np.percentile(latencies, 99))


def box(index: int) -> dict[str, Any]:
    """A smart rectangle's context; another box every time, so that nothing can be remembered."""
    value = {
        "x": 20 + index % 10,
        "y": 20 + index % 7,
        "width": 50,
        "height": 50,
        "rotation": 0,
        "rectanglelabels": ["Brain"],
    }
    region = {
        "id": f"prompt{index}",
        "from_name": "box",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": 512,
        "original_height": 512,
        "image_rotation": 0,
        "value": value,
    }
    return {"result": [region]}


def body(task: int, image: str, context: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "tasks": [{"id": task, "data": {"image": image}}],
        "project": "7.1",
        "label_config": CONFIG,
        "params": {"context": context},
    }
