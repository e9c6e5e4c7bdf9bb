"""Training makes way for annotators: it waits as long as a prompt waits or is under way."""

import threading
import time

import pytest

from backend.processes.queues import PROMPTS_KEY, prompt_under_way, prompts_under_way
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
    with prompt_under_way(services.redis, "first", 60):
        with prompt_under_way(services.redis, "second", 60):
            training.start()
            assert prompts_under_way(services.redis) == 2
        # Longer than the moment after a prompt counts; the first one still waits.
        training.join(3 * learn._POLL_S)
        assert training.is_alive()
    wait_until(lambda: not training.is_alive(), 30)
