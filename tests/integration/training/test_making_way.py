"""Training makes way for annotators: it waits as long as a prompt waits or is under way."""

import threading
import time

import pytest

from backend.processes.queues import (
    INTERACTIVE_KEY,
    PROMPTS_KEY,
    Handler,
    QueueName,
    Waiting,
    enqueue,
    prompts_under_way,
    wake,
)
from backend.services import Services
from backend.training import learn
from tests.support.training_stage import TrainingStage
from tests.support.waiting import wait_until


def test_training_waits_for_prompts_under_way(
    stage: TrainingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = stage.services
    monkeypatch.setattr(learn, "LONGEST_WAIT_S", 0.0)
    assert learn.wait_for_annotators(services) < 1
    # One that died with its process counts until nobody waits for it any more.
    services.redis.zadd(PROMPTS_KEY, {"died": time.time() - 1})
    assert prompts_under_way(services.redis) == 0

    training = threading.Thread(target=learn.wait_for_annotators, args=(services,))
    for request_id in ("first", "second"):
        _prompt(services, request_id)
    training.start()
    assert prompts_under_way(services.redis) == 2
    wake(services.redis, ["second"])
    # Longer than the moment after a prompt counts; the first one still waits.
    training.join(3 * learn._POLL_S)
    assert training.is_alive()
    wake(services.redis, ["first"])
    wait_until(lambda: not training.is_alive(), 30)


def test_within_a_step_only_the_prompt_itself_is_waited_for(stage: TrainingStage) -> None:
    services = stage.services
    within = {"between_prompts": False}
    training = threading.Thread(target=learn.wait_for_annotators, args=(services,), kwargs=within)
    _prompt(services, "only")
    training.start()
    training.join(3 * learn._POLL_S)
    assert training.is_alive()
    wake(services.redis, ["only"])
    wait_until(lambda: not training.is_alive(), 30)
    # The annotator may draw the next one any moment; between steps that is waited for.
    assert services.redis.exists(INTERACTIVE_KEY)
    assert learn.wait_for_annotators(services, **within) < learn._POLL_S


def _prompt(services: Services, request_id: str) -> None:
    waiting = Waiting(request_id, 60)
    ids, job_id = [request_id], f"predict-{request_id}"
    enqueue(
        services.redis,
        QueueName.GPU,
        Handler.PREDICT,
        ids,
        job_id=job_id,
        at_front=True,
        waiting=waiting,
    )
