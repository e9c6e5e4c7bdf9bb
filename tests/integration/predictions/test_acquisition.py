"""The order of diversity: computed while others write."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import select

from backend.corrections.mask_store import MaskStore
from backend.corrections.privacy import forget
from backend.models.encoding import embedding_places
from backend.predictions import acquisition
from backend.services import Services
from backend.tables import (
    ImageVector,
    LabelConfigText,
    Suggestion,
    SuggestionState,
    TaskRank,
)

PROJECT = 1


def test_others_write_while_tasks_are_ordered(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    with services.database.session() as session:
        session.add(LabelConfigText(hash="c", xml="<View/>"))
        session.flush()
        for task_id in range(1, 6):
            vector = np.full(4, task_id**2, np.float16).tobytes()
            session.add(ImageVector(image_hash=f"{task_id}", encoder_hash="e", vector=vector))
            session.add(
                Suggestion(
                    project_id=PROJECT,
                    task_id=task_id,
                    config_hash="c",
                    task_data={},
                    model_version="tiny-1",
                    state=SuggestionState.DONE,
                    image_hash=f"{task_id}",
                )
            )
    ordered = acquisition.k_center_order

    def order(points: NDArray[np.float32], covered: NDArray[np.float32] | None = None) -> list[int]:
        # It would wait for its own transaction, were one open.
        masks = MaskStore(services.settings.storage)
        places = embedding_places(services.settings)
        forget(services.database, masks, places, project_id=PROJECT, task_id=3)
        return ordered(points, covered)

    monkeypatch.setattr(acquisition, "k_center_order", order)
    assert acquisition.rank_by_diversity(services, PROJECT, {2, 3, 4, 5}) == 3
    with services.database.reading() as session:
        ranks = {row.task_id: row.rank for row in session.scalars(select(TaskRank))}
    # The farthest from the labelled first; what was forgotten meanwhile does not come back.
    assert sorted(ranks) == [2, 4, 5]
    assert min(ranks, key=ranks.__getitem__) == 5
