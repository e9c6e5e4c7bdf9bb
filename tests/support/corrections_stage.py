"""A stand-in Label Studio, a store that listens to it, and regions to draw."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from backend.corrections.event_ingest import ingest_event, open_ingest
from backend.corrections.events import receive
from backend.corrections.ingest import Ingest
from backend.corrections.mask_store import MaskStore
from backend.corrections.revisions import current_state
from backend.corrections.sync import Report, reconcile_project
from backend.labeling import brush_rle
from backend.services import Services
from backend.tables import LabelConfigText, Suggestion, SuggestionState
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


def image_file(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    buffer = io.BytesIO()
    grey = np.random.default_rng(seed).integers(0, 255, (height, width), np.uint8)
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()


def drawn(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A ragged blob, bool (H, W)."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    centre = random.uniform(0.3, 0.7, 2) * (height, width)
    radius = random.uniform(0.15, 0.28) * height
    ragged = random.normal(0, radius / 6, (height, width))
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < (radius + ragged) ** 2


def brush(id_: str, mask: np.ndarray, label: str = "Tumor", **fields: object) -> dict[str, Any]:
    return region(
        id_,
        "brush",
        "brushlabels",
        {"format": "rle", "rle": brush_rle.encode(mask), "brushlabels": [label]},
        *mask.shape,
        **fields,
    )


def region(
    id_: str,
    control: str,
    kind: str,
    value: Mapping[str, Any],
    height: int = HEIGHT,
    width: int = WIDTH,
    **fields: object,
) -> dict[str, Any]:
    return {
        "id": id_,
        "from_name": control,
        "to_name": "image",
        "type": kind,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": dict(value),
        **fields,
    }


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

    def sync(self, **options: Any) -> Report:
        return reconcile_project(self.ingest, self.label_studio.project_id, **options)

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
        from datetime import UTC, datetime

        from backend.tables import new_id

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
