"""Rows of many corrections, with a few masks between them: for pages that show or count them."""

from datetime import timedelta
from typing import Any

import numpy as np
from sqlalchemy import insert

from backend.corrections.cropped_mask import CroppedMask
from backend.corrections.mask_store import MaskStore
from backend.corrections.tables import Annotation, ConceptMask, RegionOutcome, Revision
from backend.database import insert_or_ignore
from backend.services import Services
from backend.tables import LabelConfigText, Project, Suggestion, config_hash, now

CONFIG = "<View/>"
LABELS = ("Tumor", "Cyst")
KINDS = ("accepted", "edited", "edited", "rejected", "added")
SIZE = 64
# A quarter of a year; each task has two annotations, by two of four annotators.
DAYS = 90
REASON = "its image is gone"


def add_corrections(services: Services, count: int, project_id: int = 7) -> None:
    """Annotations `1` to `count` of a project: every fiftieth in quarantine, every ninth gold."""
    random = np.random.default_rng(0)
    columns = np.arange(SIZE)
    masks = [
        CroppedMask.of(np.broadcast_to((columns >= 2 * at) & (columns < 2 * at + 20), (SIZE, SIZE)))
        for at in range(12)
    ]
    names = MaskStore(services.settings.storage).put_all(masks)
    rows: dict[type[Any], list[dict[str, Any]]] = {
        table: [] for table in (Annotation, Revision, ConceptMask, RegionOutcome)
    }
    for id_ in range(1, count + 1):
        task, moment = id_ // 2 + 1, now() - timedelta(days=DAYS * (1 - id_ / count))
        broken = id_ % 50 == 49
        of_task = {"project_id": project_id, "task_id": task}
        rows[Annotation].append(
            {
                "id": id_,
                **of_task,
                "state": "quarantined" if broken else "valid",
                "reason": REASON if broken else None,
                "revision_id": id_,
                "was_cancelled": False,
                "observed": id_,
            }
        )
        version = f"tiny-p{project_id}-{3 * id_ // (count + 1)}"
        rows[Revision].append(
            {
                "id": id_,
                "annotation_id": id_,
                "updated_at": moment,
                "created_at": moment,
                "content_hash": f"{id_:032x}",
                **of_task,
                "annotator": 1 + id_ % 4,
                "lead_time": float(random.uniform(5, 90)),
                "was_cancelled": False,
                "ground_truth": id_ % 9 == 0,
                "from_prediction": False,
                "model_version": version,
                "task_group": str(task),
                "images": [],
            }
        )
        for ordinal, label in enumerate(LABELS):
            number = int(random.integers(len(masks)))
            if random.random() < 0.9:
                rows[ConceptMask].append(
                    {
                        "revision_id": id_,
                        "item_index": 0,
                        "label": label,
                        "height": SIZE,
                        "width": SIZE,
                        "area": masks[number].area,
                        "mask_hash": names[number],
                    }
                )
            kind = KINDS[int(random.integers(len(KINDS)))]
            compared = kind in ("accepted", "edited")
            rows[RegionOutcome].append(
                {
                    "revision_id": id_,
                    "ordinal": ordinal,
                    "outcome": kind,
                    "relation": "one" if compared else "none",
                    "item_index": 0,
                    "label": label,
                    "label_changed": False,
                    "interactive": False,
                    "model_version": version,
                    "region_id": None if kind == "added" else f"{id_}-{ordinal}",
                    "final_ids": [],
                    "dice": float(random.uniform(0.5, 1)) if compared else None,
                    "added_path_length": float(random.uniform(0, 300)) if compared else None,
                }
            )
    with services.database.session() as session:
        insert_or_ignore(session, Project, {"id": project_id, "title": "Polyps"})
        for table, values in rows.items():
            session.execute(insert(table), values)


def add_predictions(services: Services, count: int, project_id: int = 7) -> None:
    """Finished predictions of tasks `1` to `count`, of which every hundredth failed."""
    hash_ = config_hash(CONFIG)
    values = [
        {
            "id": f"{task:032x}",
            "project_id": project_id,
            "task_id": task,
            "config_hash": hash_,
            "task_data": {},
            "model_version": "tiny-1",
            "state": "failed" if task % 100 == 0 else "done",
            "delivery": "none" if task % 100 == 0 else "delivered",
            "error": REASON if task % 100 == 0 else None,
            "result": None if task % 100 == 0 else [],
            "interactive": False,
            "attempts": 1,
            "created_at": now() - timedelta(seconds=count - task),
            "finished_at": now(),
        }
        for task in range(1, count + 1)
    ]
    with services.database.session() as session:
        insert_or_ignore(session, LabelConfigText, {"hash": hash_, "xml": CONFIG})
        session.execute(insert(Suggestion), values)
