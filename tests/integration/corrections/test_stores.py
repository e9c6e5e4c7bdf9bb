"""The same life of corrections in SQLite with a folder, and in PostgreSQL with S3."""

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import load_file
from sqlalchemy import insert, select

from backend.corrections import privacy, store
from backend.corrections.datasets import open_version
from backend.corrections.mask_store import MaskStore
from backend.corrections.privacy import Removed, finish_removals, forget, retain
from backend.corrections.statistics import compute
from backend.corrections.submissions import read_annotation
from backend.corrections.tables import DatasetVersion, Image, Removal, Revision
from backend.errors import MaskError, StorageUnavailableError
from backend.models.encoding import embedding_cache, embedding_places
from backend.services import open_services
from backend.settings import Settings
from backend.tables import Event, Suggestion, now
from backend.volumes.tables import Stack
from medsam3_model import MedSAM3
from medsam3_model.embeddings.embedding_cache import EmbeddingPlaces
from medsam3_model.embeddings.shared_embeddings import SharedEmbeddings
from tests.support.corrections_stage import CONFIG, Stage, act, brush, drawn, image_file, stage_at
from tests.support.embeddings import SmallestModel, entries
from tests.support.s3 import s3_bucket
from tests.support.stand_in_label_studio import StandInLabelStudio


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """A bucket of an S3 server of this run's own."""
    with s3_bucket("masks") as url:
        yield url


@pytest.fixture(params=["sqlite and folder", "postgresql and s3"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    with StandInLabelStudio(CONFIG) as label_studio:
        settings = Settings(
            data_dir=tmp_path, label_studio_url=label_studio.url, label_studio_api_key="0" * 40
        )
        if request.param == "postgresql and s3":
            address = request.getfixturevalue("postgres_database")
            storage = f"{request.getfixturevalue('s3_url')}/{random.getrandbits(40):x}"
            settings = settings.model_copy(update={"database_url": address, "storage_url": storage})
        services = open_services(settings)
        with stage_at(services, label_studio) as opened:
            yield opened
        services.close()


def annotated(stage: Stage, seed: int, **data: object) -> tuple[int, int]:
    """A task with a suggestion of two regions, one kept, one rejected."""
    task = stage.label_studio.add_task(image_file(seed), **data)
    stage.suggest(task, [brush(f"k{task}", drawn(seed)), brush(f"r{task}", ~drawn(seed))])
    return task, stage.label_studio.annotate(task, [brush(f"k{task}", drawn(seed))])


def keep_embeddings(stage: Stage, *image_hashes: str) -> None:
    """Have images' embeddings on disk, as if they had been predicted."""
    cache, model = embedding_cache(stage.services.settings), SmallestModel()
    for image_hash in image_hashes:
        cache.get(cast(MedSAM3, model), image_hash, model.encode_image)


def kept_embeddings(stage: Stage) -> list[str]:
    """The images whose embeddings are on disk."""
    paths = entries(stage.services.settings.embedding_dir)
    notes = (load_file(path)["notes"] for path in paths)
    return sorted(json.loads(note.tobytes())["image_key"] for note in notes)


def test_life_of_a_correction(stage: Stage) -> None:
    task, id_ = annotated(stage, 1)
    stage.hear_all()
    assert [one["outcome"] for one in stage.one()["revision"]["outcomes"]] == [
        "accepted",
        "rejected",
    ]
    assert np.array_equal(stage.mask_of("Tumor"), drawn(1))
    stage.label_studio.update(id_, result=[brush("n", drawn(2), label="Cyst")])
    stage.hear_all()
    assert np.array_equal(stage.mask_of("Cyst"), drawn(2))
    stage.label_studio.delete_task(task)
    stage.sync()
    assert stage.state() == []


def test_faulty_webhooks_end_in_the_same_state(stage: Stage) -> None:
    dice = random.Random(5)
    heard = []
    for _ in range(40):
        act(stage.label_studio, dice, [stage])
        heard += [one for one in stage.label_studio.events if dice.random() > 0.3] * 2
        stage.label_studio.events.clear()
    dice.shuffle(heard)
    stage.work(*(stage.hear(one) for one in heard))
    stage.sync()
    alive = {(one["annotation"], one["state"] != "quarantined") for one in stage.state()}
    assert {id_ for id_, _ in alive} == set(stage.label_studio.annotations)
    before = stage.bytes_of_state()
    assert stage.sync(from_start=True).repaired == 0
    assert stage.bytes_of_state() == before


def test_workers_at_the_same_time_double_nothing(stage: Stage) -> None:
    ids = [annotated(stage, seed)[1] for seed in range(6)]
    heard = [stage.hear(one) for one in stage.label_studio.events for _ in range(3)]
    problems: list[BaseException] = []

    def work(events: list[str]) -> None:
        try:
            stage.work(*events)
        except BaseException as error:  # noqa: BLE001 handed to the test
            problems.append(error)

    threads = [threading.Thread(target=work, args=(heard[start::3],)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert [one["annotation"] for one in stage.state()] == ids
    with stage.services.database.reading() as session:
        assert len(session.scalars(select(Revision)).all()) == len(ids)


def test_a_mask_is_stored_once(stage: Stage) -> None:
    for seed in range(3):
        task = stage.label_studio.add_task(image_file(seed))
        stage.label_studio.annotate(task, [brush("a", drawn(7))])
    stage.hear_all()
    assert len(stage.mask_names()) == 1


def test_missing_mask_says_so(stage: Stage) -> None:
    with pytest.raises(MaskError, match="STORAGE_URL"):
        stage.masks.get("0" * 32)


def test_statistics_count_by_everything(stage: Stage) -> None:
    annotated(stage, 1)
    _, second = annotated(stage, 2)
    stage.label_studio.update(second, completed_by=2, lead_time=40.5)
    skipped = stage.label_studio.add_task(image_file(3))
    stage.label_studio.annotate(skipped, [], was_cancelled=True)
    stage.hear_all()
    with stage.services.database.reading() as session:
        found = compute(session, stage.label_studio.project_id)
        assert compute(session, 999)["overall"]["annotations"] == 0
    assert found["annotations"] == {"valid": 2, "skipped": 1, "quarantined": 0}
    overall = found["overall"]
    assert (overall["accepted"], overall["rejected"], overall["added"]) == (2, 2, 0)
    assert (overall["acceptance_rate"], overall["dice"]) == (0.5, 1.0)
    assert (overall["seconds"], overall["total_seconds"]) == (26.5, 53.0)
    assert found["by_annotator"]["2"]["seconds"] == 40.5
    assert list(found["by_model_version"]) == ["tiny-1"]
    assert list(found["by_week"]) == ["2026-W10"]
    assert found["by_concept"]["Tumor"]["annotations"] == 2


def test_forget_removes_a_task_for_good(stage: Stage) -> None:
    task, _ = annotated(stage, 1)
    other, _ = annotated(stage, 2)
    twin = stage.label_studio.add_task(image_file(9))
    stage.label_studio.annotate(twin, [brush("t", drawn(1)), brush("own", drawn(5))])
    stage.hear_all()
    project = stage.label_studio.project_id
    with stage.services.database.session() as session:
        open_version(session, project, "before")
        session.add_all(
            Stack(
                project_id=project,
                task_id=one,
                source="scans/patient.nii",
                source_sha256="0" * 64,
                geometry="{}",
            )
            for one in (task, other)
        )
    shared = stage.state()[0]["revision"]["concepts"][0]["mask_hash"]
    removed = forget(
        stage.services.database,
        stage.masks,
        embedding_places(stage.services.settings),
        project_id=project,
        task_id=task,
    )
    assert (removed.annotations, removed.revisions, removed.suggestions) == (1, 1, 1)
    assert (removed.images, removed.dataset_entries) == (1, 1)
    assert (removed.events, removed.stacks) == (1, 1)
    # The other task drew the same region, so its file is still needed.
    assert removed.masks == 0
    assert stage.masks.has(shared)
    stage.sync(from_start=True)
    assert [one["task"] for one in stage.state()] == [other, twin]
    with stage.services.database.reading() as session:
        (version,) = session.scalars(select(DatasetVersion))
        assert version.forgotten == 1
        assert session.scalars(select(Suggestion.task_id)).all() == [other]
        assert session.scalars(select(Stack.task_id)).all() == [other]
        heard = [ids for (ids,) in session.execute(select(Event.task_ids))]
        assert [task] not in heard
        assert [other] in heard
    removed = forget(
        stage.services.database,
        stage.masks,
        embedding_places(stage.services.settings),
        project_id=project,
        task_id=twin,
    )
    assert removed.masks == 3  # two regions and their union
    assert not stage.masks.has(shared)


def test_embeddings_in_a_store_that_is_away_go_later(stage: Stage, tmp_path: Path) -> None:
    task, _ = annotated(stage, 1)
    stage.hear_all()
    database, project = stage.services.database, stage.label_studio.project_id
    with database.reading() as session:
        image_hash = session.scalars(select(Image.hash)).one()
    shared = SharedEmbeddings(str(tmp_path / "shared"))
    shared.write("entry", f"{image_hash}-window-0-0-8-8", b"1234")
    shared.flush()
    own = embedding_places(stage.services.settings).folder
    away = EmbeddingPlaces(own, f"zip://{tmp_path}/missing")
    with pytest.raises(StorageUnavailableError, match="MEDSAM3_EMBEDDING_STORE_URL"):
        forget(database, stage.masks, away, project_id=project, task_id=task)
    removed = Removed()
    finish_removals(database, stage.masks, EmbeddingPlaces(own, str(tmp_path / "shared")), removed)
    assert (removed.embeddings, removed.embedding_bytes) == (1, 4)


def test_forgotten_while_it_is_read_leaves_no_file(stage: Stage) -> None:
    """The rows are refused, and the mask files that were written before them must go again."""
    task, id_ = annotated(stage, 1)
    project = stage.label_studio.project_id
    ingest = stage.ingest
    with ingest.database.session() as session:
        number = store.observe(session)
    record = read_annotation(ingest.source.annotation(id_))
    draft = ingest.draft(record, CONFIG, stage.label_studio.tasks[task]["data"])
    embeddings = embedding_places(stage.services.settings)
    forget(stage.services.database, stage.masks, embeddings, project_id=project, task_id=task)
    assert ingest.save(number, draft) is None
    assert stage.state() == []
    assert stage.mask_names() == []


def test_forget_waits_for_whoever_stores(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    annotated(stage, 1)
    save_revision, storing = store.save_revision, threading.Event()

    def slowly(*arguments: Any) -> str | None:
        changed = save_revision(*arguments)
        # Written, but not committed: nobody else can see it yet.
        storing.set()
        time.sleep(1)
        return changed

    monkeypatch.setattr(store, "save_revision", slowly)
    with ThreadPoolExecutor() as pool:
        heard = pool.submit(stage.hear_all)
        assert storing.wait(30)
        forget(
            stage.services.database,
            stage.masks,
            embedding_places(stage.services.settings),
            project_id=stage.label_studio.project_id,
        )
        heard.result()
    assert stage.state() == []
    assert stage.mask_names() == []


def test_forgetting_a_project_leaves_no_file(stage: Stage) -> None:
    for seed in range(3):
        annotated(stage, seed)
    stage.hear_all()
    (image,) = stage.state()[0]["revision"]["images"]
    keep_embeddings(stage, image["hash"], "another")
    assert stage.mask_names()
    removed = forget(
        stage.services.database,
        stage.masks,
        embedding_places(stage.services.settings),
        project_id=stage.label_studio.project_id,
    )
    assert (removed.annotations, removed.masks, removed.embeddings) == (3, 3, 1)
    assert stage.mask_names() == []
    assert kept_embeddings(stage) == ["another"]
    stage.hear_all()
    stage.sync()
    assert stage.state() == []


def test_removal_cut_short_is_finished_by_the_next(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotated(stage, 1)
    stage.hear_all()
    settings = stage.services.settings
    project = stage.label_studio.project_id
    with monkeypatch.context() as patch:
        patch.setattr(MaskStore, "remove", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            forget(
                stage.services.database, stage.masks, embedding_places(settings), project_id=project
            )
    assert len(stage.mask_names()) == 1
    retain(stage.services.database, stage.masks, embedding_places(settings), days=1000)
    assert stage.mask_names() == []
    with stage.services.database.reading() as session:
        assert session.scalars(select(Removal)).all() == []


def test_whoever_stores_gets_in_while_files_are_removed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(8):
        annotated(stage, seed)
    stage.hear_all()
    database, settings = stage.services.database, stage.services.settings
    remove = MaskStore.remove
    gone: list[str] = []
    gone_when_stored: list[int] = []

    def write() -> None:
        with database.session() as session:
            store.lock_files(session, shared=True)
            session.add(Event(action="TEST", task_ids=[], annotation_ids=[]))
        gone_when_stored.append(len(gone))

    writer = threading.Thread(target=write)

    def removing(masks: MaskStore, name: str) -> int:
        if not gone:
            writer.start()
        gone.append(name)
        return remove(masks, name)

    monkeypatch.setattr(MaskStore, "remove", removing)
    monkeypatch.setattr(privacy, "HOLD_S", 0.0)
    project = stage.label_studio.project_id
    removed = forget(database, stage.masks, embedding_places(settings), project_id=project)
    writer.join()
    assert removed.masks == len(gone) == 8
    assert stage.mask_names() == []
    assert gone_when_stored[0] < 8


def test_more_values_than_a_statement_holds(stage: Stage) -> None:
    count = 70_000
    _, id_ = annotated(stage, 1)
    stage.hear_all()
    database, settings = stage.services.database, stage.services.settings
    project = stage.label_studio.project_id
    page = {"item_index": 0, "reference": "x", "size_bytes": 1, "task_group": "x"}
    with database.session() as session:
        figures = compute(session, None, range(count))
        assert figures["overall"]["annotations"] == 1
        event = Event(action="TASKS_DELETED", task_ids=list(range(count)), annotation_ids=[])
        session.add(event)
        # As many images of one project, each with an embedding that may be there.
        session.execute(
            insert(Image),
            [
                {**page, "task_id": 1000 + i, "project_id": project, "hash": f"{i:064x}"}
                for i in range(count)
            ],
        )
    stage.label_studio.delete(id_)
    stage.work(event.id)
    assert stage.state() == []
    removed = forget(database, stage.masks, embedding_places(settings), project_id=project)
    assert removed.images == count + 1
    with database.reading() as session:
        assert session.scalars(select(Removal)).all() == []


def test_retention_removes_what_was_replaced_and_deleted(stage: Stage) -> None:
    _, id_ = annotated(stage, 1)
    _, kept = annotated(stage, 2)
    stage.hear_all()
    with stage.services.database.session() as session:
        open_version(session, stage.label_studio.project_id, "named")
    stage.label_studio.update(id_, result=[brush("n", drawn(8))])
    stage.hear_all()
    stage.label_studio.update(id_, result=[brush("n", drawn(9))])
    stage.label_studio.delete(kept)
    stage.hear_all()
    settings = stage.services.settings
    late = retain(stage.services.database, stage.masks, embedding_places(settings), days=0)
    # Version two of the first annotation; version one and the deleted one are in "named".
    assert (late.revisions, late.masks, late.annotations) == (1, 1, 0)
    assert np.array_equal(stage.mask_of("Tumor"), drawn(9))


def test_retention_removes_predictions_that_nobody_got(stage: Stage) -> None:
    old, young = "2020-01-01T00:00:00Z", now().isoformat()
    kept = {
        stage.suggest(1, [], now=young, delivery="none"),
        stage.suggest(1, [], now=old, delivery="delivered", image_hash="shared"),
        stage.suggest(1, [], now=old, delivery="push"),
    }
    stage.suggest(1, [], now=old, delivery="none", image_hash="shared")
    stage.suggest(1, [], now=old, delivery="none", state="failed", image_hash="alone")
    database, settings = stage.services.database, stage.services.settings
    keep_embeddings(stage, "shared", "alone")
    removed = retain(database, stage.masks, embedding_places(settings), days=30)
    assert (removed.suggestions, removed.embeddings) == (2, 1)
    with database.reading() as session:
        assert set(session.scalars(select(Suggestion.id))) == kept
    assert kept_embeddings(stage) == ["shared"]


def test_state_is_plain_json(stage: Stage) -> None:
    annotated(stage, 1, patient="P1")
    stage.hear_all()
    assert json.loads(json.dumps(stage.state())) == stage.state()
