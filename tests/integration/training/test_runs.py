"""Runs, triggers, promotions and rollbacks in a real database with a real queue."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sqlalchemy import select, update

from backend.errors import CancelledError, ModelVersionError
from backend.models import promotion, versions
from backend.predictions.inference import Inference
from backend.processes.queues import QueueName, queue
from backend.processes.redis_server import RedisServer
from backend.services import Services
from backend.tables import Promotion, PromotionKind, now
from backend.training import examples, runs, trainer
from backend.training.tables import RunState, TrainingRun, Trigger
from medsam3_model import MedSAM3
from medsam3_model.checkpoints.detectors import detector_state
from tests.support.training_stage import (
    CONFIG,
    TrainingStage,
    disc_file,
    publish,
    training_stage,
)


@pytest.fixture
def stage(redis_server: RedisServer, data_dir: Path, model: Path) -> Iterator[TrainingStage]:
    with training_stage(data_dir, model) as opened:
        yield opened


def test_requests_are_one_run_until_its_dataset_version_is_made(stage: TrainingStage) -> None:
    services = stage.services
    first = runs.request_run(services, 7, Trigger.BUTTON)
    again = runs.request_run(services, 7, Trigger.COMMAND)
    other = runs.request_run(services, 8, Trigger.COMMAND)
    assert (first.new, again.new, again.run_id) == (True, False, first.run_id)
    assert other.run_id != first.run_id
    with services.database.session() as session:
        session.execute(
            update(TrainingRun).where(TrainingRun.id == first.run_id).values(dataset_id=1)
        )
    runs.request_run(services, 7, Trigger.API)
    runs.claim(services, first.run_id)
    runs.finish(services, first.run_id, RunState.DONE)
    with services.database.reading() as session:
        states = [(one.state, one.trigger) for one in runs.list_runs(session, 7)]
    assert states == [("queued", "api"), ("done", "button")]


def test_a_run_is_taken_by_one_trainer_and_given_up_after_its_death(stage: TrainingStage) -> None:
    services = stage.services
    id_ = runs.request_run(services, 7, Trigger.COMMAND).run_id
    assert runs.claim(services, id_) is not None
    assert runs.claim(services, id_) is None
    with services.database.session() as session:
        session.execute(update(TrainingRun).values(lease_until=now()))
    assert runs.orphans(services) == [(id_, 1)]
    queue(services.redis, QueueName.TRAIN).empty()
    assert trainer.recover(services) == 1
    taken = runs.claim(services, id_)
    assert taken is not None
    assert taken.attempts == 2


def test_cancelling_a_waiting_run_ends_it_and_one_at_work_hears_of_it(stage: TrainingStage) -> None:
    services = stage.services
    id_ = runs.request_run(services, 7, Trigger.COMMAND).run_id
    assert runs.cancel(services, id_).state == RunState.CANCELLED
    id_ = runs.request_run(services, 7, Trigger.COMMAND).run_id
    runs.claim(services, id_)
    runs.report(services, id_, step=3)
    runs.cancel(services, id_)
    with pytest.raises(CancelledError):
        runs.report(services, id_, step=4)


def test_a_dataset_version_keeps_what_it_was_made_of_and_never_moves_a_group(
    stage: TrainingStage,
) -> None:
    from backend.labeling.config import parse_label_config

    services, config = stage.services, parse_label_config(CONFIG)
    stage.annotate(train=3, val=2)
    id_ = runs.request_run(services, 7, Trigger.COMMAND).run_id
    with services.database.session() as session:
        dataset = examples.take(session, session.get_one(TrainingRun, id_))
    annotation = next(iter(stage.label_studio.annotations))
    stage.label_studio.update(annotation, result=[])
    stage.annotate(train=1)
    with services.database.reading() as session:
        training_set = examples.load(session, dataset, config)
    assert len(training_set.of("train")) == 3
    assert len(training_set.of("val")) == 2
    assert all(len(one.masks["optic disc"][0]) == 1 for one in training_set.examples)
    assert all(one.masks["optic cup"] == ((),) for one in training_set.examples)


def test_several_annotators_make_one_example_by_the_rule(stage: TrainingStage) -> None:
    from backend.corrections.mask_store import MaskStore
    from backend.labeling.config import parse_label_config

    services = stage.services
    content, mask = disc_file(3)
    task = stage.label_studio.add_task(content, group="g")
    shifted = [np.roll(mask, shift, axis=1) for shift in (0, 3, 6)]
    for annotator, drawn in enumerate(shifted, start=1):
        stage.mark(task, drawn, completed_by=annotator)
    id_ = runs.request_run(services, 7, Trigger.COMMAND).run_id
    with services.database.session() as session:
        dataset = examples.take(session, session.get_one(TrainingRun, id_))
    with services.database.reading() as session:
        (example,) = examples.load(session, dataset, parse_label_config(CONFIG)).examples
    store = MaskStore(services.settings.storage)

    def combined(rule: str) -> np.ndarray:
        return example.layers(store, rule, mask.shape)["optic disc"] > 0  # type: ignore[arg-type]

    assert np.array_equal(combined("latest"), shifted[2])
    assert np.array_equal(combined("majority"), np.sum(shifted, axis=0) >= 2)


def test_promote_and_roll_back_change_the_version_in_service(
    stage: TrainingStage, model: Path
) -> None:
    services = stage.services
    base = versions.in_service(services, 7)
    first = publish(services, str(model), 7, passed=True, scale=1.01)
    second = publish(services, str(model), 7, passed=False, scale=1.02)
    promotion.promote(services, 7, first)
    with pytest.raises(ModelVersionError, match="did not pass the gate"):
        promotion.promote(services, 7, second)
    assert versions.in_service(services, 7) == first
    assert promotion.promote(services, 7, second, force=True).kind == PromotionKind.FORCED
    with pytest.raises(ModelVersionError, match="trained for project 7"):
        promotion.promote(services, 8, first)
    assert promotion.rollback(services, 7).version == first
    assert promotion.rollback(services, 7).version == base
    with pytest.raises(ModelVersionError, match="no promotion"):
        promotion.rollback(services, 7)
    with services.database.reading() as session:
        kinds = session.scalars(select(Promotion.kind).order_by(Promotion.id)).all()
    assert kinds == ["manual", "forced", "rollback", "rollback"]


def test_one_worker_serves_two_projects_with_the_right_detector_each(
    stage: TrainingStage, model: Path
) -> None:
    services = stage.services
    published = [
        publish(services, str(model), project, passed=True, scale=s)
        for project, s in ((7, 0.9), (8, 1.1))
    ]
    inference = Inference(services)
    base = inference.model(versions.default_version(services))
    loaded = [inference.model(version) for version in (*published, *published)]
    assert [one.version for one in loaded] == [*published, *published]
    for one in loaded:
        assert one.model.vision_encoder.backbone is base.model.vision_encoder.backbone
        assert one.model.text_encoder is base.model.text_encoder
    assert loaded[0].detector_hash != loaded[1].detector_hash
    detector = sum(_bytes_of(detector_state(base.model).values()).values())
    grown = {**_bytes_of(_tensors(base)), **_bytes_of(_tensors(loaded[0]), _tensors(loaded[1]))}
    assert sum(grown.values()) - sum(_bytes_of(_tensors(base)).values()) == 2 * detector
    task = stage.label_studio.add_task(disc_file(5)[0])
    outcomes = [
        inference.predict(stage.suggestion(version, task), CONFIG)
        for version in (*published, published[0])
    ]
    assert outcomes[0].score == outcomes[2].score != outcomes[1].score


def _tensors(model: MedSAM3) -> Iterable[torch.Tensor]:
    return [*model.model.parameters(), *model.model.buffers()]


def _bytes_of(*tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Memory by address: what two models share counts once."""
    storages = [one.untyped_storage() for each in tensors for one in each]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def test_a_trainer_killed_while_training_goes_on_and_leaves_no_half_version(
    stage: TrainingStage,
) -> None:
    services = stage.services
    stage.annotate(train=6)
    weights = []
    for kill in (False, True):
        id_ = runs.request_run(
            services, 7, Trigger.COMMAND, steps=12, learning_rate=1e-3, auto_promote=False
        ).run_id
        if kill:
            _kill_while_training(services, id_)
            assert not list((services.settings.data_dir / "detectors").glob(".*"))
            with services.database.session() as session:
                session.execute(
                    update(TrainingRun).where(TrainingRun.id == id_).values(lease_until=now())
                )
        trainer.train_run(services, id_)
        with services.database.reading() as session:
            run = session.get_one(TrainingRun, id_)
        assert run.state == RunState.DONE, run.error
        weights.append(run.candidate)
    # The name holds the weights' hash.
    assert weights[0] == weights[1]


def _kill_while_training(services: Services, id_: str) -> None:
    kept = services.settings.model_dump_json(exclude={"label_studio_api_key"})
    program = f"""
from pydantic import SecretStr
from backend.services import open_services
from backend.settings import Settings
from backend.training.trainer import train_run
settings = Settings.model_validate_json({kept!r})
settings.label_studio_api_key = SecretStr("0" * 40)
train_run(open_services(settings), {id_!r})
"""
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with services.database.reading() as session:
            if session.get_one(TrainingRun, id_).step >= 2:
                break
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_trainer_of_its_own_session_makes_way_for_all_others() -> None:
    program = """
import os
from pathlib import Path
from backend.training.trainer import _make_way
_make_way()
session = Path("/proc/self/autogroup")
print(os.nice(0), os.environ["OMP_NUM_THREADS"], session.read_text() if session.exists() else 10)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        start_new_session=True,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert told[0] == told[-1] == "10"
    assert int(told[1]) == max(1, (os.cpu_count() or 1) // 2)
