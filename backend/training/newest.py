"""Lists in Redis that keep their newest entries for some weeks, for those who watch a run.

Nothing depends on them: an entry that is lost is no harm.
"""

import json
import logging
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from backend.errors import QueueError

log = logging.getLogger(__name__)

_KEPT_S = 30 * 24 * 3600


@dataclass(frozen=True)
class NewestEntries:
    """The newest `most` entries under each key; entries are JSON values."""

    most: int

    def add(self, redis: Redis, key: str, entry: Any) -> None:
        """Keep an entry; without Redis it is lost, and the caller goes on."""
        try:
            with redis.pipeline(transaction=False) as pipeline:
                pipeline.rpush(key, json.dumps(entry))
                pipeline.ltrim(key, -self.most, -1)
                pipeline.expire(key, _KEPT_S)
                pipeline.execute()
        except RedisError as error:
            log.debug("an entry of %s is not kept: %s", key, type(error).__name__)

    def all(self, redis: Redis, key: str) -> list[Any]:
        """The entries, oldest first.

        Raises:
            QueueError: Redis cannot be reached.
        """
        try:
            values: list[Any] = redis.lrange(key, 0, -1)
        except RedisError as error:
            raise QueueError(f"Redis does not answer ({type(error).__name__})") from error
        return [json.loads(value) for value in values]
