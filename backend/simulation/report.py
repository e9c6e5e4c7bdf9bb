"""The figures of `medsam3 simulate` as a table, a CSV file and a plot."""

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsam3_model.evaluation.metrics import Interval, PairedDifference

ACCEPTED_DICE = 0.9
"""What an annotator leaves as it is."""

# As `backend.simulation.simulate.simulate` returns them and figures.json holds them.
Figures = dict[str, Any]

JudgedAnswer = tuple[Any, ...]
"""One question: concept, group, Dice, and for ours the added path length in pixels."""

_COLUMNS = (
    *("set", "concept", "strategy", "corrected", "Dice before", "after one round", "after"),
    *("U-Net, same time", "difference", "accepted", "uncalibrated", "path to draw"),
    *("with a box", "change with a box"),
)


def markdown(figures: Figures, name: str) -> str:
    """A table with a row for each concept and strategy; intervals are 95 %, over groups of images.

    "uncalibrated" is the share that was accepted with the model's own threshold for every label,
    "with a box" the Dice of what boxes as a person draws them are answered, before and after.

    Args:
        figures: of `simulate`.
        name: what the data set is called.
    """
    strategies = _strategies(figures)
    concepts = dict.fromkeys(answer[0] for answer in _answers(figures, strategies[0], 0))
    rows = [_row(figures, name, strategy, one) for one in concepts for strategy in strategies]
    return "\n".join([_line(_COLUMNS), _line(["---"] * len(_COLUMNS)), *rows])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(figures: Figures, name: str, strategy: str, concept: str) -> str:
    from medsam3_model.evaluation.metrics import bootstrap_mean, paired_bootstrap

    before, early, after = (_answers(figures, strategy, at, concept) for at in (0, 1, -1))
    groups, dices = [answer[1] for answer in after], [answer[2] for answer in after]
    # The same images and boxes: only where the concept is, in the same order.
    boxed = [_answers(figures, strategy, at, concept, "boxed") for at in (0, -1)]
    drawn_before, drawn_after = ([answer[2] for answer in answers] for answers in boxed)
    boxed_groups = [answer[1] for answer in boxed[0]]
    unet = difference = with_box = change_with_box = "–"
    if boxed_groups:
        with_box = " → ".join(f"{fmean(dices):.3f}" for dices in (drawn_before, drawn_after))
        change = paired_bootstrap(drawn_after, drawn_before, boxed_groups)
        change_with_box = _interval(change, sign="+")
    if figures["baseline"]:
        theirs = [
            answer[2]
            for played in figures["baseline"].values()
            for answer in played["answers"]
            if answer[0] == concept
        ]
        unet = _interval(bootstrap_mean(theirs, groups))
        difference = _interval(paired_bootstrap(dices, theirs, groups), sign="+")
    cells = (
        f"{fmean(rows[-1]['corrected'] for rows in figures[strategy].values()):.0f}",
        *(f"{fmean(answer[2] for answer in answers):.3f}" for answers in (before, early)),
        _interval(bootstrap_mean(dices, groups)),
        unet,
        difference,
        " → ".join(f"{100 * _accepted(answers):.0f}" for answers in (before, after)) + " %",
        f"{100 * _accepted(_answers(figures, strategy, -1, concept, 'uncalibrated')):.0f} %",
        " → ".join(f"{fmean(one[3] for one in answers):.0f}" for answers in (before, after))
        + " px",
        with_box,
        change_with_box,
    )
    return _line((name, concept, strategy, *cells))


def _answers(
    figures: Figures, strategy: str, at: int, concept: str | None = None, kind: str = "answers"
) -> list[JudgedAnswer]:
    """The answers of one round, of all seeds; all of them, or those about one concept."""
    return [
        tuple(answer)
        for rows in figures[strategy].values()
        for answer in rows[min(at, len(rows) - 1)][kind]
        if concept in (None, answer[0])
    ]


def _accepted(answers: Sequence[JudgedAnswer]) -> float:
    """The share that an annotator leaves as it is."""
    return fmean(answer[2] >= ACCEPTED_DICE for answer in answers)


def _interval(mean: "Interval | PairedDifference", sign: str = "") -> str:
    return f"{mean.mean:{sign}.3f} ({mean.low:{sign}.3f} to {mean.high:{sign}.3f})"


def _strategies(figures: Figures) -> list[str]:
    return [name for name in figures if name != "baseline"]


def write_csv(figures: Figures, path: Path) -> None:
    """One line for each round of each seed."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        names = ("round", "corrected", "dice", "apl", "accepted", "seconds", "version")
        rows.writerow(("strategy", "seed", *names))
        for strategy in _strategies(figures):
            for seed, played in figures[strategy].items():
                rows.writerows((strategy, seed, *(row[name] for name in names)) for row in played)


def plot(figures: Figures, path: Path) -> None:
    """Dice against corrected images: the mean of the seeds, and their range; drawn with Pillow."""
    from PIL import Image, ImageDraw

    strategies = _strategies(figures)
    width, height, margin = 800, 500, 50
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    most = max(
        row["corrected"]
        for strategy in strategies
        for rows in figures[strategy].values()
        for row in rows
    )

    def at(corrected: float, dice: float) -> tuple[float, float]:
        x = margin + (width - 2 * margin) * corrected / max(most, 1)
        return x, height - margin - (height - 2 * margin) * dice

    for tenth in range(0, 11, 2):
        draw.line([at(0, tenth / 10), at(most, tenth / 10)], fill="#dddddd")
        draw.text((10, at(0, tenth / 10)[1] - 6), f"{tenth / 10:.1f}", fill="black")
    draw.text((width / 2 - 60, height - 25), f"corrected images (0 to {most})", fill="black")
    draw.text((10, 10), "Dice", fill="black")
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
    for index, strategy in enumerate(strategies):
        colour = colours[index % len(colours)]
        played = list(figures[strategy].values())
        points = []
        for rows in zip(*played, strict=True):
            values = [row["dice"] for row in rows]
            x = rows[0]["corrected"]
            draw.line([at(x, min(values)), at(x, max(values))], fill=colour, width=1)
            points.append(at(x, fmean(values)))
        draw.line(points, fill=colour, width=3)
        draw.text((width - 200, 12 + 14 * index), strategy, fill=colour)
    if figures["baseline"]:
        mean = fmean(unet["dice"] for unet in figures["baseline"].values())
        draw.line([at(0, mean), at(most, mean)], fill="black", width=2)
        draw.text((width - 200, 12 + 14 * len(strategies)), "U-Net, same time", fill="black")
    picture.save(path)
