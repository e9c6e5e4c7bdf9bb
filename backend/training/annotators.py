"""Training makes way for annotators: it waits as long as a prompt waits or is under way."""

import logging
import time

from redis import Redis
from redis.exceptions import RedisError

from backend.processes.queues import INTERACTIVE_KEY, prompts_under_way
from backend.processes.stopping import stopping

log = logging.getLogger(__name__)

# Training waits for annotators who are between two prompts, but not for ever: a busy day would see
# no step at all.
LONGEST_WAIT_S = 20.0
_POLL_S = 0.05
# A Redis that did not answer is asked again after so long: where its host swallows what is sent,
# each question takes seconds, and a step asks many times.
_ASK_AGAIN_S = 30.0


class Annotators:
    """Those whose prompts training waits for; asked about before, between and within steps."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._ask_from = time.monotonic()

    def wait(self, *, between_prompts: bool = True) -> float:
        """Wait as long as a prompt waits or is under way, and a moment longer; returns the seconds.

        The moment after a prompt counts for at most `LONGEST_WAIT_S`, and only where
        `between_prompts`. While Redis does not answer nobody is waited for.
        """
        started = time.monotonic()
        if started < self._ask_from:
            return 0.0
        try:
            while not stopping.is_set():
                late = not between_prompts or time.monotonic() - started >= LONGEST_WAIT_S
                if not prompts_under_way(self._redis) and (
                    late or not self._redis.exists(INTERACTIVE_KEY)
                ):
                    break
                time.sleep(_POLL_S)
        except RedisError:
            self._ask_from = time.monotonic() + _ASK_AGAIN_S
            log.debug("Redis does not say whether annotators wait")
        return time.monotonic() - started
