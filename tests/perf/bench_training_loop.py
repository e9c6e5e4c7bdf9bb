"""The training loop: what it costs annotators, and whether its gate can be fooled."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr

from backend.models import promotion, versions
from backend.processes.redis_server import RedisServer
from backend.services import Services, open_services, use_services
from backend.settings import Settings
from backend.tables import GateVerdict
from backend.training import runs
from backend.training.tables import TrainingRun, Trigger
from backend.training.trainer import train_run
from tests.perf import bench_web
from tests.support.images import ellipse_file, png
from tests.support.processes import Running, running
from tests.support.stand_in_label_studio import StandInLabelStudio
from tests.support.training_stage import CONFIG, TrainingStage, groups, publish
from tests.support.waiting import wait_until

_UNSEEN = 2_000_000  # seeds of phantoms that nothing else uses
# Five ways to spoil a run, four seeds each.
DAMAGES: dict[str, dict[str, Any]] = {
    "shuffled": {"train": 12, "shuffled": True, "steps": 8},
    "shuffled and fast": {"train": 12, "shuffled": True, "steps": 8, "learning_rate": 2e-3},
    "tiny": {"train": 1, "steps": 12, "learning_rate": 1e-3},
    "too fast": {"train": 12, "steps": 8, "learning_rate": 1e-2},
    "far too fast": {"train": 12, "steps": 8, "learning_rate": 0.1},
}
SEEDS = 4
VALIDATION = 6
CORRECTIONS = 50
# As long as the mark of an annotator's presence lives and a little more: every prompt meets a
# trainer that is at work, which is the worst case.
PAUSE_S = 1.8
CLICKS = 25
ANNOTATED = 12
REPREDICTED = 40


def measure() -> dict[str, float]:
    """Bad promotions of 20 damaged runs; seconds of a run; ratios of wall-clock time."""
    return {**_gate(), **_learn(), **_interactive(), **_repredict()}


# -- the gate -------------------------------------------------------------------------------------


def _gate() -> dict[str, float]:
    """Damaged runs through the real trainer; versions that came into service and are worse.

    Worse: by more than the tolerance, on validation for any concept and mode (`_bad_promotions`),
    or in the mean of images that the gate never saw (`_bad_on_unseen`): what so few validation
    images let through.
    """
    started, promoted, bad, bad_on_unseen = time.perf_counter(), 0, 0, 0
    for damage in DAMAGES.values():
        with _stage() as stage:
            stage.annotate(damage["train"], VALIDATION, shuffled=damage.get("shuffled", False))
            options = {name: damage[name] for name in ("steps", "learning_rate") if name in damage}
            for seed in range(SEEDS):
                id_ = runs.request_run(
                    stage.services, stage.project_id, Trigger.API, seed=seed, **options
                ).run_id
                train_run(stage.services, id_)
                if (changes := _changes_in_service(stage.services, id_)) is not None:
                    tolerance = stage.services.settings.gate_tolerance
                    promoted += 1
                    bad += changes[0] < -tolerance
                    bad_on_unseen += changes[1] < -tolerance
                    promotion.rollback(stage.services, stage.project_id)
    return {
        "gate_damaged_runs": SEEDS * len(DAMAGES),
        "gate_promoted": promoted,
        "gate_bad_promotions": bad,
        "gate_bad_on_unseen": bad_on_unseen,
        "gate_damaged_runs_s": round(time.perf_counter() - started, 1),
    }


def _changes_in_service(services: Services, run_id: str) -> tuple[float, float] | None:
    """The worst change of Dice on validation that a run's version brought, and the mean change on
    images that the gate never saw; None where no version came into service."""
    with services.database.reading() as session:
        run = session.get_one(TrainingRun, run_id)
        verdict = session.get(GateVerdict, run_id)
    assert run.error is None, run.error
    assert run.incumbent is not None
    if verdict is None or versions.in_service(services, run.project_id) != run.candidate:
        return None
    judged = [part["difference"] for part in verdict.figures["concepts"]]
    unseen = _dice_unseen(services, run.candidate) - _dice_unseen(services, run.incumbent)
    return min(judged), unseen


def _dice_unseen(services: Services, version: str) -> float:
    from backend.models.loading import Models
    from medsam3_model.evaluation.metrics import dice

    model = Models(services).get(version)
    text = model.encode_text(["optic disc"])
    scores = []
    for seed in range(_UNSEEN + 1000, _UNSEEN + 1012):
        image, mask = _fundus(seed)
        (found,) = model.detect_all(model.encode_image(image), text)
        scores.append(dice(found.concept_mask()[0], mask))
    return float(np.mean(scores))


# -- how long a round takes ---------------------------------------------------------------------


def _learn() -> dict[str, float]:
    """A run with the default options on 50 corrections, from its request to the gate's verdict."""
    with _stage(train_replay=True) as stage:
        stage.annotate(CORRECTIONS - CORRECTIONS // 5, CORRECTIONS // 5)
        started = time.perf_counter()
        id_ = runs.request_run(stage.services, stage.project_id, Trigger.API).run_id
        train_run(stage.services, id_)
        seconds = time.perf_counter() - started
        with stage.services.database.reading() as session:
            run = session.get_one(TrainingRun, id_)
            assert run.error is None, run.error
            assert session.get(GateVerdict, id_) is not None
            return {f"learn_{CORRECTIONS}_s": round(seconds, 1), "learn_steps": run.step}


@contextmanager
def _stage(*, train_replay: bool = False) -> Iterator[TrainingStage]:
    """An installation of its own with the bundled model, which knows what is annotated."""
    with (
        tempfile.TemporaryDirectory(prefix="m3-") as folder,
        StandInLabelStudio(CONFIG) as label_studio,
    ):
        settings = Settings(
            data_dir=Path(folder),
            label_studio_url=label_studio.url,
            label_studio_api_key="0" * 40,
            train_replay=train_replay,
        )
        with RedisServer(settings.redis_socket):
            services = open_services(settings)
            use_services(services)
            try:
                yield TrainingStage(services, label_studio, _fundus_file)
            finally:
                use_services(None)
                services.close()


def _fundus(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    from medsam3_model.pretraining.phantoms.phantoms import phantom

    drawn = phantom("fundus", seed)
    return drawn.image, drawn.layers["optic disc"] > 0


def _fundus_file(seed: int) -> tuple[bytes, NDArray[np.bool_]]:
    image, mask = _fundus(_UNSEEN + seed)
    return png(image), mask


# -- annotators beside a training run -------------------------------------------------------------


def _interactive() -> dict[str, float]:
    """The same prompts, one every `PAUSE_S`, without and with a training run under way."""
    with running(with_trainer=True) as target:
        id_ = _annotated_project(target.services)
        wait_for_worker(target)
        alone = clicks(target, CLICKS, pause_s=PAUSE_S)
        run_id = runs.request_run(target.services, id_, Trigger.API, steps=100_000).run_id
        _wait_for_step(target.services, run_id, 1)
        before = _step(target.services, run_id)
        started = time.perf_counter()
        beside = clicks(target, CLICKS, pause_s=PAUSE_S)
        steps = _step(target.services, run_id) - before
        runs.cancel(target.services, run_id)
        return {
            "interactive_p95_ms": round(float(np.percentile(alone, 95)), 1),
            "interactive_p95_while_training_ms": round(float(np.percentile(beside, 95)), 1),
            "interactive_p95_ratio_while_training": round(
                float(np.percentile(beside, 95) / np.percentile(alone, 95)), 2
            ),
            "training_steps_per_s_beside_prompts": round(
                steps / (time.perf_counter() - started), 2
            ),
        }


def clicks(target: Running, count: int, *, pause_s: float) -> list[float]:
    """Milliseconds that each of some smart rectangles took."""
    found = []
    for index in range(count):
        time.sleep(pause_s)
        body = bench_web.body(index, "/data/upload/1.png", bench_web.box(index))
        started = time.perf_counter()
        answer = target.client.post("/predict", json=body)
        found.append(1000 * (time.perf_counter() - started))
        assert len(answer.json()["results"]) == 1, answer.text
    return found


def wait_for_worker(target: Running) -> None:
    """Prompt until the worker has loaded its model and knows the image."""
    body = bench_web.body(0, "/data/upload/1.png", bench_web.box(0))
    wait_until(
        lambda: target.client.post("/predict", json=body).json()["results"],
        120,
        otherwise="the worker does not answer",
    )


def _annotated_project(services: Services) -> int:
    """Corrections of images that the target's server has."""
    with StandInLabelStudio(bench_web.CONFIG) as label_studio:
        stand_in = services.settings.model_copy(
            update={
                "label_studio_url": label_studio.url,
                "label_studio_api_key": SecretStr("0" * 40),
            }
        )
        stage = TrainingStage(Services(stand_in, services.database, services.redis), label_studio)
        mask = np.zeros((512, 512), bool)
        mask[150:350, 180:330] = True
        for seed, group in zip(range(ANNOTATED), groups("train"), strict=False):
            task = label_studio.add_task(b"", group=group)
            path = f"/data/upload/{seed}.png"
            label_studio.images[path] = ellipse_file(seed, 512, 512)
            label_studio.tasks[task]["data"]["image"] = path
            stage.mark(task, mask, "Brain")
        return stage.project_id


def _step(services: Services, run_id: str) -> int:
    with services.database.reading() as session:
        run = session.get_one(TrainingRun, run_id)
    assert run.error is None, run.error
    return run.step


def _wait_for_step(services: Services, run_id: str, step: int) -> None:
    wait_until(
        lambda: _step(services, run_id) >= step,
        300,
        pause_s=0.2,
        otherwise="the trainer does not get on",
    )


# -- predicting again after a promotion -----------------------------------------------------------


def _repredict() -> dict[str, float]:
    """All tasks by the bundled model, and again by another version of it."""
    from backend.predictions.inference import Inference

    with _stage() as stage:
        label_studio = stage.label_studio
        tasks = [label_studio.add_task(ellipse_file(n, 512, 640)) for n in range(REPREDICTED)]
        version = publish(stage.services, "tiny", stage.project_id, passed=True, scale=1.001)
        inference = Inference(stage.services)
        inference.model(version)
        seconds = []
        for one in (versions.default_version(stage.services), version):
            rows = [stage.suggestion(one, task) for task in tasks]
            started = time.perf_counter()
            for row in rows:
                inference.predict(row, CONFIG)
            seconds.append(time.perf_counter() - started)
        return {
            "repredict_cached_speedup": round(seconds[0] / seconds[1], 2),
            "repredict_tasks_per_s": round(REPREDICTED / seconds[1], 1),
        }
