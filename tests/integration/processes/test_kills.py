"""Every process is killed again and again: no prediction and no correction is lost or doubled."""

import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select

from backend.corrections.tables import Annotation, Revision
from backend.label_studio.server import free_port
from backend.processes.redis_server import RedisServer
from backend.services import WEBHOOK_SECRET_HEADER, Services, open_services
from backend.settings import Settings
from backend.tables import Delivery, Event, Suggestion
from tests.support import lasting_label_studio
from tests.support.forked_processes import fork, kill, medsam3
from tests.support.lasting_label_studio import LastingLabelStudio, read_journal

TASKS = 64
TOGETHER = 4
# How often each process is killed: 40 times in all.
KILLS = {"web": 9, "gpu": 6, "ingest": 9, "redis": 8, "label studio": 8}
PAUSE_S = 0.15
STUCK_S = 150
# The product's pauses are made for days; here an afternoon passes in a minute.
PAUSES = {
    "backend.predictions.requests.LOOK_AFTER_S": 10,
    "backend.predictions.requests.REPLY_GRACE_S": 10,
    "backend.predictions.recover.EVENT_SETTLING_S": 5,
    "backend.predictions.pushing.RETRY_LATER_S": 5,
}


@dataclass
class Machine:
    """All processes of one campaign, each of which may be killed and is then started again."""

    settings: Settings
    services: Services
    environment: Mapping[str, str]
    label_studio_port: int
    redis: RedisServer
    redis_process: subprocess.Popen[bytes] | None = None
    running: dict[str, ForkServerProcess] = field(default_factory=dict)
    client: httpx2.Client = field(default_factory=httpx2.Client)

    @property
    def journal(self) -> Path:
        return self.settings.data_dir / "predictions.jsonl"

    @property
    def backend_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def start(self, name: str) -> None:
        if name == "redis":
            self.redis_process = self.redis.start()
            return
        log = self.settings.data_dir / f"{name}.log"
        if name == "label studio":
            secrets = self.services.credentials
            command: tuple[Any, ...] = (
                lasting_label_studio.serve,
                self.journal,
                TASKS,
                self.label_studio_port,
                self.backend_url,
                (secrets.user, secrets.password),
            )
        elif name == "web":
            command = (medsam3, PAUSES, "web")
        else:
            command = (medsam3, PAUSES, "worker", "--queue", name)
        self.running[name] = fork(self.environment, log, *command)

    def kill(self, name: str) -> None:
        """SIGKILL to the process and to those that it started."""
        if name == "redis":
            assert self.redis_process is not None
            self.redis_process.kill()
            self.redis_process.wait()
            return
        kill(self.running.pop(name))

    def revive(self) -> None:
        """Start again what ended by itself (without Redis a worker does), as a supervisor would."""
        for name, process in list(self.running.items()):
            if not process.is_alive():
                self.start(name)

    def waiting_tasks(self, tasks: list[int]) -> list[int]:
        """Those of the tasks for which no request has arrived yet."""
        with self.services.database.reading() as session:
            known = set(session.scalars(select(Suggestion.task_id)))
        return [id_ for id_ in tasks if id_ not in known]

    def ask(self, tasks: list[int]) -> None:
        """An annotator's "Retrieve predictions"; nobody listens while Label Studio is down."""
        url = f"http://127.0.0.1:{self.label_studio_port}/retrieve"
        with suppress(httpx2.TransportError):
            self.client.post(url, json={"tasks": tasks})

    def tell(self, event: Mapping[str, Any]) -> bool:
        """A webhook; whether the backend said that it has it."""
        try:
            answer = self.client.post(
                f"{self.backend_url}/webhook", json=event, headers=self._secret()
            )
        except httpx2.TransportError:
            return False
        return answer.is_success

    def _secret(self) -> dict[str, str]:
        return {WEBHOOK_SECRET_HEADER: self.services.credentials.webhook_secret}

    def unsettled(self) -> dict[str, int]:
        """What is still under way, by kind; empty when all has come to rest."""
        with self.services.database.reading() as session:
            deliveries = Counter(session.execute(select(Suggestion.state, Suggestion.delivery)))
            events = Counter(session.scalars(select(Event.state)))
        under_way = {
            f"predictions {state}, {delivery}": number
            for (state, delivery), number in deliveries.items()
            if delivery != Delivery.DELIVERED
        } | {
            "not arrived": TASKS - len({one["task"] for one in read_journal(self.journal)}),
            "events": sum(events.values()) - events["done"],
        }
        return {kind: number for kind, number in under_way.items() if number}


def task_ids() -> list[int]:
    return list(range(101, 101 + TASKS))


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Redis, web, both workers and Label Studio's stand-in on a database of their own."""
    with tempfile.TemporaryDirectory(prefix="m3-") as folder:
        port, label_studio_port = free_port(), free_port()
        environment = {
            "MEDSAM3_DATA_DIR": folder,
            "MEDSAM3_PORT": str(port),
            "LABEL_STUDIO_URL": f"http://127.0.0.1:{label_studio_port}",
            "LABEL_STUDIO_API_KEY": "0" * 40,
            "MEDSAM3_PREDICT_BUDGET_S": "4",
            "MEDSAM3_LEASE_S": "2",
            # A kill is never the task's fault here.
            "MEDSAM3_MAX_ATTEMPTS": "1000",
            "MEDSAM3_SYNC_MINUTES": "0.1",
        }
        if request.param == "postgresql":
            environment["DATABASE_URL"] = request.getfixturevalue("postgres_database")
        settings = Settings(
            data_dir=Path(folder), port=port, database_url=environment.get("DATABASE_URL")
        )
        services = open_services(settings)
        redis = RedisServer(settings.redis_socket)
        machine = Machine(settings, services, environment, label_studio_port, redis)
        for name in KILLS:
            machine.start(name)
        yield machine
        for name in KILLS:
            with suppress(KeyError):
                machine.kill(name)
        redis.stop()
        machine.client.close()
        services.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("machine", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kills_at_random_moments_lose_nothing_and_double_nothing(
    machine: Machine, seed: int
) -> None:
    chance = random.Random(seed)
    victims = [name for name, times in KILLS.items() for _ in range(times)]
    chance.shuffle(victims)
    events = _events()
    chance.shuffle(events)
    for index, victim in enumerate(victims):
        # Half of all at once, then a few more before every kill: each finds something under way.
        started = TASKS // 2 + TOGETHER * index
        for tasks in _batches(machine.waiting_tasks(task_ids()[:started])):
            machine.ask(tasks)
        sent, events = events[: 2 * TOGETHER], events[2 * TOGETHER :]
        events = [event for event in sent if not machine.tell(event)] + events
        time.sleep(chance.expovariate(1 / PAUSE_S))
        machine.kill(victim)
        machine.start(victim)
        machine.revive()

    # However slow the machine is: stuck is what does not move for longer than any lease.
    seen, moved_at = machine.unsettled(), time.monotonic()
    while events or machine.unsettled():
        machine.revive()
        events = [event for event in events if not machine.tell(event)]
        for tasks in _batches(machine.waiting_tasks(task_ids())):
            machine.ask(tasks)
        if (now := machine.unsettled()) != seen:
            seen, moved_at = now, time.monotonic()
        assert time.monotonic() - moved_at < STUCK_S, f"stuck: {seen}"
        time.sleep(1)
    stored = Counter(prediction["task"] for prediction in read_journal(machine.journal))
    assert stored == Counter(task_ids())
    with machine.services.database.reading() as session:
        annotations = Counter(session.scalars(select(Annotation.state)))
        revisions = session.scalar(select(func.count()).select_from(Revision))
    assert annotations == {"valid": TASKS}
    assert revisions == TASKS


def _events() -> list[Mapping[str, Any]]:
    """The webhooks of all annotations."""
    with LastingLabelStudio(Path("/nonexistent"), TASKS) as stand_in:
        return stand_in.events


def _batches(tasks: list[int]) -> list[list[int]]:
    return [tasks[start : start + TOGETHER] for start in range(0, len(tasks), TOGETHER)]
