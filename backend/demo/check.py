"""`medsam3 demo --check`: runs the demo, measures what Label Studio stored, and stops it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from sqlalchemy import select

from backend.demo.demo import Demo, DemoOptions, Say, ShowProgress, running_demo
from backend.errors import RegionError
from backend.label_studio.client import LabelStudio
from backend.labeling.region_masks import union_mask
from backend.labeling.validation import validate
from backend.models import versions
from backend.volumes.tables import Stack


@dataclass(frozen=True)
class DemoReport:
    """What the check found.

    Attributes:
        tasks: tasks of the project.
        predicted: those that hold a valid prediction of the version in service.
        mean_dice: by concept, over the demo's slices; empty for a user's own images.
        seconds_to_first_mask: from the command's start; None when every task was predicted
            at an earlier start already.
        model_version: the version in service.
        volume_dice: by concept, over all voxels of the demo's volume; empty beside a user's images.
        errors: by task, why there is no prediction.
    """

    tasks: int
    predicted: int
    mean_dice: dict[str, float]
    seconds_to_first_mask: float | None
    model_version: str
    volume_dice: dict[str, float]
    errors: dict[int, str]

    @property
    def ok(self) -> bool:
        """Whether every task has a prediction that Label Studio shows."""
        return self.tasks > 0 and self.predicted == self.tasks and not self.errors

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary for the last line of output."""
        return {**asdict(self), "ok": self.ok}


def check_demo(options: DemoOptions, say: Say, show_progress: ShowProgress) -> DemoReport:
    """Start the demo, look at every task through Label Studio's API, stop the demo."""
    with running_demo(options, say, show_progress) as demo:
        return _inspect(demo, with_truth=options.images is None)


def _inspect(demo: Demo, *, with_truth: bool) -> DemoReport:
    version = versions.in_service(demo.services, demo.project.id)
    errors = dict(demo.errors)
    volume_dice: dict[str, float] = {}
    dices: dict[str, list[float]] = defaultdict(list)
    tasks = predicted = 0
    with LabelStudio(demo.label_studio.url, demo.label_studio.token) as client:
        config = client.project(demo.project.id)["label_config"]
        fields = ("id", "data", "predictions")
        for task in client.tasks(demo.project.id, include=fields):
            tasks += 1
            regions = _stored(task, version, config, errors)
            if regions is None:
                continue
            predicted += 1
            if with_truth:
                for concept, dice in _dice_of_slice(task["data"]["image"], regions).items():
                    dices[concept].append(dice)
        if demo.volume is not None:
            tasks += 1
            config = client.project(demo.volume.id)["label_config"]
            (task,) = client.tasks(demo.volume.id, include=fields)
            regions = _stored(task, version, config, errors)
            if regions is not None:
                predicted += 1
                volume_dice = _dice_of_volume(demo, task["id"], regions)
    return DemoReport(
        tasks=tasks,
        predicted=predicted,
        mean_dice={concept: round(fmean(values), 4) for concept, values in dices.items()},
        seconds_to_first_mask=demo.seconds_to_first_mask,
        model_version=version,
        volume_dice=volume_dice,
        errors=errors,
    )


def _stored(
    task: dict[str, Any], version: str, config: str, errors: dict[int, str]
) -> list[dict[str, Any]] | None:
    """Regions of a task's one prediction of a version; None, and an error, where it has none."""
    stored = [one for one in task["predictions"] if one["model_version"] == version]
    if len(stored) != 1:
        errors.setdefault(task["id"], f"{len(stored)} predictions of {version}")
        return None
    regions: list[dict[str, Any]] = stored[0]["result"]
    try:
        validate(regions, config)
    except RegionError as error:
        errors[task["id"]] = str(error)
        return None
    return regions


def _dice_of_volume(demo: Demo, task_id: int, regions: list[dict[str, Any]]) -> dict[str, float]:
    """Dice by concept over all voxels, from the regions on the pages of a task."""
    from medsam3_model.data.template import template_masks
    from medsam3_model.evaluation.propagation import dice_3d
    from medsam3_model.images.geometry import geometry_from_json, masks_to_source

    with demo.services.database.reading() as session:
        row = session.scalars(select(Stack).where(Stack.task_id == task_id)).one()
        geometry = geometry_from_json(row.geometry)
    dices = {}
    for concept, truth in template_masks().items():
        pages: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for region in _with_label(regions, concept):
            pages[region["item_index"]].append(region)
        masks = {page: union_mask(drawn, *geometry.page_size) for page, drawn in pages.items()}
        dices[concept] = round(dice_3d(masks_to_source(geometry, masks), truth), 4)
    return dices


def _dice_of_slice(image: str, regions: list[dict[str, Any]]) -> Mapping[str, float]:
    """Dice by concept of one template slice, from the regions as Label Studio stores them."""
    from medsam3_model.data.template import demo_slices
    from medsam3_model.evaluation.metrics import dice

    # Label Studio puts a random prefix before the uploaded file's name.
    (truth,) = [template for template in demo_slices() if image.endswith(f"-{template.name}.png")]
    return {
        concept: dice(union_mask(_with_label(regions, concept), *mask.shape), mask)
        for concept, mask in truth.masks.items()
    }


def _with_label(regions: list[dict[str, Any]], concept: str) -> list[dict[str, Any]]:
    return [
        region
        for region in regions
        if any(label.lower() == concept for label in region["value"].get(region["type"], []))
    ]
