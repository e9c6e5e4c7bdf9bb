"""The figures of `medsam3 simulate` as a table, a CSV file and a plot."""

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsam3_model.evaluation.metrics import Interval, PairedDifference

# As `backend.simulation.simulate.simulate` returns them and figures.json holds them.
Figures = dict[str, Any]

_COLUMNS = (
    *("set", "strategy", "corrected", "Dice before", "after"),
    *("U-Net, same time", "difference", "accepted"),
)


def markdown(figures: Figures, name: str) -> str:
    """A table with a row for each strategy; intervals are 95 %, over groups of images.

    Args:
        figures: of `simulate`.
        name: what the data set is called.
    """
    rows = [_row(figures, name, strategy) for strategy in _strategies(figures)]
    return "\n".join([_line(_COLUMNS), _line(["---"] * len(_COLUMNS)), *rows])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(figures: Figures, name: str, strategy: str) -> str:
    from medsam3_model.evaluation.metrics import bootstrap_mean, paired_bootstrap

    played = figures[strategy]
    baseline = figures["baseline"] or {}
    first, last = ([rows[at] for rows in played.values()] for at in (0, -1))
    unet = difference = "–"
    if baseline:
        # The U-Net learns one concept; it is compared on that one.
        theirs = _answers(baseline.values())
        concept = theirs[0][0]
        ours = [answer for answer in _answers(last) if answer[0] == concept]
        groups = [group for _, group, _ in theirs]
        our_dice, their_dice = ([dice for _, _, dice in answers] for answers in (ours, theirs))
        unet = _interval(bootstrap_mean(their_dice, groups))
        difference = _interval(paired_bootstrap(our_dice, their_dice, groups), sign="+")
    answers = _answers(last)
    after = bootstrap_mean([dice for _, _, dice in answers], [group for _, group, _ in answers])
    corrected = fmean(row["corrected"] for row in last)
    before = fmean(row["dice"] for row in first)
    accepted = " → ".join(
        f"{100 * fmean(row['accepted'] for row in rows):.0f}" for rows in (first, last)
    )
    cells = (f"{corrected:.0f}", f"{before:.3f}", _interval(after), unet, difference)
    return _line((name, strategy, *cells, f"{accepted} %"))


def _answers(measured: Any) -> list[tuple[str, str, float]]:
    return [tuple(answer) for row in measured for answer in row["answers"]]


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
