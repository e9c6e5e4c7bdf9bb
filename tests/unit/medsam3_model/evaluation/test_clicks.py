"""Simulated clicks, and the figures made of them, on images whose answer is known."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from medsam3_model.data.datasets import load_dataset
from medsam3_model.errors import DatasetError
from medsam3_model.evaluation.click_evaluation import ClickedObject, evaluate_clicks
from medsam3_model.evaluation.clicks import next_click
from tests.support.colour_model import ColourModel
from tests.support.dataset_files import save

H, W = 48, 64


def disk(row: int, column: int, radius: int) -> np.ndarray:
    y, x = np.mgrid[:H, :W]
    return np.asarray((y - row) ** 2 + (x - column) ** 2 <= radius**2)


def test_the_first_click_is_in_the_middle_of_the_largest_piece() -> None:
    click = next_click(disk(20, 15, 9) | disk(30, 50, 4))
    assert click is not None
    assert (click.x, click.y, click.inside) == (15.5, 20.5, True)


def test_the_next_click_is_in_the_middle_of_the_largest_error() -> None:
    truth = disk(20, 15, 9)
    too_much = next_click(truth, truth | disk(30, 50, 6))
    assert too_much is not None
    assert (too_much.x, too_much.y, too_much.inside) == (50.5, 30.5, False)
    too_little = next_click(truth | disk(30, 50, 6), truth)
    assert too_little is not None
    assert (too_little.x, too_little.y, too_little.inside) == (50.5, 30.5, True)
    assert next_click(truth, truth) is None


def test_an_objects_middle_is_never_in_its_hole() -> None:
    ring = disk(24, 30, 20) & ~disk(24, 30, 12)
    click = next_click(ring)
    assert click is not None
    assert ring[int(click.y), int(click.x)]


def test_a_drawn_click_is_somewhere_in_the_error() -> None:
    truth = disk(20, 15, 9)
    rng = np.random.default_rng(0)
    clicks = [next_click(truth, None, rng) for _ in range(20)]
    assert all(click and truth[int(click.y), int(click.x)] for click in clicks)
    assert len({(click.x, click.y) for click in clicks if click}) > 10


def test_prompts_to_a_dice() -> None:
    clicked = ClickedObject("a", "a", "lesion", 1, (0.5, 0.86, 0.84, 0.91))
    assert [clicked.prompts_to(target) for target in (0.4, 0.85, 0.9, 0.95)] == [1, 2, 4, 5]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two red disks in one image, one in the other, and a speck that nobody clicks on."""
    for name, disks in {"a": [(20, 15, 9), (30, 50, 8)], "b": [(24, 30, 12), (3, 3, 1)]}.items():
        red = np.any([disk(*place) for place in disks], axis=0)
        image = np.zeros((H, W, 3), np.uint8)
        image[red, 0] = 255
        save(tmp_path / f"images/{name}.png", image)
        save(tmp_path / f"masks/lesion/{name}.png", red.astype(np.uint8) * 255)
    return tmp_path


@pytest.mark.parametrize("mode", ["clicks", "box-clicks"])
def test_every_object_is_clicked_on_by_itself(folder: Path, mode: str) -> None:
    report = evaluate_clicks(
        ColourModel(),  # type: ignore[arg-type]
        load_dataset(folder),
        {"lesion": "red"},
        "clicks" if mode == "clicks" else "box-clicks",
        clicks=3,
    )
    (concept,) = report.concepts
    assert concept.objects == len(report.objects) == 3
    assert len(concept.dice) == (3 if mode == "clicks" else 4)
    assert json.loads(report.to_json())["concepts"][0]["concept"] == "lesion"
    text = io.StringIO()
    Console(file=text, width=100).print(report.render())
    assert "never 0.85" in text.getvalue()


def test_nothing_to_click_on_is_an_error(folder: Path) -> None:
    dataset = load_dataset(folder)
    with pytest.raises(DatasetError, match="nothing to click on"):
        evaluate_clicks(ColourModel(), dataset, {})  # type: ignore[arg-type]
