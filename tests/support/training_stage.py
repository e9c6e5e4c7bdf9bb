"""A project whose annotator marks bright discs, and a small untrained model that can learn them."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backend.corrections.ingest import Hint, open_ingest
from backend.models.detectors import DetectorStore
from backend.services import Services, open_services, use_services
from backend.settings import Settings
from backend.tables import (
    Delivery,
    GateVerdict,
    LabelConfigText,
    ModelVersion,
    Project,
    Suggestion,
    SuggestionState,
    config_hash,
)
from medsam3_model import MedSAM3
from medsam3_model.checkpoints.bundle import write_bundle
from medsam3_model.checkpoints.detectors import detector_state, load_detector, save_detector
from medsam3_model.checkpoints.tokenizer import build_tokenizer
from medsam3_model.data.samples import split_of_group
from medsam3_model.pretraining.phrases import all_phrases
from tests.support import discs, regions
from tests.support.images import png
from tests.support.stand_in_label_studio import StandInLabelStudio

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image">
    <Label value="Disc" prompt="optic disc"/>
    <Label value="Cup" prompt="optic cup"/>
  </BrushLabels>
</View>
"""


def small_bundle(folder: Path) -> Path:
    """A bundle of tests.support.discs.small_network, for a backend to serve."""
    network, tokenizer = discs.small_network(), build_tokenizer(all_phrases())
    write_bundle(folder, "tiny", network.config, network.state_dict(), tokenizer)
    return folder


def disc_file(seed: int) -> tuple[bytes, NDArray[np.bool_]]:
    """A PNG with one bright disc on noise, and the disc."""
    image, inside = discs.disc(seed)
    return png(image), inside


def brush(id_: str, mask: NDArray[np.bool_], label: str = "Disc") -> dict[str, Any]:
    """A region that an annotator drew with the config's brush."""
    return regions.brush(id_, mask, label, control="mask", origin="manual")


def groups(split: str) -> Iterator[str]:
    """Names of patients who belong to one side of the split."""
    for number in itertools.count():
        if split_of_group(f"patient{number}") == split:
            yield f"patient{number}"


def publish(
    services: Services, checkpoint: str, project_id: int, *, passed: bool, scale: float
) -> str:
    """Register a version of a project, with the base's weights scaled; returns its name."""
    loaded = MedSAM3.from_pretrained(checkpoint)
    state = {key: value * scale for key, value in detector_state(loaded.model).items()}
    return publish_weights(services, checkpoint, project_id, state, passed=passed)


def publish_weights(
    services: Services,
    checkpoint: str,
    project_id: int,
    state: Mapping[str, torch.Tensor],
    *,
    passed: bool,
) -> str:
    """Register a version of a project with these weights of the detector; returns its name."""
    loaded = MedSAM3.from_pretrained(checkpoint)
    name, draft = f"tiny-p{project_id}", services.settings.data_dir / "draft"
    made = save_detector(draft, state, encoder_hash=loaded.base_hash, base=checkpoint, name=name)
    version = loaded.with_detector(load_detector(draft)).version
    assert made.detector_hash
    DetectorStore(services.settings).publish(draft, version)
    with services.database.session() as session:
        session.add(
            ModelVersion(
                version=version,
                checkpoint=checkpoint,
                detector=version,
                project_id=project_id,
                run_id=f"run of {version}"[:32],
            )
        )
        session.add(
            GateVerdict(
                run_id=f"run of {version}"[:32],
                candidate=version,
                incumbent="before",
                passed=passed,
                reasons=["made up"],
                figures={},
            )
        )
    return version


@contextmanager
def training_stage(data_dir: Path, model: Path, **settings: Any) -> "Iterator[TrainingStage]":
    """A stage that serves `model`, without replay; the process's services are its own meanwhile."""
    with StandInLabelStudio(CONFIG) as label_studio:
        services = open_services(
            Settings(
                data_dir=data_dir,
                label_studio_url=label_studio.url,
                label_studio_api_key="0" * 40,
                model=str(model),
                train_replay=False,
                **settings,
            )
        )
        use_services(services)
        yield TrainingStage(services, label_studio)
        use_services(None)
        services.close()


class TrainingStage:
    """Annotates tasks of the stand-in server and takes the annotations in.

    `draw` makes an image file and the mask of its disc from a seed.
    """

    def __init__(
        self,
        services: Services,
        label_studio: StandInLabelStudio,
        draw: Callable[[int], tuple[bytes, NDArray[np.bool_]]] = disc_file,
    ) -> None:
        self.services, self.label_studio, self.draw = services, label_studio, draw
        self.project_id = label_studio.project_id
        self._seeds = itertools.count(1)
        self._groups = {"train": groups("train"), "val": groups("val")}
        with services.database.session() as session:
            session.add(Project(id=self.project_id, label_config=label_studio.label_config))

    def annotate(self, train: int = 0, val: int = 0, *, shuffled: bool = False) -> list[int]:
        """Mark discs on new tasks of each side; `shuffled` puts the training masks elsewhere."""
        made = []
        for split, count in (("train", train), ("val", val)):
            for _ in range(count):
                seed = next(self._seeds)
                content, mask = self.draw(seed)
                if shuffled and split == "train":
                    mask = self.draw(seed + 10_000)[1]
                task = self.label_studio.add_task(content, group=next(self._groups[split]))
                made.append(self.mark(task, mask))
        return made

    def mark(
        self, task_id: int, mask: NDArray[np.bool_], label: str = "Disc", **fields: object
    ) -> int:
        """Submit one annotation and take it in."""
        id_ = self.label_studio.annotate(task_id, [brush(f"r{task_id}", mask, label)], **fields)
        with open_ingest(self.services) as ingest:
            ingest.take_in(Hint(id_, task_id, self.project_id))
        return id_

    def suggestion(self, version: str, task_id: int | None = None) -> Suggestion:
        """A row to be predicted, of a new task or an existing one."""
        if task_id is None:
            task_id = self.label_studio.add_task(self.draw(next(self._seeds) + 500)[0])
        row = Suggestion(
            project_id=self.project_id,
            task_id=task_id,
            config_hash=config_hash(self.label_studio.label_config),
            task_data=self.label_studio.tasks[task_id]["data"],
            model_version=version,
            state=SuggestionState.QUEUED,
            delivery=Delivery.NONE,
        )
        with self.services.database.session() as session:
            if session.get(LabelConfigText, row.config_hash) is None:
                session.add(
                    LabelConfigText(hash=row.config_hash, xml=self.label_studio.label_config)
                )
            session.flush()
            session.add(row)
        return row
