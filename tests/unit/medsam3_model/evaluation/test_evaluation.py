"""Evaluation: its arithmetic on images whose answer is known, and the command's output."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from medsam3_model import boxes
from medsam3_model.data.datasets import load_dataset, load_images
from medsam3_model.data.samples import Dataset, split_of_group
from medsam3_model.errors import DatasetError
from medsam3_model.evaluation import metrics
from medsam3_model.evaluation.evaluation import evaluate, parse_prompts
from medsam3_model.evaluation.report import PUBLISHED, EvaluationReport
from medsam3_model.prompting import SpatialPrompt, segment_prompted
from medsam3_model.types import Detections
from tests.support.colour_model import ColourModel
from tests.support.commands import run
from tests.support.dataset_files import save

H, W = 48, 64


def detections(
    masks: Sequence[np.ndarray], presence: float, semantic: np.ndarray | None = None
) -> Detections:
    return Detections(
        masks=np.array(masks, bool).reshape(-1, H, W),
        boxes=np.array([boxes.tight_box(mask) for mask in masks], np.float32).reshape(-1, 4),
        scores=np.full(len(masks), 0.9, np.float32),
        presence=presence,
        semantic=np.zeros((H, W), np.float32) if semantic is None else semantic,
    )


def disk(row: int, column: int, radius: int) -> np.ndarray:
    y, x = np.mgrid[:H, :W]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images: red disks in all but the last, a green square in the first two.

    The truth says the same as the picture but for image 1, of whose disk the picture shows half,
    and image 5, in which the picture shows red where the truth says that there is none.
    """
    for i in range(6):
        image = np.zeros((H, W, 3), np.uint8)
        red = disk(20 + i, 20, 9 + i)
        if i < 5:
            save(tmp_path / f"masks/lesion/{i}.png", red.astype(np.uint8) * 255)
        if i == 1:
            red = red & (np.arange(W) < 20)
        image[red, 0] = 255
        if i < 2:
            square = np.zeros((H, W), bool)
            square[30:40, 40:60] = True
            image[square, 1] = 255
            save(tmp_path / f"masks/tool/{i}.png", square.astype(np.uint8) * 255)
        save(tmp_path / f"images/{i}.png", image)
    save(tmp_path / "negatives/n.png", np.zeros((H, W, 3), np.uint8))
    (tmp_path / "groups.csv").write_text(
        "name,group\n0,p0\n1,p0\n2,p1\n3,p1\n4,p2\n5,p3\nn,p4\n", encoding="utf-8"
    )
    return tmp_path


PROMPTS = {"lesion": "red", "tool": "green"}


def report_of(folder: Path, mode: Any = "t", **options: Any) -> EvaluationReport:
    return evaluate(ColourModel(), load_dataset(folder), PROMPTS, mode, **options)


def test_text_alone(folder: Path) -> None:
    report = report_of(folder)
    lesion, tool = report.concepts
    assert (report.model, report.mode, report.box_error) == ("colour-1", "t", 0.0)
    assert (lesion.concept, lesion.phrase, lesion.images, lesion.absent) == ("lesion", "red", 5, 2)
    half, whole = disk(21, 20, 10) & (np.arange(W) < 20), disk(21, 20, 10)
    expected = metrics.score_mask(half, whole)
    results = {(r.name, r.concept): r for r in report.images}
    assert results["1", "lesion"].scores == expected
    assert lesion.dice is not None
    assert lesion.dice.mean == pytest.approx((4 + expected.dice) / 5)
    assert (lesion.dice.count, lesion.dice.groups) == (5, 3)
    assert lesion.dice.low <= lesion.dice.mean <= lesion.dice.high
    # Image 5 is answered wrongly, the negative rightly.
    assert lesion.presence_accuracy is not None
    assert lesion.presence_accuracy.mean == pytest.approx(6 / 7)
    alarms = {entry.dataset: (entry.images, entry.alarms) for entry in lesion.false_alarms}
    assert alarms == {folder.name: (1, 1), f"{folder.name}/negatives": (1, 0)}
    assert tool.dice is not None
    assert (tool.images, tool.absent, tool.dice.mean) == (2, 5, 1.0)
    assert (lesion.filled_box, lesion.ellipse, lesion.over_ellipse) == (None, None, None)


def test_images_of_other_sets_count_as_false_alarms_only(folder: Path, tmp_path: Path) -> None:
    for i in range(4):
        image = np.zeros((H, W, 3), np.uint8)
        image[disk(20, 20, 5), 0] = 255 if i < 1 else 0
        save(tmp_path / f"skin/{i}.png", image)
    alone = report_of(folder)
    report = report_of(folder, others=[load_images(tmp_path / "skin")])
    skin = next(entry for entry in report.concepts[0].false_alarms if entry.dataset == "skin")
    assert (skin.images, skin.alarms, skin.rate.mean) == (4, 1, 0.25)
    assert report.concepts[0].dice == alone.concepts[0].dice
    assert report.concepts[0].images == alone.concepts[0].images


def test_true_boxes_and_what_they_are_worth(folder: Path) -> None:
    model = ColourModel()
    report = evaluate(model, load_dataset(folder), PROMPTS, "ti")
    lesion, tool = report.concepts
    assert len(report.images) == 7  # images without the concept are not asked
    assert len(model.prompted) == 7
    assert lesion.dice is not None
    assert lesion.dice.mean > 0.9  # image 1 shows half of its disk
    for result in report.images:
        assert result.ellipse_dice is not None
    assert lesion.ellipse is not None
    assert lesion.ellipse.mean > 0.94  # an ellipse in the box of a disk is the disk
    square = boxes.inscribed_ellipses_mask([40, 30, 60, 40], H, W)
    filled = boxes.filled_boxes_mask([40, 30, 60, 40], H, W)
    assert tool.filled_box is not None
    assert tool.ellipse is not None
    assert tool.filled_box.mean == 1.0
    assert tool.ellipse.mean == pytest.approx(metrics.dice(square, filled))
    assert tool.over_ellipse is not None
    assert tool.dice is not None
    assert tool.dice.mean > 0.95
    assert tool.over_ellipse.mean == pytest.approx(tool.dice.mean - tool.ellipse.mean)
    assert (lesion.presence_accuracy, lesion.false_alarms, lesion.absent) == (None, (), 0)


def test_disturbed_boxes_are_the_documented_ones_and_the_same_for_the_baselines(
    folder: Path,
) -> None:
    model = ColourModel()
    report = evaluate(model, load_dataset(folder), {"lesion": "red"}, "ti-jitter", seed=3)
    sample = load_dataset(folder).samples[0]
    truth = sample.read("lesion")
    assert truth is not None
    given = boxes.disturbed_boxes(truth.boxes, H, W, key="0/lesion", seed=3)
    assert model.prompted[0].tolist() == given.tolist()
    first = report.images[0]
    assert first.filled_box_dice == metrics.dice(boxes.filled_boxes_mask(given, H, W), truth.mask)
    assert first.ellipse_dice == metrics.dice(
        boxes.inscribed_ellipses_mask(given, H, W), truth.mask
    )
    assert report.box_error == 0.08


def test_boxes_are_answered_as_an_annotator_s_are(folder: Path) -> None:
    """Small objects are looked at enlarged, and the mask is `segment_prompted`'s."""
    model = ColourModel(patches=16, certainty=2.0)
    report = evaluate(model, load_dataset(folder), {"lesion": "red"}, "ti-jitter")
    sample = load_dataset(folder).samples[0]
    truth = sample.read("lesion")
    assert truth is not None
    given = boxes.disturbed_boxes(truth.boxes, H, W, key="0/lesion")
    image = sample.image()
    answered = segment_prompted(
        model,  # type: ignore[arg-type]
        model.encode_image(image),
        model.encode_text(["red"]),
        SpatialPrompt(given, [1], np.zeros((0, 2), np.float32), []),
        lambda window: model.encode_image(image[window[1] : window[3], window[0] : window[2]]),
    )
    assert model.encoded[-1] != (H, W)
    assert report.images[0].scores == metrics.score_mask(answered.union(), truth.mask)
    assert report.images[0].source == "instances"


def test_the_same_evaluation_gives_the_same_report(folder: Path) -> None:
    def figures(seed: int) -> Any:
        content = report_of(folder, "ti-jitter", seed=seed).as_dict()
        del content["seconds_per_image"]
        return content

    assert figures(0) == figures(0)
    assert figures(0)["concepts"] != figures(1)["concepts"]


def test_only_validation_groups(folder: Path) -> None:
    report = report_of(folder, split="val")
    asked = {result.group for result in report.images}
    groups = {sample.group for sample in load_dataset(folder)}
    assert asked == {group for group in groups if split_of_group(group) == "val"}
    assert 0 < len(asked) < 5


def test_progress_is_told(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    report_of(folder, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 7) for i in range(1, 8)]


def test_json_is_strict_and_names_what_was_not_measured(folder: Path) -> None:
    for mode in ("t", "ti-jitter"):
        content = json.loads(report_of(folder, mode).to_json())
        assert content["published"]["measured_here"] is False
        assert content["published"]["dice"]["MedSAM-3 T+I"] == [0.7772, 0.8977, 0.9058, 0.8831]
        assert [concept["concept"] for concept in content["concepts"]] == ["lesion", "tool"]
        assert {"mean", "low", "high"} <= set(content["concepts"][0]["dice"])


@pytest.mark.parametrize("mode", ["t", "ti", "ti-jitter"])
def test_tables_show_the_baselines_and_the_published_figures(folder: Path, mode: Any) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report_of(folder, mode).render())
    text = console.export_text()
    assert "not measured here" in text
    assert all(method in text for method in PUBLISHED)
    assert ("ellipse" in text) == (mode != "t")
    assert ("False alarms" in text) == (mode == "t")


# --- one mask per concept


SEMANTIC = np.where(disk(20, 20, 8), 0.9, 0.1).astype(np.float32)


def test_instances_come_before_the_semantic_map() -> None:
    two = [disk(10, 10, 5), disk(30, 40, 6)]
    mask, source = detections(two, 0.9, SEMANTIC).concept_mask()
    assert source == "instances"
    assert np.array_equal(mask, two[0] | two[1])
    mask, source = detections(two, 0.9, SEMANTIC).concept_mask(rule="semantic")
    assert source == "semantic"
    assert np.array_equal(mask, disk(20, 20, 8))


@pytest.mark.parametrize("rule", ["instances", "semantic"])
@pytest.mark.parametrize(("presence", "expected"), [(0.9, "semantic"), (0.1, "none")])
def test_the_semantic_map_needs_presence(presence: float, expected: str, rule: Any) -> None:
    mask, source = detections([], presence, SEMANTIC).concept_mask(rule=rule)
    assert source == expected
    assert mask.any() == (expected == "semantic")


def test_nothing_found_is_an_empty_mask() -> None:
    mask, source = detections([], 0.9).concept_mask()
    assert (mask.shape, mask.any(), source) == ((H, W), False, "none")


# --- prompts


def test_prompts(folder: Path) -> None:
    dataset = load_dataset(folder)
    assert parse_prompts([], dataset) == {"lesion": "lesion", "tool": "tool"}
    assert parse_prompts(["lesion"], dataset) == {"lesion": "lesion"}
    assert parse_prompts(["lesion=skin lesion", "tool = a=b"], dataset) == {
        "lesion": "skin lesion",
        "tool": "a=b",
    }
    one = Dataset("x", folder, ("left_lung",), dataset.samples)
    assert parse_prompts(["left lung"], one) == {"left_lung": "left lung"}
    assert parse_prompts(["lung"], one) == {"left_lung": "lung"}
    for texts, sentence in (
        (["polyp"], "no masks of 'polyp'"),
        (["polyp=polyp"], "no masks of 'polyp'"),
        (["lesion="], "no phrase"),
        (["lesion", "lesion=red"], "two phrases"),
    ):
        with pytest.raises(DatasetError, match=sentence):
            parse_prompts(texts, dataset)


def test_nothing_to_evaluate_is_an_error(folder: Path) -> None:
    dataset = load_dataset(folder)
    with pytest.raises(DatasetError, match="at least one prompt"):
        evaluate(ColourModel(), dataset, {})
    only_negative = Dataset(dataset.name, folder, dataset.concepts, dataset.samples[-1:])
    with pytest.raises(DatasetError, match="no images for split 'all' in mode 'ti'"):
        evaluate(ColourModel(), only_negative, PROMPTS, "ti")


# --- the command


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "nowhere"], "There is no folder nowhere"),
        (["--data", "{folder}", "--prompt", "polyp"], "It has: lesion, tool."),
        (["--data", "{folder}", "--model", "no-such-model"], "no-such-model"),
        (["--data", "{folder}", "--mode", "ti", "--negatives", "x"], "use --mode t"),
        (["--data", "{folder}", "--mode", "magic"], "ti-jitter"),
        (["--data", "{folder}", "--mode", "agent"], "give MEDSAM3_AGENT_URL"),
    ],
)
def test_command_says_what_is_wrong(folder: Path, arguments: list[str], sentence: str) -> None:
    given = [argument.format(folder=folder) for argument in arguments]
    result = run("evaluate", *given)
    assert result.exit_code in (1, 2)
    assert sentence in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize("mode", ["t", "ti-jitter"])
def test_command_with_a_real_model(folder: Path, hugging_face_folder: Path, mode: str) -> None:
    """Random weights find nothing worth having, but every step from file to figure is the real."""
    given = ["--data", str(folder), "--prompt", "lesion=red disk", "--prompt", "tool"]
    given += ["--model", str(hugging_face_folder), "--mode", mode, "--device", "cpu", "--json"]
    result = run("evaluate", *given)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["model"].startswith("sam3-tiny-")
    lesion, tool = report["concepts"]
    assert (lesion["phrase"], lesion["images"], tool["images"]) == ("red disk", 5, 2)
    assert (lesion["ellipse"] is None) == (mode == "t")
    assert len(report["images"]) == (14 if mode == "t" else 7)


def test_command_help_has_an_example() -> None:
    result = run("evaluate", "--help")
    assert "medsam3 evaluate --data polyps/ --prompt polyp --mode ti-jitter" in " ".join(
        result.stdout.split()
    )
