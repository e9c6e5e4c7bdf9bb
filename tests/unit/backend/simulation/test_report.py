"""The table, the CSV file and the plot of a simulation."""

import csv
from pathlib import Path
from typing import Any

from PIL import Image

from backend.simulation.report import markdown, plot, write_csv


def row(number: int, dices: list[float], concept: str = "polyp") -> dict[str, Any]:
    return {
        "round": number,
        "corrected": 10 * number,
        "dice": sum(dices) / len(dices),
        "apl": 5.0,
        "accepted": sum(dice >= 0.9 for dice in dices) / len(dices),
        "seconds": 2.0,
        "version": "tiny",
        "answers": [
            (concept, f"patient{at}", dice, 100 * (1 - dice)) for at, dice in enumerate(dices)
        ],
        "boxed": [(concept, f"patient{at}", 0.5 + dice / 2, 5.0) for at, dice in enumerate(dices)],
        "uncalibrated": [(concept, "patient0", 0.95, 5.0), (concept, "patient1", 0.5, 50.0)],
    }


def unet(dices: list[float]) -> dict[str, Any]:
    return {"dice": sum(dices) / len(dices), "seconds": 4.0, "answers": row(0, dices)["answers"]}


FIGURES = {
    "random": {
        "0": [row(0, [0.2, 0.4, 0.0]), row(1, [0.8, 0.95, 0.5])],
        "1": [row(0, [0.2, 0.4, 0.0]), row(1, [0.6, 0.95, 0.7])],
    },
    "uncertainty": {
        "0": [row(0, [0.2, 0.4, 0.0]), row(1, [0.9, 0.9, 0.9])],
        "1": [row(0, [0.2, 0.4, 0.0]), row(1, [0.9, 0.9, 0.9])],
    },
    "baseline": {"0": unet([0.5, 0.5, 0.5]), "1": unet([0.7, 0.7, 0.7])},
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_for_each_strategy_with_the_baseline_beside_it() -> None:
    header, rule, random, uncertainty = map(cells, markdown(FIGURES, "polyps").splitlines())
    assert len(header) == len(rule) == len(random) == 14
    assert random[:6] == ["polyps", "polyp", "random", "10", "0.200", "0.750"]
    # Of patients 0 to 2: 0.7, 0.95 and 0.6; resampled, no mean leaves their range.
    assert random[6].startswith("0.750 (0.6")
    assert random[7] == "0.600 (0.600 to 0.600)"
    assert random[8].startswith("+0.150 (")
    assert random[9:12] == ["0 → 33 %", "50 %", "80 → 25 px"]
    assert random[12] == "0.600 → 0.875"
    # Of patients 0 to 2: +0.25, +0.275 and +0.3.
    assert random[13].startswith("+0.275 (+0.2")
    assert uncertainty[6] == "0.900 (0.900 to 0.900)"
    assert uncertainty[8] == "+0.300 (+0.300 to +0.300)"


def test_each_concept_is_compared_by_itself() -> None:
    last, learned = row(1, [0.8, 0.8, 0.8]), unet([0.5, 0.5, 0.5])
    for kind in ("answers", "uncalibrated", "boxed"):
        last[kind] += row(1, [0.1, 0.1, 0.1], "instrument")[kind]
    learned["answers"] += row(1, [0.3, 0.3, 0.3], "instrument")["answers"]
    first = row(0, [0.0, 0.0, 0.0])
    for kind in ("answers", "boxed"):
        first[kind] += row(0, [0.2, 0.2, 0.2], "instrument")[kind]
    played = {"random": {"0": [first, last]}, "baseline": {"0": learned}}
    polyp, instrument = map(cells, markdown(played, "colon").splitlines()[-2:])
    assert (polyp[1], polyp[4]) == ("polyp", "0.000")
    assert polyp[8] == "+0.300 (+0.300 to +0.300)"
    assert (instrument[1], instrument[4]) == ("instrument", "0.200")
    assert instrument[8] == "-0.200 (-0.200 to -0.200)"


def test_without_a_baseline_there_is_nothing_to_compare() -> None:
    line = cells(markdown({**FIGURES, "baseline": None}, "polyps").splitlines()[-1])
    assert line[7:9] == ["–", "–"]


def test_one_line_in_the_file_for_each_round(tmp_path: Path) -> None:
    write_csv(FIGURES, tmp_path / "figures.csv")
    with (tmp_path / "figures.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 8
    assert found[1] == {
        "strategy": "random",
        "seed": "0",
        "round": "1",
        "corrected": "10",
        "dice": "0.75",
        "apl": "5.0",
        "accepted": str(1 / 3),
        "seconds": "2.0",
        "version": "tiny",
    }


def test_the_plot_shows_strategies_and_baseline_in_their_colours(tmp_path: Path) -> None:
    plot(FIGURES, tmp_path / "dice.png")
    with Image.open(tmp_path / "dice.png") as picture:
        colours = {colour for _, colour in picture.getcolors(maxcolors=10_000)}
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0)} <= colours
