"""A cluster on one machine: every process has a folder of its own, as on a machine of its own.

Its processes share PostgreSQL, Redis and an S3 server, as docs/deployment.md says for several
machines, and are started again when they end, as Compose does. Faults come from a seed.
"""

import math
import os
import random
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from signal import SIGTERM

import psycopg
import pytest

from backend.label_studio.server import free_port
from backend.services import Services, open_services
from backend.settings import Settings
from tests.support.cloud_label_studio import BUCKET, CloudLabelStudio
from tests.support.forked_processes import fork, kill, medsam3
from tests.support.servers import S3, Postgres, RedisOfCompose

WEBS = ("web 1", "web 2")
WORKERS = {
    **{f"gpu {number}": ("worker", "--queue", "gpu") for number in range(1, 5)},
    **{f"ingest {number}": ("worker", "--queue", "ingest") for number in range(1, 3)},
    "trainer": ("trainer",),
}
PROCESSES = (*WEBS, *WORKERS)
STORE = "medsam3"
SECRETS = ("label-studio", "p" * 24, "w" * 24)
# What the product does every few seconds or minutes, it does here about once a second.
PAUSES = {
    "backend.predictions.requests.LOOK_AFTER_S": 4,
    "backend.predictions.requests.REPLY_GRACE_S": 4,
    "backend.predictions.recover.INTERVAL_S": 1,
    "backend.predictions.recover.SETTLING_S": 2,
    "backend.predictions.recover.EVENT_SETTLING_S": 4,
    "backend.predictions.pushing.RETRY_LATER_S": 2,
    "backend.predictions.jobs.RETRY_LATER_S": 2,
    "backend.processes.queues.HANDOVER_S": 2,
    "backend.training.runs.LEASE_S": 4,
    "backend.training.trainer.INTERVAL_S": 1,
    "backend.training.trainer.FIRST_PAUSE_S": 0.5,
    "backend.training.trainer.LONGEST_PAUSE_S": 4,
    "backend.training.roll_out.FIRST_PAUSE_S": 2,
    "backend.training.roll_out.LONGEST_PAUSE_S": 4,
}
# A process ends about so often, and then has the time to do something before it ends again.
EVERY_S, SPARED_S = 1.4, 7.0
# A stop may wait for a job that waits for a server which is away; Compose gives it a minute.
STOP_S = 60.0
# Compose starts again at once what ends by itself, and waits longer where it ends again.
AGAIN_S = 0.3
# Characters of each process's log that a failure shows.
_MOST_LOG = 20_000


@dataclass(frozen=True)
class Fault:
    """Something that happens to the cluster.

    Attributes:
        at_s: seconds after the beginning.
        what: `kill` and `stop` (SIGTERM) a process, `pause` S3, `restart` Redis or PostgreSQL,
            `empty` Redis, `crash` PostgreSQL, `cut` its clients off.
        whom: a process, `s3`, `redis` or `postgres`.
        for_s: how long it is away.
    """

    at_s: float
    what: str
    whom: str
    for_s: float = 0.0

    def __str__(self) -> str:
        lasts = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.at_s:5.1f} s  {self.what} {self.whom}{lasts}"


def schedule(seed: int, lasts_s: float) -> list[Fault]:
    """The faults of a seed, in their order: servers now and then, processes about every second."""
    chance = random.Random(seed)

    def some(what: str, whom: str, shortest_s: float = 0.0, longest_s: float = 0.0) -> Fault:
        moment = chance.uniform(0.08, 0.9) * lasts_s
        return Fault(moment, what, whom, chance.uniform(shortest_s, longest_s))

    faults = [
        *(some("pause", "s3", 1, 6) for _ in range(4)),
        some("restart", "redis", 0.2, 2),
        some("restart", "redis", 0.2, 2),
        some("empty", "redis", 0.2, 2),
        some("restart", "postgres", 0.2, 2),
        some("crash", "postgres", 0.2, 2),
        some("cut", "postgres"),
        some("cut", "postgres"),
    ]
    moment, spared_until = 1.0, dict.fromkeys(PROCESSES, 0.0)
    while (moment := moment + chance.expovariate(1 / EVERY_S)) < lasts_s:
        what = chance.choice(("kill", "kill", "stop"))
        at_work = [name for name in PROCESSES if spared_until[name] < moment]
        if at_work:
            whom = chance.choice(at_work)
            faults.append(Fault(moment, what, whom, chance.uniform(0, 2)))
            spared_until[whom] = moment + SPARED_S
    return sorted(faults, key=lambda fault: fault.at_s)


@dataclass
class _Running:
    process: ForkServerProcess
    told: bool = False


@dataclass
class Cluster:
    """The processes, the servers, and a Label Studio that knows both web processes.

    Attributes:
        services: of the test's own process; its Redis and PostgreSQL are away at times, too.
        story: what happened, one line each, with the seconds since the beginning.
    """

    folder: Path
    redis: RedisOfCompose
    postgres: Postgres
    s3: S3
    database_url: str
    environment: Mapping[str, str]
    ports: Mapping[str, int]
    label_studio: CloudLabelStudio
    services: Services
    story: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    _running: dict[str, _Running] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)

    def note(self, line: str) -> None:
        """Add a line to the story."""
        self.story.append(f"{self.now_s:5.1f} s  {line}")

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def start(self, name: str) -> None:
        """Start a process, or a server that is away."""
        self._due.pop(name, None)
        if name == "s3":
            self.s3.resume()
        elif name == "redis":
            self.redis.start()
        elif name == "postgres":
            # It takes seconds, in which other things happen.
            self._due[name] = math.inf
            threading.Thread(target=self._start_postgres).start()
            return
        else:
            home = self.folder / name.replace(" ", "-")
            environment = {**self.environment, "MEDSAM3_DATA_DIR": str(home)}
            if name in self.ports:
                environment["MEDSAM3_PORT"] = str(self.ports[name])
            command = ("web",) if name in WEBS else WORKERS[name]
            log = self.folder / f"{home.name}.log"
            self._running[name] = _Running(fork(environment, log, _on_one_core, *command))
            return
        self.note(f"{name} is back")

    def _start_postgres(self) -> None:
        self.postgres.start()
        self._due.pop("postgres")
        self.note("postgres is back")

    def happen(self, fault: Fault) -> None:
        """Do to the cluster what a fault says; it is over by itself, see `tick`."""
        name = fault.whom
        if name in self._due:
            return  # it is away
        self.note(f"{fault.what} {name} for {fault.for_s:.1f} s")
        if fault.what == "cut":
            self.postgres.cut()
            return
        if name == "s3":
            self.s3.pause()
        elif name == "redis":
            self.redis.stop()
            if fault.what == "empty":
                self.redis.empty()
        elif name == "postgres":
            self.postgres.stop("immediate" if fault.what == "crash" else "fast")
        elif fault.what == "kill":
            kill(self._running.pop(name).process)
        else:
            running = self._running[name]
            if running.process.pid is not None and running.process.is_alive():
                os.kill(running.process.pid, SIGTERM)
            running.told = True
            self._due[name] = time.monotonic() + STOP_S
            return
        self._due[name] = time.monotonic() + fault.for_s

    def tick(self) -> None:
        """Start again what is due, and what ended."""
        for name, running in list(self._running.items()):
            if running.process.is_alive():
                late = running.told and time.monotonic() > self._due[name]
                assert not late, f"{name} did not end within {STOP_S:.0f} s of SIGTERM"
                continue
            code = running.process.exitcode
            self.note(f"{name} ended{' as told' if running.told else ''}, code {code}")
            del self._running[name]
            self._due[name] = time.monotonic() + AGAIN_S
        for name, moment in list(self._due.items()):
            if name not in self._running and time.monotonic() >= moment:
                self.start(name)

    def all_is_back(self) -> bool:
        """Whether every process runs and no server is away."""
        return not self._due and len(self._running) == len(PROCESSES)

    def close(self) -> None:
        """End all processes."""
        for running in self._running.values():
            kill(running.process)


def _on_one_core(*arguments: str) -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    medsam3(PAUSES, *arguments)


@contextmanager
def cluster(folder: Path, model: Path) -> Iterator[Cluster]:
    """The servers, and the processes, which are started by the block.

    Args:
        folder: with a short path, into which another user may look.
        model: the bundle that is served.
    """
    with ExitStack() as stack:
        postgres = Postgres(folder / "postgres")
        stack.callback(postgres.close)
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE medsam3")
        s3 = S3(folder / "s3.log", BUCKET, STORE)
        stack.callback(s3.close)
        redis = RedisOfCompose(folder / "redis")
        redis.start()
        stack.callback(redis.stop)
        ports = {name: free_port() for name in WEBS}
        webs = [f"http://127.0.0.1:{port}" for port in ports.values()]
        label_studio = stack.enter_context(CloudLabelStudio(s3.client, webs, SECRETS))
        user, password, secret = SECRETS
        environment = {
            **s3.environment,
            "STORAGE_URL": f"s3://{STORE}/masks",
            "DATABASE_URL": postgres.url.replace("/postgres?", "/medsam3?"),
            "REDIS_URL": redis.url,
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": "0" * 40,
            "MEDSAM3_ALLOWED_IMAGE_HOSTS": "127.0.0.1",
            "MEDSAM3_BASIC_AUTH_USER": user,
            "MEDSAM3_BASIC_AUTH_PASSWORD": password,
            "MEDSAM3_WEBHOOK_SECRET": secret,
            "MEDSAM3_API_TOKEN": "t" * 24,
            "MEDSAM3_MODEL": str(model),
            "MEDSAM3_EMBEDDING_MEMORY_MB": "16",
            "MEDSAM3_PREDICT_BUDGET_S": "4",
            "MEDSAM3_IMAGE_TIMEOUT_S": "3",
            "MEDSAM3_LEASE_S": "2",
            # A kill is never the task's fault here.
            "MEDSAM3_MAX_ATTEMPTS": "1000",
            "MEDSAM3_SYNC_MINUTES": "0.1",
            "MEDSAM3_TRAIN_STEPS": "2",
            "MEDSAM3_TRAIN_REPLAY": "false",
            # The test promotes a version itself.
            "MEDSAM3_AUTO_PROMOTE": "false",
        }
        settings = Settings(
            data_dir=folder / "test",
            database_url=environment["DATABASE_URL"],
            redis_url=redis.url,
            label_studio_url=label_studio.url,
            label_studio_api_key="0" * 40,
            model=str(model),
        )
        services = open_services(settings)
        stack.callback(services.close)
        made = Cluster(
            folder,
            redis,
            postgres,
            s3,
            environment["DATABASE_URL"],
            environment,
            ports,
            label_studio,
            services,
        )
        stack.callback(made.close)
        yield made


@contextmanager
def told(cluster: Cluster, seed: int, faults: list[Fault]) -> Iterator[None]:
    """Where the block fails, say the seed, the schedule and what happened."""
    try:
        yield
    except (AssertionError, pytest.fail.Exception) as error:
        planned = "\n".join(map(str, faults))
        error.add_note(f"seed {seed}; planned:\n{planned}\nhappened:\n" + "\n".join(cluster.story))
        with suppress(OSError):
            for log in sorted(cluster.folder.glob("*.log")):
                lines = log.read_text(errors="replace").splitlines()
                serious = [line for line in lines if " INFO " not in line and "HTTP/1" not in line]
                error.add_note(f"--- {log.name}\n" + "\n".join(serious)[-_MOST_LOG:])
        raise
