"""A stand-in Label Studio, a store that listens to it, and regions to draw."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from backend.corrections.events import receive
from backend.corrections.ingest import Ingest, ingest_event, open_ingest
from backend.corrections.mask_store import MaskStore
from backend.corrections.revisions import current_state
from backend.corrections.sync import sync_project
from backend.corrections.sync_report import SyncReport
from backend.services import Services
from backend.tables import LabelConfigText, Suggestion, SuggestionState, new_id
from tests.support import regions
from tests.support.images import noise_file
from tests.support.stand_in_label_studio import StandInLabelStudio

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Tumor"/><Label value="Cyst"/></BrushLabels>
  <PolygonLabels name="poly" toName="image"><Label value="Tumor"/></PolygonLabels>
  <RectangleLabels name="box" toName="image"><Label value="Tumor"/><Label value="Node"/>
  </RectangleLabels>
  <EllipseLabels name="ellipse" toName="image"><Label value="Cyst"/></EllipseLabels>
</View>
"""
HEIGHT, WIDTH = 48, 64


def image_file(seed: int = 0) -> bytes:
    """A PNG of noise, of the size that regions have by default."""
    return noise_file(seed, HEIGHT, WIDTH)


def drawn(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A ragged blob, bool (H, W)."""
    noise = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    centre = noise.uniform(0.3, 0.7, 2) * (height, width)
    radius = noise.uniform(0.15, 0.28) * height
    ragged = noise.normal(0, radius / 6, (height, width))
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < (radius + ragged) ** 2


def brush(id_: str, mask: np.ndarray, label: str = "Tumor", **fields: object) -> dict[str, Any]:
    """A region of the config's brush."""
    return regions.brush(id_, mask, label, **fields)


def region(
    id_: str,
    control: str,
    kind: str,
    value: Mapping[str, Any],
    height: int = HEIGHT,
    width: int = WIDTH,
    **fields: object,
) -> dict[str, Any]:
    """A region on an image of the default size."""
    return regions.region(id_, control, kind, value, height, width, **fields)


@dataclass(frozen=True)
class Stage:
    """A store beside a stand-in Label Studio."""

    label_studio: StandInLabelStudio
    services: Services
    ingest: Ingest

    def hear(self, event: Mapping[str, Any]) -> str:
        """One webhook arrives."""
        return receive(self.services, event)

    def work(self, *event_ids: str) -> None:
        """The ingest worker's turn."""
        for event_id in event_ids:
            ingest_event(self.ingest, event_id)

    def hear_all(self) -> None:
        """All webhooks arrive, once and in order, and are dealt with."""
        events, self.label_studio.events[:] = list(self.label_studio.events), []
        self.work(*(self.hear(event) for event in events))

    def sync(self, **options: Any) -> SyncReport:
        return sync_project(self.ingest, self.label_studio.project_id, **options)

    def state(self) -> list[dict[str, Any]]:
        with self.services.database.reading() as session:
            return list(current_state(session))

    def one(self) -> dict[str, Any]:
        (only,) = self.state()
        return only

    def bytes_of_state(self) -> bytes:
        """The state with the files of all masks that it names."""
        state = self.state()
        names = {
            mask["mask_hash"]
            for one in state
            if one["revision"]
            for kind in ("concepts", "regions")
            for mask in one["revision"][kind]
        }
        files = b"".join(name.encode() + self.masks.read(name) for name in sorted(names))
        return json.dumps(state, sort_keys=True).encode() + files

    @property
    def masks(self) -> MaskStore:
        return self.ingest.masks

    def mask_names(self) -> list[str]:
        """The hashes of all mask files, in a folder or an object store."""
        files, root = fsspec.core.url_to_fs(self.services.settings.storage)
        files.invalidate_cache()
        paths = files.find(root) if files.exists(root) else []
        return [Path(path).stem for path in paths if path.endswith(".png")]

    def mask_of(self, label: str, item_index: int = 0) -> np.ndarray:
        (found,) = [
            one["mask_hash"]
            for one in self.one()["revision"]["concepts"]
            if (one["label"], one["item_index"]) == (label, item_index)
        ]
        return self.masks.get(found)

    def suggest(
        self,
        task_id: int,
        result: Sequence[Mapping[str, Any]],
        *,
        now: str | None = None,
        **fields: Any,
    ) -> str:
        """A finished suggestion, as the GPU worker leaves it."""
        id_ = new_id()
        config_hash = "c" * 64
        moment = datetime.fromisoformat(now or self.label_studio.now()).astimezone(UTC)
        with self.services.database.session() as session:
            if session.get(LabelConfigText, config_hash) is None:
                session.add(LabelConfigText(hash=config_hash, xml=CONFIG))
                session.flush()
            session.add(
                Suggestion(
                    **{
                        "id": id_,
                        "project_id": self.label_studio.project_id,
                        "task_id": task_id,
                        "config_hash": config_hash,
                        "task_data": {},
                        "model_version": "tiny-1",
                        "state": SuggestionState.DONE,
                        "delivery": "delivered",
                        "result": [dict(one) for one in result],
                        "finished_at": moment,
                        **fields,
                    }
                )
            )
        return id_


@contextmanager
def stage_at(services: Services, label_studio: StandInLabelStudio) -> Iterator[Stage]:
    """A stage whose services point at the stand-in."""
    with open_ingest(services) as ingest:
        yield Stage(label_studio, services, ingest)


def act(label_studio: StandInLabelStudio, chance: random.Random, stages: list[Stage]) -> None:
    """One thing that people do in Label Studio."""
    tasks, annotations = list(label_studio.tasks), list(label_studio.annotations)
    choice = chance.random()
    if not tasks or choice < 0.2:
        task = label_studio.add_task(
            image_file(chance.randrange(3)), group=f"p{chance.randrange(4)}"
        )
        suggestion = [brush(f"s{task}", drawn(chance.randrange(50)))]
        id_, now = new_id(), label_studio.now()
        for stage in stages:
            stage.suggest(task, suggestion, id=id_, now=now)
    elif choice < 0.5 or not annotations:
        task = chance.choice(tasks)
        kept = [brush(f"s{task}", drawn(chance.randrange(50)))] if chance.random() < 0.5 else []
        fresh = brush(f"n{chance.randrange(10**6)}", drawn(chance.randrange(50)), label="Cyst")
        skipped = chance.random() < 0.2
        label_studio.annotate(
            task,
            [] if skipped else [*kept, fresh],
            was_cancelled=skipped,
            completed_by=chance.randrange(3),
        )
    elif choice < 0.75:
        label_studio.update(
            chance.choice(annotations),
            result=[brush(f"u{chance.randrange(10**6)}", drawn(chance.randrange(50)))],
            ground_truth=chance.random() < 0.3,
        )
    elif choice < 0.87:
        label_studio.delete(chance.choice(annotations))
    elif choice < 0.94:
        label_studio.delete_task(chance.choice(tasks))
    else:
        labels = chance.choice([CONFIG, CONFIG.replace("Cyst", "Zyste")])
        label_studio.set_config(labels)
