"""Tasks wait for servers that are away, each with its reason; an annotator is told at once."""

from datetime import timedelta

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from backend.errors import (
    ImageUnavailableError,
    LabelStudioUnavailableError,
    ModelVersionError,
    StorageUnavailableError,
)
from backend.label_studio.server import free_port
from backend.models.detectors import DetectorStore
from backend.predictions import inference, jobs
from backend.predictions.inference import TaskPrediction
from backend.predictions.lanes import Lanes
from backend.predictions.requests import request_pushes
from backend.processes.counters import StageTimes
from backend.services import Services
from backend.tables import Delivery, Suggestion, SuggestionState, now
from tests.support.s3 import s3_at

AWAY = [
    ImageUnavailableError("The image s3://bucket/a.png was not read: its host is away."),
    LabelStudioUnavailableError("Label Studio does not answer."),
    StorageUnavailableError("The object store does not answer."),
    OperationalError("SELECT 'secret'", {}, Exception("terminating connection")),
    RedisConnectionError("Connection refused"),
]


class ScriptedInference:
    """Stands for a worker's model: raises the errors in their order, then answers nothing found."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.times = StageTimes()
        self.lanes = Lanes(1)

    def predict(self, row: Suggestion, label_config: str) -> TaskPrediction:
        if self.errors:
            raise self.errors.pop(0)
        return TaskPrediction([], 0.5, "hash", 0.1)

    def publish_counts(self) -> None:
        """Nothing is counted."""


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedInference:
    stand_in = ScriptedInference()
    monkeypatch.setattr(inference, "current_inference", lambda: stand_in)
    monkeypatch.setattr(jobs, "RETRY_LATER_S", 0)
    return stand_in


def asked_for(services: Services, **fields: object) -> str:
    """A task that waits for a worker."""
    ((id_,),) = request_pushes(services, [{"id": 1, "data": {}}], 7, "<View/>")
    if fields:
        services.database.update(Suggestion, Suggestion.id == id_, **fields)
    return id_


def row_of(services: Services, id_: str) -> Suggestion:
    with services.database.reading() as session:
        return session.scalars(select(Suggestion).where(Suggestion.id == id_)).one()


@pytest.mark.parametrize("error", AWAY, ids=lambda error: type(error).__name__)
def test_a_task_waits_for_a_server_that_is_away(
    services: Services, scripted: ScriptedInference, error: Exception
) -> None:
    id_ = asked_for(services)
    scripted.errors = [error, error]
    for _ in range(2):
        jobs.predict_chunk([id_])
        row = row_of(services, id_)
        assert (row.state, row.attempts) == (SuggestionState.QUEUED, 0), "no try is lost"
        assert (row.error or "").startswith("waits: ")
        assert "secret" not in (row.error or "")
        assert (row.waits_since is not None) == isinstance(error, ImageUnavailableError)
    jobs.predict_chunk([id_])
    row = row_of(services, id_)
    assert (row.state, row.delivery) == (SuggestionState.DONE, Delivery.PUSH)
    assert (row.error, row.waits_since) == (None, None)


def test_the_host_of_an_image_is_not_waited_for_without_end(
    services: Services, scripted: ScriptedInference
) -> None:
    long_ago = now() - timedelta(seconds=ImageUnavailableError.PATIENCE_S + 1)
    id_ = asked_for(services, waits_since=long_ago)
    scripted.errors = [AWAY[0]]
    jobs.predict_chunk([id_])
    row = row_of(services, id_)
    assert (row.state, row.error) == (SuggestionState.FAILED, str(AWAY[0]))


@pytest.mark.parametrize("error", AWAY, ids=lambda error: type(error).__name__)
def test_an_annotator_is_told_at_once(
    services: Services, scripted: ScriptedInference, error: Exception
) -> None:
    id_ = asked_for(services, interactive=True, delivery=Delivery.REPLY)
    scripted.errors = [error]
    jobs.predict_chunk([id_])
    row = row_of(services, id_)
    assert (row.state, row.delivery) == (SuggestionState.FAILED, Delivery.NONE)
    assert row.error
    assert "secret" not in row.error


def test_the_neighbours_of_a_task_that_waits_go_on(
    services: Services, scripted: ScriptedInference
) -> None:
    tasks = [{"id": number, "data": {}} for number in (1, 2, 3)]
    (ids,) = request_pushes(services, tasks, 7, "<View/>")
    scripted.errors = [AWAY[0]]
    jobs.predict_chunk(ids)
    states = [row_of(services, id_).state for id_ in ids]
    assert states == [SuggestionState.QUEUED, SuggestionState.DONE, SuggestionState.DONE]


def test_a_detector_is_waited_for_where_the_object_store_is_away(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DetectorStore(services.settings.model_copy(update={"storage_url": "s3://away"}))
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    with (
        s3_at(f"http://127.0.0.1:{free_port()}"),
        pytest.raises(StorageUnavailableError, match="STORAGE_URL"),
    ):
        store.path("tiny-p7-1")
    there = services.settings.data_dir / "elsewhere"
    there.mkdir()
    store = DetectorStore(services.settings.model_copy(update={"storage_url": str(there)}))
    with pytest.raises(ModelVersionError, match="missing"):
        store.path("tiny-p7-1")
