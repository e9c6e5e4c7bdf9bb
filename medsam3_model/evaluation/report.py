"""Reports of an evaluation: data, JSON, and tables beside the published figures."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from medsam3_model.evaluation.metrics import Interval, MaskScores, PairedDifference
from medsam3_model.types import MaskSource

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

Mode = Literal["t", "ti", "ti-jitter"]

MODE_NAMES: Mapping[Mode, str] = {
    "t": "text alone",
    "ti": "text and the true box",
    "ti-jitter": "text and a box as a person draws it",
}

# Dice from tables 2 to 6 of "MedSAM-3" (arXiv 2511.19046). None: not published.
PUBLISHED_SOURCE = "MedSAM-3, arXiv 2511.19046, tables 2–6"
PUBLISHED_SETS = ("BUSI", "RIM-ONE cup", "ISIC 2018", "Kvasir-SEG")
PUBLISHED: Mapping[str, tuple[float | None, ...]] = {
    "U-Net": (0.7618, 0.8480, 0.8760, 0.8244),
    "MedSAM": (0.7514, 0.8479, 0.9177, 0.7657),
    "SAM 3 T": (0.0, 0.0, 0.2189, 0.0),
    "SAM 3 T+I": (0.7110, 0.8303, 0.8178, 0.7671),
    "MedSAM-3 T": (0.2674, 0.0826, 0.5687, 0.1441),
    "MedSAM-3 T+I": (0.7772, 0.8977, 0.9058, 0.8831),
    "MedSAM-3 Agent": (0.8064, None, None, None),
}


@dataclass(frozen=True)
class ImageResult:
    """One concept asked for in one image.

    Attributes:
        present: the truth says that the concept is in the image.
        found: the model's mask is not empty.
        presence: the model's own probability that the concept is there.
        source: where the mask came from.
        scores: against the truth; None where the concept is absent.
        filled_box_dice, ellipse_dice: of the boxes that the model was given; None in mode t.
    """

    dataset: str
    name: str
    group: str
    concept: str
    present: bool
    found: bool
    presence: float
    instances: int
    source: MaskSource
    scores: MaskScores | None = None
    boxes: int = 0
    filled_box_dice: float | None = None
    ellipse_dice: float | None = None


@dataclass(frozen=True)
class FalseAlarms:
    """Masks on images of one set that do not hold the concept; `rate` is their share."""

    dataset: str
    images: int
    alarms: int
    rate: Interval


@dataclass(frozen=True)
class ConceptReport:
    """One concept's figures: means over the images that hold it, with 95 % intervals.

    Attributes:
        images: images with the concept; `absent` ones without were asked, too (mode t).
        presence_accuracy: share of all asked images on which "is it there" was answered rightly
            by an empty or not empty mask; None in the modes with boxes, where the box says so.
        false_alarms: by data set; empty in the modes with boxes.
        filled_box, ellipse: Dice of what the same boxes are worth alone; None in mode t.
        over_ellipse: the model's Dice minus the ellipse's, image by image.
        semantic_fallbacks: images on which the semantic map stood in for the instances.
    """

    concept: str
    phrase: str
    images: int
    absent: int
    dice: Interval | None
    iou: Interval | None
    surface_dice: Interval | None
    hd95: Interval | None
    added_path_length: Interval | None
    presence_accuracy: Interval | None
    false_alarms: tuple[FalseAlarms, ...]
    filled_box: Interval | None
    ellipse: Interval | None
    over_ellipse: PairedDifference | None
    semantic_fallbacks: int


@dataclass(frozen=True)
class EvaluationReport:
    """Everything that `medsam3 evaluate` measured, and how; the same input gives the same one.

    `surface_tolerance` is in pixels, `box_error` a share of the box's size (0 in mode ti),
    `seconds_per_image` what encoding and prompting took on this machine.
    """

    model: str
    dataset: str
    mode: Mode
    split: Literal["all", "val"]
    mask: str
    seed: int
    surface_tolerance: float
    box_error: float
    concepts: tuple[ConceptReport, ...]
    seconds_per_image: float
    images: tuple[ImageResult, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the published figures and that they were not measured."""
        return asdict(self) | {
            "published": {
                "source": PUBLISHED_SOURCE,
                "measured_here": False,
                "sets": list(PUBLISHED_SETS),
                "dice": {method: list(row) for method, row in PUBLISHED.items()},
            }
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """`as_dict` as JSON; numbers are finite."""
        return json.dumps(self.as_dict(), indent=indent, allow_nan=False, ensure_ascii=False)

    def render(self) -> "Group":
        """Tables for a terminal: figures, false alarms, and the published table beside them."""
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = [_figures(self)]
        if self.mode != "t":
            parts.append(_baselines(self.concepts))
        if any(report.false_alarms for report in self.concepts):
            parts.append(_alarms(self.concepts))
        parts += [_notes(self), Text(), _published()]
        return Group(*parts)


def figures_table(title: str, *headings: str) -> "Table":
    """A table whose first column is text and the others figures; 80 columns hold it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, title_style="bold")
    table.add_column(headings[0])
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _figures(report: EvaluationReport) -> "Table":
    presence = ("presence",) if report.mode == "t" else ()
    table = figures_table(
        f"{report.model} on {report.dataset} ({report.split}), {MODE_NAMES[report.mode]}",
        *("concept", "images", "Dice", "IoU", "surface", "HD95 px", *presence),
    )
    for row in report.concepts:
        name = row.concept if row.phrase == row.concept else f"{row.concept}\n“{row.phrase}”"
        cells = [
            figure(row.dice),
            figure(row.iou),
            figure(row.surface_dice),
            figure(row.hd95, 1),
        ]
        if presence:
            cells.append(figure(row.presence_accuracy))
        table.add_row(name, str(row.images), *cells)
    return table


def _baselines(concepts: Iterable[ConceptReport]) -> "Table":
    table = figures_table(
        "Dice of the model, and of its boxes without any model",
        *("concept", "model", "ellipse", "filled box", "model − ellipse"),
    )
    for row in concepts:
        cells = (figure(row.dice), figure(row.ellipse), figure(row.filled_box))
        table.add_row(row.concept, *cells, _gain(row.over_ellipse))
    return table


def _alarms(concepts: Iterable[ConceptReport]) -> "Table":
    table = figures_table(
        "False alarms on images without the concept", "concept", "images of", "alarms", "rate"
    )
    for row in concepts:
        for alarms in row.false_alarms:
            counted = f"{alarms.alarms} of {alarms.images}"
            table.add_row(row.concept, alarms.dataset, counted, figure(alarms.rate))
    return table


def _notes(report: EvaluationReport) -> Any:
    from rich.text import Text

    lines = [
        "Mean over images, below it its 95 % interval over groups; surface Dice within "
        f"{report.surface_tolerance:g} px; {report.seconds_per_image:.2f} s an image."
    ]
    if report.mode != "t":
        lines.append("Boxes come from the true masks, as in published T+I figures.")
    fallbacks = sum(row.semantic_fallbacks for row in report.concepts)
    if report.mask == "instances" and fallbacks:
        lines.append(f"On {fallbacks} images the semantic map stood in for the instances.")
    return Text("\n".join(lines), style="dim")


def _published() -> "Table":
    table = figures_table(
        "Published Dice, not measured here (arXiv 2511.19046)", "method", *PUBLISHED_SETS
    )
    for method, row in PUBLISHED.items():
        table.add_row(method, *("–" if figure is None else f"{figure:.3f}" for figure in row))
    return table


def figure(value: Interval | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    bounds = max(digits - 1, 0)
    return f"{value.mean:.{digits}f}\n{value.low:.{bounds}f}–{value.high:.{bounds}f}"


def _gain(value: PairedDifference | None) -> str:
    if value is None:
        return "–"
    return f"{value.mean:+.3f}\n{value.low:+.2f} to {value.high:+.2f}"
