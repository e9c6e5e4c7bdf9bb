"""Prometheus metrics, read from the database and Redis when asked for.

Workers publish their counters in a Redis hash; the web process shows them with its own. Nothing
here carries a task's data.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError
from rq.utils import as_text
from sqlalchemy import func, select

from backend.models.encoding import COUNTERS_KEY
from backend.processes.health import last_rounds
from backend.processes.queues import QueueName, queue
from backend.services import Services
from backend.tables import Event, Suggestion

# What GPU workers count, summed over all of them since the counters were last emptied.
COUNTERS = {
    "embedding_memory_hits": "Images whose embedding was in a worker's memory",
    "embedding_disk_hits": "Images whose embedding was on disk",
    "embedding_misses": "Images that had to be encoded",
    "embedding_entries_dropped": "Embeddings dropped from disk to stay below the limit",
    "embedding_disk_errors": "Embeddings that could not be read from or written to disk",
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

    def _redis(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "medsam3_queue_jobs", "Jobs waiting, by queue", labels=["queue"]
        )
        ages = GaugeMetricFamily(
            "medsam3_last_round_age_seconds",
            "Seconds since recovery, that of training, and the sync last went through",
            labels=["round"],
        )
        up = GaugeMetricFamily("medsam3_redis_up", "1 when Redis answers")
        try:
            redis = self._services.redis
            for name in QueueName:
                waiting.add_metric([name], queue(redis, name).count)
            counted = {
                as_text(name): float(value) for name, value in redis.hgetall(COUNTERS_KEY).items()
            }
            for kind, age in last_rounds(redis).items():
                ages.add_metric([kind], age)
            up.add_metric([], 1)
        except RedisError:
            # No counters at all: falling to 0 and back would look like a burst of work.
            up.add_metric([], 0)
            yield up
            return
        yield up
        yield waiting
        yield ages
        for counter, meaning in COUNTERS.items():
            yield CounterMetricFamily(
                f"medsam3_{counter}", meaning, value=counted.get(counter, 0.0)
            )
