"""A cluster under seeded faults: nothing that was asked for is lost, doubled or stuck.

All parts are real but Label Studio: there its stand-in counts what arrives. The real one would take
longer to start than the faults last, and on SQLite would answer with errors of its own while so
many write; `tests/e2e` runs the same code against it.
"""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.exceptions import RedisError
from sqlalchemy import func, select
from sqlalchemy.exc import InterfaceError, OperationalError

from backend.corrections.tables import Annotation, ConceptMask, Revision
from backend.errors import QueueError
from backend.models.promotion import promote
from backend.predictions.preannotate import request_preannotation
from backend.predictions.preannotate_options import PreannotateOptions
from backend.processes.health import worker_signs
from backend.processes.queues import QueueName, waiting_row_ids
from backend.tables import (
    Delivery,
    Event,
    Promotion,
    PromotionKind,
    Suggestion,
    SuggestionState,
)
from backend.training.tables import RunState, TrainingRun
from backend.training.triggers import START_TRAINING
from tests.support.cluster import PROCESSES, STORE, WEBS, Cluster, cluster, schedule, told
from tests.support.processes import answers
from tests.support.training_stage import brush, disc_file, groups, publish, small_bundle
from tests.support.waiting import wait_until

FAULTS_S = 80.0
# Whatever does not move for so long after the last fault is stuck: longer than any lease here.
STUCK_S = 60.0
# Asked for by hand and in batches; by a wish of pre-annotation alone; annotated as well.
RETRIEVED, WISHED, ANNOTATED = 48, 16, 32
TOGETHER = 4
PROMPTS = 24
TICK_S = 0.05
_EXPLAINED = (SuggestionState.FAILED, SuggestionState.CANCELLED)
_AWAY = (OperationalError, InterfaceError, QueueError, RedisError)


@dataclass
class People:
    """Who uses Label Studio meanwhile, and what they still wait for."""

    cluster: Cluster
    chance: random.Random
    retrieved: list[int]
    wished: list[int]
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(16))
    asked: dict[int, Future[None]] = field(default_factory=dict)
    insisting: list[Future[None]] = field(default_factory=list)
    annotations: list[int] = field(default_factory=list)
    untold: list[tuple[str, Callable[[], object]]] = field(default_factory=list)
    version: str = ""
    presses: int = 0
    gave_up: bool = False

    def web(self) -> int:
        """One of the two web processes."""
        return self.chance.randrange(2)

    def retrieve(self, tasks: list[int]) -> None:
        """Ask for the tasks that nobody waits for and of which no row knows."""
        known = self.known()
        tasks = [id_ for id_ in tasks if id_ not in known and self._answered(id_)]
        if tasks:
            asking = self.pool.submit(self._retrieve, tasks, self.web())
            self.asked.update(dict.fromkeys(tasks, asking))

    def known(self) -> set[int | None]:
        """The tasks that a row of pre-annotation names."""
        with self.cluster.services.database.reading() as session:
            rows = select(Suggestion.task_id).where(Suggestion.interactive.is_(False))
            return set(session.scalars(rows))

    def _answered(self, task_id: int) -> bool:
        return task_id not in self.asked or self.asked[task_id].done()

    def _retrieve(self, tasks: list[int], web: int) -> None:
        with suppress(httpx2.TransportError):
            self.cluster.label_studio.retrieve(tasks, web)

    def prompt(self, task_id: int) -> None:
        """Draw a box, and again until there is an answer."""
        self.insisting.append(self.pool.submit(self._prompt, task_id, self.web()))

    def _prompt(self, task_id: int, web: int) -> None:
        while not self.gave_up:
            with suppress(httpx2.TransportError):
                if self.cluster.label_studio.prompt(task_id, web):
                    return
            web = 1 - web
            time.sleep(0.3)

    def annotate(self, task_id: int, seed: int) -> None:
        """Submit an annotation; its webhook is sent once, at times twice, and never repeated."""
        studio = self.cluster.label_studio
        with studio._lock:
            regions = [brush(f"r{task_id}", disc_file(seed)[1])]
            self.annotations.append(studio.annotate(task_id, regions))
            event = studio.events.pop()
        for _ in range(1 if self.chance.random() < 0.8 else 2):
            self.pool.submit(studio.tell, event, self.web())

    def start_training(self) -> None:
        """Press the button, and again until it does not say that something went wrong."""
        self.insisting.append(self.pool.submit(self._start_training, self.web()))

    def _start_training(self, web: int) -> None:
        project = {"id": self.cluster.label_studio.project_id}
        while not self.gave_up:
            self.presses += 1
            if self.cluster.label_studio.tell({"action": START_TRAINING, "project": project}, web):
                return
            web = 1 - web
            time.sleep(0.3)

    def wish(self, **options: Any) -> None:
        """Have the project pre-annotated, as the console does."""
        project_id = self.cluster.label_studio.project_id
        chosen = PreannotateOptions(**options)
        self.insist(
            f"pre-annotation, {options}",
            partial(request_preannotation, self.cluster.services, project_id, chosen),
        )

    def promote(self) -> None:
        """Put the new version into service."""
        services, project_id = self.cluster.services, self.cluster.label_studio.project_id
        manual = PromotionKind.MANUAL
        self.insist("promotion", partial(promote, services, project_id, self.version, kind=manual))

    def insist(self, what: str, ask: Callable[[], object]) -> None:
        """Do it now, or when the servers that it needs are back."""
        self.untold.append((what, ask))
        self.ask_again()

    def ask_again(self) -> None:
        """Whatever was refused is asked for again."""
        waiting, self.untold = self.untold, []
        for what, ask in waiting:
            try:
                ask()
                self.cluster.note(f"asked for: {what}")
            except _AWAY as error:
                self.cluster.note(f"refused ({type(error).__name__}): {what}")
                self.untold.append((what, ask))


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[tuple[Cluster, People]]:
    """A cluster that runs, and a project with a second version that may be promoted."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="m3-") as short:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        folder = Path(short)
        with cluster(folder, small_bundle(folder / "tiny")) as started:
            studio, sides = started.label_studio, [groups("train"), groups("val")]
            tasks = [
                studio.add_cloud_task(disc_file(seed)[0], group=next(sides[seed % 3 == 0]))
                for seed in range(RETRIEVED + WISHED)
            ]
            people = People(started, random.Random(0), tasks[:RETRIEVED], tasks[RETRIEVED:])
            people.version = published(started)
            yield started, people
            people.gave_up = True
            people.pool.shutdown()


def published(started: Cluster) -> str:
    """A version that passed the gate, in the store that all machines share."""
    services = started.services
    project_id = started.label_studio.project_id
    version = publish(services, services.settings.model, project_id, passed=True, scale=1.01)
    file = services.settings.data_dir / "detectors" / f"{version}.safetensors"
    key = f"masks/detectors/{file.name}"
    started.s3.client.upload_file(str(file), STORE, key)
    return version


def errands(people: People) -> list[tuple[float, Callable[[], None]]]:
    """What people do, and when: spread over all of the faults."""
    chance = people.chance

    def at(share: float) -> float:
        return share * FAULTS_S

    planned: list[tuple[float, Callable[[], None]]] = []
    for first in range(0, RETRIEVED, TOGETHER):
        batch = people.retrieved[first : first + TOGETHER]
        planned.append((at(chance.uniform(0.02, 0.9)), partial(people.retrieve, batch)))
    for seed in range(PROMPTS):
        task_id = people.retrieved[seed]
        planned.append((at(chance.uniform(0.02, 0.95)), partial(people.prompt, task_id)))
    for seed in range(ANNOTATED):
        early = seed < ANNOTATED // 2
        moment = chance.uniform(0.02, 0.4) if early else chance.uniform(0.4, 0.95)
        planned.append((at(moment), partial(people.annotate, people.retrieved[seed], seed)))
    planned.append((at(0.25), partial(people.wish, unlabelled=True)))
    planned.append((at(0.45), people.start_training))
    planned.append((at(0.6), people.promote))
    planned.append((at(0.8), people.wish))
    return sorted(planned, key=lambda errand: errand[0])


def unsettled(people: People) -> dict[str, int]:
    """What is still under way, or came to a wrong end, by kind; empty when all is well."""
    started = people.cluster
    waiting: Counter[str] = Counter()
    with started.services.database.reading() as session:
        columns = (Suggestion.interactive, Suggestion.state, Suggestion.delivery, Suggestion.error)
        for interactive, state, delivery, error in session.execute(select(*columns)):
            if interactive:
                # The annotator was told, or asked again.
                ended = state == SuggestionState.DONE or (error and state in _EXPLAINED)
                well = ended and delivery in (Delivery.DELIVERED, Delivery.NONE)
            else:
                well = (state, delivery) == (SuggestionState.DONE, Delivery.DELIVERED)
            if not well:
                kind = "prompt" if interactive else "prediction"
                waiting[f"{kind} {state}, {delivery}: {error}"] += 1
        for state, error in session.execute(select(Event.state, Event.error)):
            waiting[f"event {state}: {error}"] += state != "done"
        for run in session.scalars(select(TrainingRun)):
            kind = f"training {run.state}, {run.stage}, step {run.step}: {run.error}"
            waiting[kind] += run.state != RunState.DONE
        newest = session.scalar(select(Promotion).order_by(Promotion.id.desc()).limit(1))
        waiting["no promotion"] += newest is None
        if newest is not None:
            waiting[f"roll-out: {newest.error}"] += newest.rolled_out_at is None
        kept = dict(session.execute(select(Annotation.id, Annotation.state)).all())
    for id_ in people.annotations:
        waiting[f"correction {kept.get(id_)}"] += kept.get(id_) != "valid"
    known = people.known()
    predicted = started.label_studio.predicted()
    for id_ in people.retrieved + people.wished:
        waiting["task without a row"] += id_ not in known
        waiting["task without a prediction"] += not any(task == id_ for task, _ in predicted)
    for id_ in people.wished:
        waiting["task not predicted after the promotion"] += (id_, people.version) not in predicted
    waiting["prompt or button without an answer"] += sum(not one.done() for one in people.insisting)
    waiting["asked in vain"] += len(people.untold)
    for name in QueueName:
        waiting[f"jobs on {name}"] += len(waiting_row_ids(started.services.redis, name))
    return {kind: number for kind, number in waiting.items() if number}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_is_lost_doubled_or_stuck(crowd: tuple[Cluster, People], seed: int) -> None:
    started, people = crowd
    people.chance.seed(seed)
    faults = schedule(seed, FAULTS_S)
    with told(started, seed, faults):
        begin(started)
        suffer(started, people, [(fault.at_s, partial(started.happen, fault)) for fault in faults])
        settle(started, people)
        judge(started, people)


def begin(started: Cluster) -> None:
    """Start all processes; the faults begin when all of them are at work."""
    for name in PROCESSES:
        started.start(name)
    for port in started.ports.values():
        wait_until(lambda port=port: answers(f"http://127.0.0.1:{port}"))
    wait_until(lambda: len(worker_signs(started.services.redis)) == len(PROCESSES) - len(WEBS))
    started.began = time.monotonic()


def suffer(
    started: Cluster, people: People, faults: list[tuple[float, Callable[[], None]]]
) -> None:
    """Let happen what happens, and let people ask meanwhile."""
    planned = sorted([*faults, *errands(people)], key=lambda one: one[0])
    while planned or started.now_s < FAULTS_S:
        started.tick()
        while planned and planned[0][0] <= started.now_s:
            _, happen = planned.pop(0)
            try:
                happen()
            except _AWAY:
                # Nobody can look into the database now: a moment later.
                planned.append((started.now_s + 1, happen))
                planned.sort(key=lambda one: one[0])
        people.ask_again()
        time.sleep(TICK_S)


def settle(started: Cluster, people: People) -> None:
    """Wait until nothing is under way, as long as something moves."""
    left: dict[str, int] = {"nobody looked": 1}
    seen, moved_at = left, time.monotonic()
    while left:
        started.tick()
        people.ask_again()
        with suppress(*_AWAY):
            for first in range(0, RETRIEVED, TOGETHER):
                people.retrieve(people.retrieved[first : first + TOGETHER])
            left = unsettled(people) if started.all_is_back() else {"not back": 1}
        if left != seen:
            seen, moved_at = left, time.monotonic()
        assert time.monotonic() - moved_at < STUCK_S, f"stuck: {left}"
        time.sleep(0.3)
    started.note("all is settled")


def judge(started: Cluster, people: People) -> None:
    """Nothing is there twice, and every mask is."""
    doubled = {one: count for one, count in started.label_studio.predicted().items() if count > 1}
    assert not doubled
    with started.services.database.reading() as session:
        revisions = Counter(session.scalars(select(Revision.annotation_id)))
        runs = session.scalar(select(func.count()).select_from(TrainingRun))
        masks = set(session.scalars(select(ConceptMask.mask_hash)))
    assert revisions == Counter(people.annotations)
    assert runs is not None
    assert 1 <= runs <= people.presses
    listed = started.s3.client.list_objects_v2(Bucket=STORE, Prefix="masks/")["Contents"]
    assert masks <= {Path(item["Key"]).stem for item in listed}
