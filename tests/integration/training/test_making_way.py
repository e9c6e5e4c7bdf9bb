"""Training makes way for annotators: it waits as long as a prompt waits or is under way."""

import socket
import threading
import time

import pytest
from redis import Redis

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
from backend.training import annotators
from backend.training.annotators import Annotators
from tests.support.training_stage import TrainingStage
from tests.support.waiting import wait_until


def test_training_waits_for_prompts_under_way(
    stage: TrainingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = stage.services
    monkeypatch.setattr(annotators, "LONGEST_WAIT_S", 0.0)
    assert Annotators(services.redis).wait() < 1
    # One that died with its process counts until nobody waits for it any more.
    services.redis.zadd(PROMPTS_KEY, {"died": time.time() - 1})
    assert prompts_under_way(services.redis) == 0

    training = threading.Thread(target=Annotators(services.redis).wait)
    for request_id in ("first", "second"):
        _prompt(services, request_id)
    training.start()
    assert prompts_under_way(services.redis) == 2
    wake(services.redis, ["second"])
    # Longer than the moment after a prompt counts; the first one still waits.
    training.join(3 * annotators._POLL_S)
    assert training.is_alive()
    wake(services.redis, ["first"])
    wait_until(lambda: not training.is_alive(), 30)


def test_within_a_step_only_the_prompt_itself_is_waited_for(stage: TrainingStage) -> None:
    services = stage.services
    training = threading.Thread(
        target=Annotators(services.redis).wait, kwargs={"between_prompts": False}
    )
    _prompt(services, "only")
    training.start()
    training.join(3 * annotators._POLL_S)
    assert training.is_alive()
    wake(services.redis, ["only"])
    wait_until(lambda: not training.is_alive(), 30)
    # The annotator may draw the next one any moment; between steps that is waited for.
    assert services.redis.exists(INTERACTIVE_KEY)
    assert Annotators(services.redis).wait(between_prompts=False) < annotators._POLL_S


def test_a_redis_that_does_not_answer_is_not_asked_at_every_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A host that accepts connections and says nothing, as behind a broken network."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        redis = Redis(port=silent.getsockname()[1], socket_timeout=0.3, retry=None)
        waiting = Annotators(redis)
        assert waiting.wait() >= 0.3
        assert [waiting.wait(between_prompts=False) for _ in range(20)] == [0.0] * 20
        monkeypatch.setattr(annotators, "_ASK_AGAIN_S", 0.0)
        again = Annotators(redis)
        assert [again.wait() >= 0.3 for _ in range(2)] == [True, True]


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
