"""Counters that all processes add to: one Redis hash, which `/metrics` shows.

Workers are on several machines, come and go, and are killed. What a process counts in its own
memory ends with it, and prometheus-client's files for several processes stay on one machine and
grow with every process that was there. So each worker adds what it counted to Redis when a job
ends, and one that is killed loses no more than the counts of the job that it had.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from threading import Lock, get_ident
from time import perf_counter

from redis import Redis
from redis.exceptions import RedisError
from rq.utils import as_text

log = logging.getLogger(__name__)

COUNTERS_KEY = "medsam3:counters"
# Upper bounds in seconds, for stages of a few milliseconds and tasks that wait for hours.
BOUNDS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0)


class WorkStage(StrEnum):
    """What a prediction takes its time with."""

    WAIT = "wait"  # from the request until a worker begins
    FETCH = "fetch"  # an image's file
    ENCODE = "encode"  # an image, or a part of one, whose embedding was not in the cache
    DETECT = "detect"  # everything that the model is asked about an encoded image
    PUSH = "push"  # a request that brings predictions to Label Studio


class JobOutcome(StrEnum):
    """What became of a job; one that died with its worker has begun and no outcome."""

    BEGUN = "begun"
    FINISHED = "finished"
    FAILED = "failed"


class StageTimes:
    """How long a worker's stages took, until it is taken to Redis; threads may share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[str, float] = defaultdict(float)
        # By thread: what a stage took in one is no part of another's.
        self._totals: dict[tuple[int, WorkStage], float] = defaultdict(float)

    def observe(self, stage: WorkStage, seconds: float) -> None:
        """Count one."""
        seconds = max(0.0, seconds)
        bound = next((bound for bound in BOUNDS_S if seconds <= bound), None)
        with self._lock:
            self._totals[get_ident(), stage] += seconds
            self._counts[bucket_field(stage, bound)] += 1
            self._counts[sum_field(stage)] += seconds

    @contextmanager
    def measured(self, stage: WorkStage, *, without: WorkStage | None = None) -> Iterator[None]:
        """Count the block, less what another stage takes in it; not where it raises."""
        key = (get_ident(), without or stage)
        other = self._totals[key]
        began = perf_counter()
        yield
        inside = self._totals[key] - other if without else 0.0
        self.observe(stage, perf_counter() - began - inside)

    def take(self) -> dict[str, float]:
        """What was counted since the last call, for `add_to_counters`."""
        with self._lock:
            taken, self._counts = dict(self._counts), defaultdict(float)
        return taken


def bucket_field(stage: WorkStage, bound: float | None) -> str:
    """The field for those up to a bound, and above the one before; None: above all bounds."""
    return f"{stage}_seconds:{'inf' if bound is None else bound}"


def sum_field(stage: WorkStage) -> str:
    """The field for the seconds of all."""
    return f"{stage}_seconds:sum"


def job_field(queue_name: str, outcome: JobOutcome) -> str:
    """The field for jobs of a queue."""
    return f"jobs:{queue_name}:{outcome}"


def add_to_counters(redis: Redis, increments: Mapping[str, float]) -> None:
    """Add to the counters.

    Raises:
        RedisError: Redis does not answer.
    """
    if not increments:
        return
    with redis.pipeline(transaction=False) as pipeline:
        for name, amount in increments.items():
            pipeline.hincrbyfloat(COUNTERS_KEY, name, amount)
        pipeline.execute()


def read_counters(redis: Redis) -> dict[str, float]:
    """What all processes counted so far, by field; what was never counted is missing.

    Raises:
        RedisError: Redis does not answer.
    """
    return {as_text(name): float(value) for name, value in redis.hgetall(COUNTERS_KEY).items()}


def publish(redis: Redis, increments: Mapping[str, float]) -> None:
    """`add_to_counters`; without Redis they are not counted, and the log says so."""
    try:
        add_to_counters(redis, increments)
    except RedisError as error:
        log.warning("counters are not published (%s)", type(error).__name__)
