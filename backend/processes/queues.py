"""The four RQ queues, and how work gets onto them.

RQ hands a job over without ever holding it in memory alone (LMOVE) only to workers that listen on
a single queue. So there is one queue per kind of worker: `gpu` for everything that needs the
model, with interactive jobs put at its front; `ingest` for talking to Label Studio; `agent`
for waiting for a language model, which holds no GPU; `train`.
Jobs carry ids of database rows and nothing else.
"""

import time
import zlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from rq.job import Job, Retry
from rq.serializers import JSONSerializer
from rq.utils import as_text

from backend.errors import QueueError

JOB_TIMEOUT_S = 900
# Results live in the database: RQ may forget a finished job at once.
RESULT_TTL_S = 0
# A failed job is kept for a day, long enough to be looked at.
FAILURE_TTL_S = 24 * 3600
# How long the list that wakes a waiting request survives when nobody reads it.
DONE_TTL_S = 300
# A worker that took a job begins it at once; one that did not within this time was killed.
HANDOVER_S = 5
# Jobs that are read in one go when the queue is looked through.
READ_TOGETHER = 200
HANDED_OVER_KEY = "medsam3:handed-over"
# There while somebody prompts and a moment after it: training on the same device waits as long.
INTERACTIVE_KEY = "medsam3:interactive"
# Prompts that wait or are under way, by the moment at which nobody waits for them any more.
PROMPTS_KEY = "medsam3:prompts"
INTERACTIVE_MS = 1500
# What the ids of jobs at the front of a queue begin with.
URGENT = "urgent-"


@dataclass(frozen=True)
class Waiting:
    """Somebody who waits for a prompt's answer; until `wake` names the request, or in vain.

    Attributes:
        request_id: of the prompt.
        at_most_s: seconds after which nobody does any more, whatever became of the processes.
    """

    request_id: str
    at_most_s: float


class QueueName(StrEnum):
    """Each queue has workers of its own."""

    GPU = "gpu"
    INGEST = "ingest"
    AGENT = "agent"
    TRAIN = "train"


class Handler(StrEnum):
    """The functions that jobs call, by dotted path: each takes a list of row ids.

    A room can enqueue the work of another one without importing it.
    """

    PREDICT = "backend.predictions.jobs.predict_chunk"
    PUSH = "backend.predictions.jobs.push_chunk"
    PROPAGATE = "backend.predictions.propagations.start_propagations"
    AGENT = "backend.predictions.agent_jobs.guide"
    PREANNOTATE = "backend.predictions.preannotate.start_preannotation"
    PRUNE = "backend.predictions.pruning.prune_job"
    RETRY = "backend.predictions.retry.retry_failed"
    INGEST = "backend.training.triggers.ingest_events"
    UPKEEP = "backend.corrections.sync.keep_up_job"
    AGREEMENT = "backend.corrections.agreement.compute_job"
    TRAIN = "backend.training.trainer.train"
    ROLL_OUT = "backend.training.roll_out.roll_out"


def queue(redis: Redis, name: QueueName) -> Queue:
    """The RQ queue `name`; its jobs are JSON, never pickles."""
    return Queue(name, connection=redis, serializer=JSONSerializer, default_timeout=JOB_TIMEOUT_S)


def enqueue(
    redis: Redis,
    name: QueueName,
    handler: Handler,
    ids: Sequence[str],
    *,
    job_id: str,
    at_front: bool = False,
    timeout_s: int | None = None,
    waiting: Waiting | None = None,
) -> None:
    """Put `handler(ids)` on a queue.

    Args:
        redis: the connection.
        name: which queue.
        handler: what the job calls.
        ids: the rows; handlers look them up, so a job that comes twice does its work once.
        job_id: deterministic, so that the same work enqueued twice is one job, and waits once.
        at_front: before everything that waits (interactive work).
        timeout_s: seconds that the job may take, -1 without end; default `JOB_TIMEOUT_S`.
        waiting: who waits for it: training makes room as long.

    Raises:
        QueueError: Redis cannot be reached.
    """
    try:
        if at_front:
            job_id = URGENT + job_id
        target = queue(redis, name)
        # RQ would put the id of a job that waits already on the list once more, and nobody may
        # be there to take any.
        # Whether there is such a job at all is known at once; the list is gone through for few, and
        # a prompt that somebody waits for has never been there.
        known = waiting is None and redis.exists(Job.key_for(job_id))
        if known and redis.lpos(target.key, job_id) is not None:
            return
        with redis.pipeline() as pipeline:
            target.enqueue_call(
                str(handler),
                args=(list(ids),),
                job_id=job_id,
                at_front=at_front,
                timeout=timeout_s,
                result_ttl=RESULT_TTL_S,
                failure_ttl=FAILURE_TTL_S,
                retry=Retry(max=2),
                description=f"{handler.rpartition('.')[2]} × {len(ids)}",
                pipeline=pipeline,
            )
            if at_front:
                pipeline.set(INTERACTIVE_KEY, 1, px=INTERACTIVE_MS)
            if waiting is not None:
                until = time.time() + waiting.at_most_s
                pipeline.zadd(PROMPTS_KEY, {waiting.request_id: until})
            pipeline.execute()
    except RedisError as error:
        raise QueueError(
            f"Redis does not answer ({type(error).__name__}); the work is kept in the database "
            "and is queued again as soon as Redis is back."
        ) from error


def prompts_under_way(redis: Redis) -> int:
    """How many prompts wait or are under way.

    Raises:
        RedisError: Redis cannot be reached.
    """
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.zremrangebyscore(PROMPTS_KEY, "-inf", time.time())
        pipeline.zcard(PROMPTS_KEY)
        return int(pipeline.execute()[1])


def urgent_job_waits(redis: Redis, name: QueueName) -> bool:
    """Whether the next job of a queue was put at its front.

    Raises:
        RedisError: Redis cannot be reached.
    """
    first = redis.lindex(queue(redis, name).key, 0)
    return first is not None and as_text(first).startswith(URGENT)


@dataclass(frozen=True)
class QueueCounts:
    """Jobs of one queue that wait, that are at work, and that failed in the last day."""

    name: str
    waiting: int
    started: int
    failed: int


def count_jobs(redis: Redis) -> list[QueueCounts]:
    """Every queue with its jobs.

    Raises:
        QueueError: Redis cannot be reached.
    """
    try:
        return [
            QueueCounts(
                str(name),
                jobs.count,
                jobs.started_job_registry.count,
                jobs.failed_job_registry.count,
            )
            for name, jobs in ((name, queue(redis, name)) for name in QueueName)
        ]
    except RedisError as error:
        raise QueueError(f"Redis does not answer ({type(error).__name__})") from error


def waiting_row_ids(
    redis: Redis, name: QueueName, among: Collection[str] | None = None
) -> set[str]:
    """The rows for which a job waits on a queue, or was just handed to a worker.

    Jobs that are none of ours, or damaged, stand for no rows: the worker fails them.

    Args:
        redis: the connection.
        name: which queue.
        among: rows that are looked for. The queue is read from its front until it has named all of
            them; what waited longest is there, so of a hundred thousand few are read.

    Raises:
        QueueError: Redis cannot be reached.
    """
    waiting, found = queue(redis, name), set[str]()
    try:
        # Bytes, as they are: a foreign id need not be text.
        job_ids: list[Any] = [*redis.lrange(waiting.key, 0, -1), *_handed_over(redis, waiting)]
        for start in range(0, len(job_ids), READ_TOGETHER):
            with redis.pipeline(transaction=False) as pipeline:
                for job_id in job_ids[start : start + READ_TOGETHER]:
                    pipeline.hget(Job.redis_job_namespace_prefix.encode() + job_id, "data")
                stored = pipeline.execute(raise_on_error=False)
            # A job that a worker took between the calls is gone: its rows have a lease by then.
            found.update(row_id for data in stored for row_id in _row_ids(data))
            if among is not None and found.issuperset(among):
                break
    except RedisError as error:
        raise QueueError(f"Redis does not answer ({type(error).__name__})") from error
    return found


def _row_ids(data: object) -> list[str]:
    """The rows that a stored job is about; none where it is not one that `enqueue` made."""
    if not isinstance(data, bytes):
        return []
    with suppress(zlib.error):
        data = zlib.decompress(data)
    try:
        _, _, (ids,), _ = JSONSerializer.loads(data)
    except (ValueError, TypeError, RecursionError):
        return []
    return [id_ for id_ in ids if isinstance(id_, str)] if isinstance(ids, list) else []


def _handed_over(redis: Redis, waiting: Queue) -> list[Any]:
    """The jobs that a worker took a moment ago; those with which it died are taken off the list.

    RQ's own clean-up comes after two minutes and calls such a job failed.
    """
    fresh = []
    # Bytes, as they are: a foreign id need not be text.
    taken: list[Any] = redis.lrange(waiting.intermediate_queue_key, 0, -1)
    for job_id in taken:
        seen_key = f"{HANDED_OVER_KEY}:{waiting.name}:".encode() + job_id
        redis.set(seen_key, time.time(), nx=True, ex=3600)
        if time.time() - float(redis.get(seen_key) or "inf") < HANDOVER_S:
            fresh.append(job_id)
        else:
            redis.lrem(waiting.intermediate_queue_key, 1, job_id)
            redis.delete(seen_key)
    return fresh


def wake(redis: Redis, request_ids: Sequence[str], message: str = "") -> None:
    """Tell the requests that wait for work that some of it is done; `message` goes along.

    From then on none of them counts as a prompt under way.
    """
    with redis.pipeline(transaction=False) as pipeline:
        for request_id in request_ids:
            pipeline.lpush(_done_key(request_id), message)
            pipeline.expire(_done_key(request_id), DONE_TTL_S)
            pipeline.zrem(PROMPTS_KEY, request_id)
        pipeline.execute()


def wait(redis: Redis, request_id: str, timeout_s: float) -> str | None:
    """Block until `wake` names the request: its message, or None when `timeout_s` went by."""
    woken = redis.blpop([_done_key(request_id)], timeout=timeout_s)
    return None if woken is None else as_text(woken[1])


def _done_key(request_id: str) -> str:
    return f"medsam3:done:{request_id}"
