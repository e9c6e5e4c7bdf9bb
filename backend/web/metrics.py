"""Prometheus metrics, read from the database and Redis when asked for.

Workers add their counters to a Redis hash (`backend.processes.counters`); this process counts
nothing itself, so any of several may be asked. Nothing here carries a task's data.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from werkzeug.utils import import_string

from backend.errors import QueueError
from backend.processes.counters import (
    BOUNDS_S,
    JobOutcome,
    WorkStage,
    bucket_field,
    job_field,
    read_counters,
    sum_field,
)
from backend.processes.health import last_rounds, worker_signs
from backend.processes.queues import QueueName, queue
from backend.services import Services
from backend.tables import Event, Suggestion

# Functions of rooms above this one that read metrics from the database, by name.
PLUGINS = ("backend.training.metrics:training_metrics",)

# What GPU workers count, summed over all of them since the counters were last emptied.
COUNTERS = {
    "embedding_memory_hits": "Images whose embedding was in a worker's memory",
    "embedding_disk_hits": "Images whose embedding was on disk",
    "embedding_shared_hits": "Images whose embedding was in the shared store",
    "embedding_misses": "Images that had to be encoded",
    "embedding_entries_dropped": "Embeddings that were damaged and are made again",
    "embedding_disk_errors": "Embeddings that could not be written to disk",
    "embedding_shared_errors": "Times that the shared store of embeddings did not answer",
    "text_embedding_hits": "Phrases whose embedding was in a worker's memory",
    "text_embedding_misses": "Phrases that had to be encoded",
}


def render(services: Services) -> tuple[bytes, str]:
    """The metrics in Prometheus' text format, with its content type."""
    registry = CollectorRegistry()
    registry.register(Collector(services))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class Collector:
    """Reads every metric when asked; prometheus-client calls `collect`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """Every metric with its samples; those in Redis only while it answers."""
        yield from self._database()
        yield from self._redis()

    def _database(self) -> Iterator[Metric]:
        predictions = GaugeMetricFamily(
            "medsam3_predictions", "Predictions by state and delivery", labels=["state", "delivery"]
        )
        events = GaugeMetricFamily("medsam3_events", "Webhook events by state", labels=["state"])
        columns = ((predictions, (Suggestion.state, Suggestion.delivery)), (events, (Event.state,)))
        with self._services.database.reading() as session:
            for gauge, labels in columns:
                rows = session.execute(select(*labels, func.count()).group_by(*labels))
                for *values, count in rows:
                    gauge.add_metric(values, count)
            yield from (predictions, events)
            for name in PLUGINS:
                read: Callable[[Session], Iterator[Metric]] = import_string(name)
                yield from read(session)

    def _redis(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "medsam3_queue_jobs", "Jobs waiting, by queue", labels=["queue"]
        )
        ages = GaugeMetricFamily(
            "medsam3_last_round_age_seconds",
            "Seconds since recovery, that of training, and the sync last went through",
            labels=["round"],
        )
        workers = GaugeMetricFamily(
            "medsam3_workers", "Workers that gave a sign of life, by queue", labels=["queue"]
        )
        up = GaugeMetricFamily("medsam3_redis_up", "1 when Redis answers")
        try:
            redis = self._services.redis
            for name in QueueName:
                waiting.add_metric([name], queue(redis, name).count)
            counted = read_counters(redis)
            alive = Counter(name for sign in worker_signs(redis) for name in sign.queues)
            for name in QueueName:
                workers.add_metric([name], alive[name])
            for kind, age in last_rounds(redis).items():
                ages.add_metric([kind], age)
            up.add_metric([], 1)
        except (RedisError, QueueError):
            # No counters at all: falling to 0 and back would look like a burst of work.
            up.add_metric([], 0)
            yield up
            return
        yield up
        yield waiting
        yield workers
        yield ages
        yield stage_seconds(counted)
        yield from job_counts(counted)
        for counter, meaning in COUNTERS.items():
            yield CounterMetricFamily(
                f"medsam3_{counter}", meaning, value=counted.get(counter, 0.0)
            )


def stage_seconds(counted: Mapping[str, float]) -> Metric:
    """The histogram of what predictions take their time with, from the counters."""
    histogram = HistogramMetricFamily(
        "medsam3_stage_seconds",
        "Seconds that predictions wait, and that fetching, encoding, detecting and pushing take",
        labels=["stage"],
    )
    for stage in WorkStage:
        counts = [counted.get(bucket_field(stage, bound), 0.0) for bound in (*BOUNDS_S, None)]
        bounds = [*map(str, BOUNDS_S), "+Inf"]
        buckets = list(zip(bounds, accumulate(counts), strict=True))
        histogram.add_metric([stage], buckets, counted.get(sum_field(stage), 0.0))
    return histogram


def job_counts(counted: Mapping[str, float]) -> Iterator[Metric]:
    """Jobs that began and that ended, by queue, from the counters."""
    begun = CounterMetricFamily(
        "medsam3_jobs_begun", "Jobs that a worker began, by queue", labels=["queue"]
    )
    ended = CounterMetricFamily(
        "medsam3_jobs", "Jobs that ended, by queue and outcome", labels=["queue", "outcome"]
    )
    for name in QueueName:
        begun.add_metric([name], counted.get(job_field(name, JobOutcome.BEGUN), 0.0))
        for outcome in (JobOutcome.FINISHED, JobOutcome.FAILED):
            ended.add_metric([name, outcome], counted.get(job_field(name, outcome), 0.0))
    yield from (begun, ended)
