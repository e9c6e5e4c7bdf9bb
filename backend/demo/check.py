"""`medsam3 demo --check`: runs the demo, measures what Label Studio stored, and stops it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from backend.demo.demo import Demo, DemoOptions, Say, ShowProgress, running_demo
from backend.errors import RegionError
from backend.label_studio.client import LabelStudio
from backend.labeling.region_masks import union_mask
from backend.labeling.validation import validate
from backend.models import versions


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
        errors: by task, why there is no prediction.
    """

    tasks: int
    predicted: int
    mean_dice: dict[str, float]
    seconds_to_first_mask: float | None
    model_version: str
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
    dices: dict[str, list[float]] = defaultdict(list)
    tasks = predicted = 0
    with LabelStudio(demo.label_studio.url, demo.label_studio.token) as client:
        config = client.project(demo.project.id)["label_config"]
        fields = ("id", "data", "predictions")
        for task in client.tasks(demo.project.id, include=fields):
            tasks += 1
            stored = [
                prediction
                for prediction in task["predictions"]
                if prediction["model_version"] == version
            ]
            if len(stored) != 1:
                errors.setdefault(task["id"], f"{len(stored)} predictions of {version}")
                continue
            regions = stored[0]["result"]
            try:
                validate(regions, config)
            except RegionError as error:
                errors[task["id"]] = str(error)
                continue
            predicted += 1
            if with_truth:
                for concept, dice in _dice_of_slice(task["data"]["image"], regions).items():
                    dices[concept].append(dice)
    return DemoReport(
        tasks=tasks,
        predicted=predicted,
        mean_dice={concept: round(fmean(values), 4) for concept, values in dices.items()},
        seconds_to_first_mask=demo.seconds_to_first_mask,
        model_version=version,
        errors=errors,
    )


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
