"""After a promotion a project is predicted again in an order in which the cache is of use."""

import logging
from datetime import timedelta
from typing import Any, cast

import pytest
from sqlalchemy import select, update

from backend.label_studio.client import LabelStudio
from backend.predictions.requests import request_pushes
from backend.processes.queues import QueueName, queue
from backend.processes.redis_server import RedisServer
from backend.services import Services, open_services
from backend.settings import Settings
from backend.tables import Suggestion, SuggestionState, now
from backend.training.roll_out import predict_again
from medsam3_model import MedSAM3
from medsam3_model.embeddings.embedding_cache import EmbeddingCache
from tests.support.embeddings import SmallestModel, entries
from tests.support.stand_in_label_studio import StandInLabelStudio

IMAGES, KEPT = 3000, 1000
CONFIG = '<View><Image name="i" value="$image"/></View>'


def work(services: Services, cache: EmbeddingCache) -> None:
    """Stands for a gpu worker: takes the queue's jobs in their order, and looks at each image."""
    model = SmallestModel()
    jobs = queue(services.redis, QueueName.GPU)
    ids = [id_ for job in jobs.jobs for id_ in cast(list[list[str]], job.args)[0]]
    jobs.empty()
    began = now()
    with services.database.session() as session:
        rows = session.execute(select(Suggestion.id, Suggestion.task_id))
        tasks = {row.id: row.task_id for row in rows}
        finished = []
        for number, id_ in enumerate(ids):
            cache.get(cast(MedSAM3, model), f"{tasks[id_]:05}", model.encode_image)
            at = began + timedelta(milliseconds=number)
            finished.append({"id": id_, "state": SuggestionState.DONE, "finished_at": at})
        session.execute(update(Suggestion), finished)


def test_a_cache_that_holds_a_third_of_the_images_brings_all_that_it_holds(
    redis_server: RedisServer, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backend")
    with StandInLabelStudio(CONFIG) as label_studio:
        services = open_services(
            settings.model_copy(update={"label_studio_url": label_studio.url, "chunk_tasks": 100})
        )
        for _ in range(IMAGES):
            label_studio.add_task(b"")
        first = min(label_studio.tasks)
        folder, model = settings.embedding_dir, SmallestModel()
        EmbeddingCache(folder, memory_bytes=0, disk_bytes=2**20).get(
            cast(MedSAM3, model), f"{first:05}", model.encode_image
        )
        entry_bytes = entries(folder)[0].stat().st_size
        cache = EmbeddingCache(folder, memory_bytes=0, disk_bytes=KEPT * entry_bytes)
        tasks: list[dict[str, Any]] = list(label_studio.tasks.values())
        list(request_pushes(services, tasks, 7, CONFIG))
        work(services, cache)
        assert len(entries(folder)) == KEPT
        cache.take_counts()
        with services.database.session() as session:
            session.execute(update(Suggestion).values(active_key=None))
        with LabelStudio.from_settings(services.settings) as client:
            assert predict_again(services, client, 7, "after") == IMAGES
        work(services, cache)
        services.close()
    # The latest image of all is in memory.
    assert cache.take_counts() == {
        "embedding_memory_hits": 1,
        "embedding_disk_hits": KEPT - 1,
        "embedding_misses": IMAGES - KEPT,
    }
    assert f"{IMAGES} of {IMAGES} tasks are predicted again, the latest first" in caplog.text
