"""Redis, and the workers on its queues."""

from datetime import UTC, datetime, timedelta

from redis import Redis
from redis.exceptions import RedisError

from backend.doctor.check import Check, fail, ok, warn
from backend.label_studio.hosts import shown
from backend.processes.queues import QueueName, queue
from backend.settings import Settings

# RQ's workers report at least this often, jobs or not.
_HEARTBEAT_S = 150
# Without one of these nothing is predicted or taken in.
_NEEDED_QUEUES = (QueueName.GPU, QueueName.INGEST)


def check_redis(settings: Settings, redis: Redis) -> Check:
    """Redis answers, and will not drop queued jobs when memory runs short."""
    where = shown(settings.redis_url) if settings.redis_url else str(settings.redis_socket)
    try:
        redis.ping()
        policy = redis.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
    except RedisError as error:
        return fail(
            "redis",
            f"Redis at {where} does not answer ({type(error).__name__})",
            "check REDIS_URL"
            if settings.redis_url
            else "`medsam3 serve` starts the embedded one; or set REDIS_URL",
        )
    if policy != "noeviction":
        return warn(
            "redis",
            f"Redis at {where} may drop queued jobs (maxmemory-policy {policy})",
            "set its maxmemory-policy to noeviction",
        )
    return ok("redis", f"answers at {where}")


def check_workers(redis: Redis, name: QueueName) -> Check:
    """A worker takes jobs from the queue."""
    from rq import Worker

    jobs = queue(redis, name)
    waiting = len(jobs)
    oldest = datetime.now(UTC) - timedelta(seconds=_HEARTBEAT_S)
    alive = [
        worker
        for worker in Worker.all(queue=jobs)
        if worker.last_heartbeat and _utc(worker.last_heartbeat) > oldest
    ]
    title = f"workers on {name}"
    counts = f"{len(alive)} alive, {waiting} jobs waiting"
    # Nobody has to train; only runs that nobody takes are worth a word.
    if alive or (name not in _NEEDED_QUEUES and not waiting):
        return ok(title, counts)
    if name not in _NEEDED_QUEUES:
        command = "trainer" if name == QueueName.TRAIN else f"worker --queue {name}"
        return warn(title, counts, f"start `medsam3 {command}`")
    return fail(title, counts, f"start `medsam3 serve`, or `medsam3 worker --queue {name}`")


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
