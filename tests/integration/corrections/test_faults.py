"""Webhooks that come twice, late or never, and workers that die at any point."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import event, func, select

from backend.corrections import events
from backend.corrections.ingest import ingest_events
from backend.corrections.mask_store import MaskStore
from backend.corrections.sync import SAVE_EVERY
from backend.corrections.tables import ConceptMask, RegionMask, RegionOutcome, Revision
from backend.errors import StorageUnavailableError
from backend.label_studio.server import free_port
from backend.services import Services, open_services
from backend.settings import Settings
from backend.tables import Event
from tests.support.corrections_stage import (
    CONFIG,
    Stage,
    act,
    brush,
    drawn,
    image_file,
    stage_at,
)
from tests.support.s3 import s3_at
from tests.support.stand_in_label_studio import StandInLabelStudio


@pytest.fixture
def label_studio() -> Iterator[StandInLabelStudio]:
    with StandInLabelStudio(CONFIG) as running:
        yield running


@pytest.fixture
def make_stage(
    label_studio: StandInLabelStudio, tmp_path: Path
) -> Iterator[Callable[[str], Stage]]:
    """Stores beside one Label Studio; Redis is away, which costs them nothing here."""
    with ExitStack() as stack:

        def make(name: str) -> Stage:
            services = open_services(settings_at(tmp_path / name, label_studio))
            stack.callback(services.close)
            return stack.enter_context(stage_at(services, label_studio))

        yield make


def settings_at(folder: Path, label_studio: StandInLabelStudio) -> Settings:
    return Settings(
        data_dir=folder, label_studio_url=label_studio.url, label_studio_api_key="0" * 40
    )


@pytest.mark.parametrize("seed", range(6))
def test_doubled_late_and_dropped_webhooks_end_in_the_same_state(
    make_stage: Callable[[str], Stage], label_studio: StandInLabelStudio, seed: int
) -> None:
    dice = random.Random(seed)
    ideal, faulty = make_stage("ideal"), make_stage("faulty")
    on_the_way: list[dict[str, Any]] = []
    for step in range(45):
        act(label_studio, dice, [ideal, faulty])
        sent, label_studio.events[:] = list(label_studio.events), []
        for one in sent:
            ideal.work(ideal.hear(one))
            if dice.random() >= 0.3:
                on_the_way += [one, one]
        if step % 9 == 8:
            dice.shuffle(on_the_way)
            arriving = [on_the_way.pop() for _ in range(len(on_the_way) // 2)]
            faulty.work(*(faulty.hear(one) for one in arriving))
    dice.shuffle(on_the_way)
    faulty.work(*(faulty.hear(one) for one in on_the_way))
    faulty.sync()
    assert ideal.state()
    assert faulty.bytes_of_state() == ideal.bytes_of_state()
    again = faulty.sync()
    assert again.repaired == 0


def test_without_any_webhook_one_sync_is_enough(
    make_stage: Callable[[str], Stage], label_studio: StandInLabelStudio
) -> None:
    dice = random.Random(99)
    ideal, deaf = make_stage("ideal"), make_stage("deaf")
    for _ in range(40):
        act(label_studio, dice, [ideal, deaf])
        ideal.hear_all()
    assert deaf.state() == []
    report = deaf.sync()
    assert deaf.bytes_of_state() == ideal.bytes_of_state()
    assert report.revisions == len(ideal.state())


def test_sync_of_an_unchanged_project_asks_little(
    make_stage: Callable[[str], Stage], label_studio: StandInLabelStudio
) -> None:
    stage = make_stage("one")
    for seed in range(30):
        label_studio.annotate(
            label_studio.add_task(image_file(seed % 3)), [brush("a", drawn(seed))]
        )
    label_studio.wait(minutes=5)
    label_studio.add_task(image_file())
    assert stage.sync().revisions == 30
    label_studio.requests.clear()
    report = stage.sync()
    assert (report.repaired, report.read) == (0, 0)
    assert len(label_studio.requests) <= 6


def test_a_sync_that_is_cut_short_goes_on_where_it_was(
    make_stage: Callable[[str], Stage], label_studio: StandInLabelStudio
) -> None:
    stage = make_stage("one")
    tasks = [label_studio.add_task(image_file()) for _ in range(2 * SAVE_EVERY)]
    for task in tasks:
        label_studio.annotate(task, [])
    label_studio.wait(minutes=5)
    label_studio.add_task(image_file())

    def die(read: int) -> None:
        if read > SAVE_EVERY + 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.sync(progress=die)
    # A task that was read already changes before the sync goes on.
    label_studio.annotate(tasks[0], [brush("a", drawn(1))])
    label_studio.wait(minutes=5)
    label_studio.add_task(image_file())
    assert stage.sync().changed_tasks == SAVE_EVERY
    assert stage.sync().changed_tasks == 1
    assert len(stage.state()) == 2 * SAVE_EVERY + 1
    assert stage.sync(from_start=True).changed_tasks == 2 * SAVE_EVERY


def test_sync_finds_one_deleted_task_among_many(
    make_stage: Callable[[str], Stage], label_studio: StandInLabelStudio
) -> None:
    stage = make_stage("one")
    tasks = [label_studio.add_task(image_file()) for _ in range(260)]
    for task in tasks:
        label_studio.annotate(task, [], was_cancelled=task % 3 == 0)
    stage.sync()
    label_studio.wait(minutes=5)
    label_studio.add_task(image_file())
    label_studio.delete_task(tasks[200])
    label_studio.requests.clear()
    report = stage.sync()
    assert report.deleted == 1
    assert len(stage.state()) == 259
    assert report.read <= 100


def test_a_late_read_does_not_undo_a_later_one(
    make_stage: Callable[[str], Stage], label_studio: StandInLabelStudio
) -> None:
    """Two workers read the same annotation; the one that read first writes last."""
    from backend.corrections import store
    from backend.corrections.submissions import read_annotation

    stage = make_stage("one")
    ingest = stage.ingest
    id_ = label_studio.annotate(label_studio.add_task(image_file()), [brush("a", drawn(1))])
    with ingest.database.session() as session:
        early = store.observe(session)
        store.see_config(session, early, label_studio.project_id, CONFIG)
    record = read_annotation(ingest.source.annotation(id_))
    data = label_studio.tasks[record.task]["data"]
    label_studio.update(id_, result=[brush("a", drawn(2))])
    stage.hear_all()
    before = stage.bytes_of_state()
    # The version was submitted, so it is kept; it is not the current one.
    assert ingest.save(early, ingest.draft(record, CONFIG, data)) == "revision"
    assert stage.bytes_of_state() == before
    label_studio.delete(id_)
    stage.hear_all()
    assert ingest.save(early, ingest.draft(record, CONFIG, data)) is None
    assert stage.state() == []


class Ticking:
    """Kills this process with SIGKILL at the n-th of all its steps."""

    def __init__(self, fatal: int) -> None:
        self._left = fatal
        self._counting = threading.Lock()  # mask files are written by several threads

    def tick(self) -> None:
        with self._counting:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, services: Services) -> None:
        """A step is a statement, a commit, a request, a file written or put in its place."""
        for name in ("before_cursor_execute", "commit"):
            event.listen(services.database.engine, name, lambda *_, **__: self.tick())
        for owner, name in (
            (httpx2.Client, "send"),
            (MaskStore, "_write"),
            (os, "replace"),
            (os, "fdatasync"),
        ):
            self._before_and_after(owner, name)

    def _before_and_after(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def stepped(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            result = original(*args, **kwargs)
            self.tick()
            return result

        setattr(owner, name, stepped)


def run_and_die(settings: Settings, event_id: str, fatal: int) -> bool:
    """An ingest worker in a process of its own; returns whether it was killed on its way."""
    process = os.fork()
    if process == 0:
        services = open_services(settings)
        Ticking(fatal).watch(services)
        ingest_events(services, [event_id])
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_worker_killed_at_every_step_loses_and_doubles_nothing(
    make_stage: Callable[[str], Stage], label_studio: StandInLabelStudio, tmp_path: Path
) -> None:
    stage = make_stage("one")
    settings = settings_at(tmp_path / "one", label_studio)
    killed = 0
    while True:
        fatal = killed + 1
        task = label_studio.add_task(image_file(fatal % 3))
        stage.suggest(task, [brush(f"s{task}", drawn(fatal))])
        id_ = label_studio.annotate(
            task, [brush(f"s{task}", drawn(fatal)), brush("m", drawn(fatal + 1), label="Cyst")]
        )
        event_id = stage.hear(label_studio.events[-1])
        stage.services.database.dispose()
        if not run_and_die(settings, event_id, fatal):
            break
        killed += 1
        stage.work(event_id)
        stage.work(event_id)
        with stage.services.database.reading() as session:
            counts = [
                session.scalar(
                    select(func.count())
                    .select_from(table)
                    .join(Revision, Revision.id == table.revision_id)
                    .where(Revision.annotation_id == id_)
                )
                for table in (RegionMask, ConceptMask, RegionOutcome)
            ]
            revisions = session.scalar(
                select(func.count()).select_from(Revision).where(Revision.annotation_id == id_)
            )
        assert (revisions, counts) == (1, [2, 2, 2]), f"killed at step {fatal}"
    assert killed > 40
    assert stage.sync().repaired == 0
    assert [one["state"] for one in stage.state()] == ["valid"] * (killed + 1)
    for one in stage.state():
        for mask in one["revision"]["concepts"]:
            assert stage.masks.get(mask["mask_hash"]).any()


def test_an_event_that_kills_its_worker_is_given_up_and_seen(
    make_stage: Callable[[str], Stage], label_studio: StandInLabelStudio, tmp_path: Path
) -> None:
    stage = make_stage("one")
    settings = settings_at(tmp_path / "one", label_studio)
    label_studio.annotate(label_studio.add_task(image_file()), [brush("a", drawn(1))])
    event_id = stage.hear(label_studio.events[-1])
    stage.services.database.dispose()
    for _ in range(settings.max_attempts):
        assert run_and_die(settings, event_id, 20)
    stage.work(event_id)
    assert stage.one()["state"] == "quarantined"
    assert "died 3 times" in stage.one()["reason"]
    # Whatever it was may be over by the next sync.
    stage.sync()
    assert stage.one()["state"] == "valid"


def test_an_event_that_cannot_even_be_quarantined_is_over(stage: Stage, task: int) -> None:
    stage.label_studio.annotate(task, [])
    poison = Event(action="ANNOTATION_CREATED", task_ids=[2**70], annotation_ids=[2**70])
    with stage.services.database.session() as session:
        session.add(poison)
    for _ in range(stage.services.settings.max_attempts):
        with pytest.raises(Exception, match=r"large|range"):
            ingest_events(stage.services, [poison.id])
    ingest_events(stage.services, [poison.id])
    with stage.services.database.reading() as session:
        assert session.get_one(Event, poison.id).state == events.FAILED
    stage.hear_all()
    assert [one["state"] for one in stage.state()] == ["valid"]


def test_a_store_of_masks_that_is_away_is_waited_for(
    label_studio: StandInLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as no attempt, however often it is met, and no mask is said to be missing."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    port = free_port()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    settings = settings_at(tmp_path, label_studio).model_copy(
        update={"storage_url": "s3://waited-for/masks"}
    )
    with (
        s3_at(f"http://127.0.0.1:{port}"),
        closing(open_services(settings)) as services,
        stage_at(services, label_studio) as stage,
    ):
        label_studio.annotate(label_studio.add_task(image_file()), [brush("a", drawn(1))])
        event_id = stage.hear(label_studio.events[-1])
        for _ in range(settings.max_attempts + 1):
            with pytest.raises(StorageUnavailableError, match="STORAGE_URL"):
                stage.work(event_id)
        with pytest.raises(StorageUnavailableError):
            stage.sync()
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        S3FileSystem().mkdir("waited-for")
        stage.work(event_id)
        assert stage.one()["state"] == "valid"
        server.stop()
        (concept,) = stage.one()["revision"]["concepts"]
        with pytest.raises(StorageUnavailableError):
            stage.masks.get(concept["mask_hash"])
