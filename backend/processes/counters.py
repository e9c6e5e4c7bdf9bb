"""Counters of all workers, summed in one Redis hash; `/metrics` shows them."""

from collections.abc import Mapping

from redis import Redis

COUNTERS_KEY = "medsam3:counters"


def add_to_counters(redis: Redis, increments: Mapping[str, float]) -> None:
    """Add to the counters that `backend.web.metrics.COUNTERS` names.

    Raises:
        RedisError: Redis does not answer.
    """
    if not increments:
        return
    with redis.pipeline(transaction=False) as pipeline:
        for name, amount in increments.items():
            pipeline.hincrbyfloat(COUNTERS_KEY, name, amount)
        pipeline.execute()
