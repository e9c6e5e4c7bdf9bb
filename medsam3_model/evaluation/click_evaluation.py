"""Evaluation by simulated clicks: what each further click on an object is worth.

Every instance of a concept is asked for on its own, as an annotator does it: with a click in its
middle (or with its box, drawn with a person's error), then with clicks in the middle of the largest
error; see `evaluation.clicks`. Beside Dice after each click the report has the number of clicks to
reach a Dice of .85 and .90 (NoC in the literature) and the share of objects that never do.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsam3_model.boxes import disturbed_boxes, tight_box
from medsam3_model.data.samples import Dataset, Sample
from medsam3_model.errors import DatasetError
from medsam3_model.evaluation.clicks import Click, next_click
from medsam3_model.evaluation.metrics import Interval, bootstrap_mean, dice, proportion
from medsam3_model.evaluation.report import figure, figures_table
from medsam3_model.prompting import SpatialPrompt, segment_prompted
from medsam3_model.types import Detections, ImageEmbedding, TextEmbedding, Window

if TYPE_CHECKING:
    from rich.console import Group

    from medsam3_model.predictor import MedSAM3

ClickMode = Literal["clicks", "box-clicks"]
_TARGETS = (0.85, 0.90)
# Smaller ones are specks that nobody clicks on.
_SMALLEST_PIXELS = 30


@dataclass(frozen=True)
class ClickedObject:
    """One object: Dice after each prompt, the first of which is a box in mode box-clicks."""

    name: str
    group: str
    concept: str
    instance: int
    dice: tuple[float, ...]

    def prompts_to(self, target: float) -> int:
        """Prompts until `target` was reached; one more than there were where it never was."""
        for number, score in enumerate(self.dice, start=1):
            if score >= target:
                return number
        return len(self.dice) + 1


@dataclass(frozen=True)
class TargetReport:
    """Mean prompts to a Dice of `dice` (never: one more), and the share that never reached it."""

    dice: float
    prompts: Interval
    never: Interval


@dataclass(frozen=True)
class ClickConceptReport:
    """One concept's figures over its objects, with 95 % intervals over groups."""

    concept: str
    phrase: str
    objects: int
    dice: tuple[Interval, ...]
    targets: tuple[TargetReport, ...]


@dataclass(frozen=True)
class ClickReport:
    """What `medsam3 evaluate --mode clicks` measured; the same input gives the same one.

    `seconds_per_click` is what a click took on an encoded image on this machine.
    """

    model: str
    dataset: str
    mode: ClickMode
    split: Literal["all", "val"]
    seed: int
    concepts: tuple[ClickConceptReport, ...]
    seconds_per_click: float
    objects: tuple[ClickedObject, ...]

    def to_json(self, *, indent: int | None = 2) -> str:
        """All of it as JSON; numbers are finite."""
        return json.dumps(asdict(self), indent=indent, allow_nan=False, ensure_ascii=False)

    def render(self) -> "Group":
        """Tables for a terminal."""
        from rich.console import Group
        from rich.text import Text

        count = len(self.concepts[0].dice)
        first = "box" if self.mode == "box-clicks" else "1"
        later = [f"+{n}" if self.mode == "box-clicks" else str(n + 1) for n in range(1, count)]
        title = f"{self.model} on {self.dataset} ({self.split}), Dice after each click"
        by_click = figures_table(title, "concept", "objects", first, *later)
        reached = figures_table(
            "Prompts until a Dice was reached, and the share that never was",
            *("concept", *(head for t in _TARGETS for head in (f"NoC {t:g}", f"never {t:g}"))),
        )
        for row in self.concepts:
            by_click.add_row(row.concept, str(row.objects), *(figure(value) for value in row.dice))
            cells = [c for t in row.targets for c in (figure(t.prompts, 2), figure(t.never))]
            reached.add_row(row.concept, *cells)
        note = (
            "Mean over objects, below it its 95 % interval over groups; the first click is in the "
            "middle of the object, each further one in the middle of the largest error; "
            f"{1000 * self.seconds_per_click:.0f} ms a prompt on an encoded image."
        )
        return Group(by_click, reached, Text(note, style="dim"))


def evaluate_clicks(
    model: "MedSAM3",
    dataset: Dataset,
    prompts: Mapping[str, str],
    mode: ClickMode = "clicks",
    *,
    clicks: int = 5,
    split: Literal["all", "val"] = "all",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ClickReport:
    """Score a model's answers to simulated clicks.

    Args:
        model: the model that is judged.
        dataset: images with masks.
        prompts: the phrase of each concept.
        mode: "clicks" starts with a click, "box-clicks" with a box whose sides are off by a normal
            error of 8 % of its size; `clicks` more follow it.
        clicks: on each object.
        split: "val" takes the groups that are kept for judging.
        seed: of the boxes' errors and of the bootstrap.
        progress: called with the number of images done and their total.

    Raises:
        DatasetError: a concept is not in the data set, or no image holds one.
        ImageError: an image cannot be read.
    """
    dataset.check_concepts(prompts)
    judged = dataset.split("val") if split == "val" else dataset
    samples = [sample for sample in judged if sample.concepts & set(prompts)]
    if not prompts or not samples:
        raise DatasetError(f"{dataset.name} has nothing to click on for split '{split}'.")
    texts = {concept: model.encode_text([phrase]) for concept, phrase in prompts.items()}
    objects: list[ClickedObject] = []
    spent: list[float] = []
    for done, sample in enumerate(samples, start=1):
        objects += _click_through(model, sample, texts, mode, clicks, seed, spent)
        if progress is not None:
            progress(done, len(samples))
    reports = tuple(
        _summary(concept, phrase, [o for o in objects if o.concept == concept], seed)
        for concept, phrase in prompts.items()
        if any(o.concept == concept for o in objects)
    )
    if not reports:
        raise DatasetError(f"All objects of {dataset.name} are smaller than {_SMALLEST_PIXELS} px.")
    return ClickReport(
        model=model.version,
        dataset=dataset.name,
        mode=mode,
        split=split,
        seed=seed,
        concepts=reports,
        seconds_per_click=float(np.mean(spent)),
        objects=tuple(objects),
    )


def _click_through(
    model: "MedSAM3",
    sample: Sample,
    texts: Mapping[str, TextEmbedding],
    mode: ClickMode,
    clicks: int,
    seed: int,
    spent: list[float],
) -> list[ClickedObject]:
    """Every object of an image."""
    image = sample.image()
    embedding = model.encode_image(image)
    windows: dict[Window, ImageEmbedding] = {}

    def encode_window(window: Window) -> ImageEmbedding:
        if window not in windows:
            x0, y0, x1, y1 = window
            windows[window] = model.encode_image(image[y0:y1, x0:x1])
        return windows[window]

    objects = []
    for concept, text in texts.items():
        truth = sample.read(concept)
        if truth is None:
            continue
        sample.check_size(concept, truth, image)
        for instance in np.unique(truth.labels[truth.labels > 0]).tolist():
            mask = truth.labels == instance
            if mask.sum() < _SMALLEST_PIXELS:
                continue
            key = f"{sample.name}/{concept}/{instance}"
            asked = _Asked(model, embedding, text, encode_window, _Memory(), spent)
            box = None
            if mode == "box-clicks":
                tight = tight_box(mask)[None]
                box = disturbed_boxes(tight, *mask.shape, key=key, seed=seed)[0]
            scores = asked.click_through(mask, box, clicks)
            objects.append(ClickedObject(sample.name, sample.group, concept, instance, scores))
    return objects


class _Memory:
    """Answers to the clicks so far, as a worker keeps them."""

    def __init__(self) -> None:
        self._answers: dict[str, NDArray[np.float32]] = {}

    def get(self, key: str) -> NDArray[np.float32] | None:
        return self._answers.get(key)

    def put(self, key: str, logits: NDArray[np.float32]) -> None:
        self._answers[key] = logits


@dataclass(frozen=True)
class _Asked:
    """One object of an image, asked for with more and more clicks."""

    model: "MedSAM3"
    image: ImageEmbedding
    text: TextEmbedding
    encode_window: Callable[[Window], ImageEmbedding]
    memory: _Memory
    spent: list[float]

    def click_through(
        self, truth: NDArray[np.bool_], box: NDArray[np.float32] | None, clicks: int
    ) -> tuple[float, ...]:
        """Dice after the box, where there is one, and after each click."""
        made: list[Click] = []
        scores: list[float] = []
        mask: NDArray[np.bool_] | None = None
        if box is not None:
            mask = self._ask(made, box).union()
            scores.append(dice(mask, truth))
        for _ in range(clicks):
            click = next_click(truth, mask)
            if click is None:  # nothing is wrong any more
                scores.append(scores[-1])
                continue
            made.append(click)
            mask = self._ask(made, box).union()
            scores.append(dice(mask, truth))
        return tuple(scores)

    def _ask(self, clicks: Sequence[Click], box: NDArray[np.float32] | None) -> Detections:
        boxes = np.zeros((0, 4), np.float32) if box is None else np.asarray(box, np.float32)[None]
        points = np.array([[click.x, click.y] for click in clicks], np.float32).reshape(-1, 2)
        labels = [int(click.inside) for click in clicks]
        prompt = SpatialPrompt(boxes, [1] * len(boxes), points, labels)
        started = time.perf_counter()
        answer = segment_prompted(
            self.model, self.image, self.text, prompt, self.encode_window, self.memory
        )
        self.spent.append(time.perf_counter() - started)
        return answer


def _summary(
    concept: str, phrase: str, objects: Sequence[ClickedObject], seed: int
) -> ClickConceptReport:
    groups = [clicked.group for clicked in objects]

    def mean(values: Sequence[Any]) -> Interval:
        return bootstrap_mean(values, groups, seed=seed)

    targets = []
    for target in _TARGETS:
        needed = [clicked.prompts_to(target) for clicked in objects]
        never = [count > len(clicked.dice) for count, clicked in zip(needed, objects, strict=True)]
        targets.append(TargetReport(target, mean(needed), proportion(never, groups)))
    return ClickConceptReport(
        concept=concept,
        phrase=phrase,
        objects=len(objects),
        dice=tuple(mean(scores) for scores in zip(*(o.dice for o in objects), strict=True)),
        targets=tuple(targets),
    )
