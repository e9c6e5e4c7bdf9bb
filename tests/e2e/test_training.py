"""The training loop with a real Label Studio: from submitted corrections to the next task."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import select

from backend.demo.demo import template_images
from backend.label_studio.connect import UNIFORM_SAMPLING, connect
from backend.label_studio.server import LabelStudioServer
from backend.labeling import brush_rle
from backend.models import promotion
from backend.predictions.preannotate import preannotate
from backend.services import Services, open_services
from backend.tables import GateVerdict, Suggestion
from backend.training import roll_out, runs
from backend.training.tables import RunState, TrainingRun, Trigger
from medsam3_model.data.samples import split_of_group
from medsam3_model.data.template import demo_slices
from tests.support.annotating import AnnotatingLabelStudio
from tests.support.masks import dice
from tests.support.processes import BackendServer
from tests.support.projects import ProjectFactory
from tests.support.regions import brush
from tests.support.waiting import wait_until

# A site with a word of its own: the bundled model has never heard it, and finds nothing.
LABEL, CONCEPT = "Encephalon", "brain"
CONFIG = f"""
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image">
    <Label value="{LABEL}"/>
  </BrushLabels>
</View>
"""
TRAINING_IMAGES = 10
# Without earlier images, which would be encoded for every change of the code.
SETTINGS = {
    "MEDSAM3_TRAIN_REPLAY": "false",
    "MEDSAM3_GATE_MIN_IMAGES": "3",
}
PATIENCE_S = 240


@dataclass(frozen=True)
class Brain:
    """The demo's slices as a project: the truth by task, and the tasks that get corrected."""

    project_id: int
    truth: dict[int, NDArray[np.bool_]]
    corrected: list[int]

    @property
    def untouched(self) -> list[int]:
        return [task_id for task_id in self.truth if task_id not in self.corrected]


@pytest.fixture(scope="module")
def training_backend(
    tmp_path_factory: pytest.TempPathFactory, label_studio_server: LabelStudioServer
) -> Iterator[BackendServer]:
    """A backend that trains for a few steps."""
    server = BackendServer(tmp_path_factory.mktemp("l"), label_studio_server, **SETTINGS)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def services(training_backend: BackendServer) -> Iterator[Services]:
    opened = open_services(training_backend.settings)
    yield opened
    opened.close()


@pytest.fixture
def brain(
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
    training_backend: BackendServer,
    services: Services,
) -> Brain:
    """Connected, and predicted by the bundled model."""
    files = [content for _, content in template_images()]
    project = make_project(files, CONFIG)
    connect(training_backend.settings, project.id, training_backend.url, client=label_studio)
    truth = {
        task_id: one.masks[CONCEPT]
        for task_id, one in zip(project.task_ids, demo_slices(), strict=True)
    }
    report = preannotate(services, project.id, timeout_s=PATIENCE_S)
    assert report.errors == {}
    with services.database.reading() as session:
        hashes = dict(
            session.execute(
                select(Suggestion.task_id, Suggestion.image_hash).where(
                    Suggestion.project_id == project.id
                )
            ).all()
        )
    judges = [
        id_ for id_ in project.task_ids if split_of_group(f"image:{hashes[id_][:16]}") == "val"
    ]
    others = [id_ for id_ in project.task_ids if id_ not in judges]
    learned = others[:: len(others) // TRAINING_IMAGES][:TRAINING_IMAGES]
    return Brain(project.id, truth, judges + learned)


def drawn(task_id: int, mask: NDArray[np.bool_]) -> list[dict[str, Any]]:
    return [brush(f"drawn-{task_id}", mask, LABEL, control="mask")]


def predicted(
    client: AnnotatingLabelStudio, brain: Brain, version: str
) -> dict[int, dict[str, Any]]:
    """The untouched tasks' predictions of a version, of those that hold exactly one."""
    found = {}
    for task in client.tasks(brain.project_id, include=("id", "predictions")):
        own = [one for one in task["predictions"] if one["model_version"] == version]
        if task["id"] in brain.untouched and len(own) == 1:
            found[task["id"]] = own[0]
    return found


def mean_dice(brain: Brain, predictions: dict[int, dict[str, Any]]) -> float:
    scores = []
    for task_id, prediction in predictions.items():
        truth = brain.truth[task_id]
        mask = np.zeros(truth.shape, bool)
        for region in prediction["result"]:
            mask |= brush_rle.decode(region["value"]["rle"], *truth.shape)
        scores.append(dice(mask, truth))
    return float(np.mean(scores))


def wait_for(what: str, answer: Callable[[], Any], server: BackendServer) -> Any:
    """The first answer that is true; else what the backend's log says in the end."""
    return wait_until(
        answer,
        PATIENCE_S,
        pause_s=0.3,
        otherwise=lambda: f"{what}:\n{server.log_path.read_text()[-3000:]}",
    )


@pytest.mark.timeout(600)
def test_start_training_brings_a_better_version_its_predictions_and_its_order(
    brain: Brain,
    label_studio: AnnotatingLabelStudio,
    training_backend: BackendServer,
    services: Services,
) -> None:
    base = label_studio.project(brain.project_id)["model_version"]
    before = mean_dice(brain, predicted(label_studio, brain, base))

    for task_id in brain.corrected:
        label_studio.create_annotation(task_id, drawn(task_id, brain.truth[task_id]))
    (connected,) = label_studio.ml_backends(brain.project_id)
    label_studio.post(f"/api/ml/{connected.id}/train", {})

    run = wait_for("a run that ended", lambda: _ended(services, brain.project_id), training_backend)
    assert (run.state, run.error) == (RunState.DONE, None)
    assert run.trigger == Trigger.BUTTON
    with services.database.reading() as session:
        verdict = session.get_one(GateVerdict, run.id)
    assert verdict.passed, verdict.reasons
    assert verdict.figures["overall"]["images"] == len(brain.corrected) - TRAINING_IMAGES

    def all_predicted() -> dict[int, dict[str, Any]] | None:
        found = predicted(label_studio, brain, run.candidate)
        return found if len(found) == len(brain.untouched) else None

    after = wait_for("predictions of the new version", all_predicted, training_backend)
    assert label_studio.project(brain.project_id)["model_version"] == run.candidate
    assert mean_dice(brain, after) > before + 0.2

    order = sorted(after, key=lambda task_id: after[task_id]["score"])
    assert order != sorted(after)
    assert _served(label_studio, brain, count=5) == order[:5]

    # Nobody has to take a version: back to the one before, for Label Studio as well.
    promotion.rollback(services, brain.project_id)
    wait_for(
        "the version before",
        lambda: label_studio.project(brain.project_id)["model_version"] == base,
        training_backend,
    )
    wait_for(
        "the order of a project that has learned nothing",
        lambda: label_studio.project(brain.project_id)["sampling"] == UNIFORM_SAMPLING,
        training_backend,
    )
    left = order[5:]
    assert set(predicted(label_studio, brain, base)) >= set(left)
    removed = roll_out.prune(services, brain.project_id, keep=0)
    assert removed == len(order)
    assert label_studio.model_versions(brain.project_id).keys() == {base}


def _ended(services: Services, project_id: int) -> TrainingRun | None:
    with services.database.reading() as session:
        found = runs.list_runs(session, project_id)
    return found[0] if found and found[0].state in runs.ENDED else None


def _served(client: AnnotatingLabelStudio, brain: Brain, count: int) -> list[int]:
    """The tasks that Label Studio hands out, one after the other, as they are submitted."""
    served = []
    for _ in range(count):
        task_id = client.get(f"/api/projects/{brain.project_id}/next")["id"]
        served.append(task_id)
        client.create_annotation(task_id, drawn(task_id, brain.truth[task_id]))
    return served
