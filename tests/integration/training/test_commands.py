"""`medsam3 train`, `medsam3 models` and `medsam3 simulate`, as people type them."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.processes.redis_server import RedisServer
from backend.services import open_services, use_services
from backend.settings import Settings, get_settings
from backend.training import runs
from backend.training.tables import RunState, Trigger
from tests.support.commands import json_of, run
from tests.support.stand_in_label_studio import StandInLabelStudio
from tests.support.training_stage import CONFIG, TrainingStage, disc_file, groups


@pytest.fixture
def installation(data_dir: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What every command reads from its environment."""
    monkeypatch.setenv("MEDSAM3_DATA_DIR", str(data_dir))
    monkeypatch.setenv("MEDSAM3_MODEL", str(model))
    monkeypatch.setenv("MEDSAM3_TRAIN_REPLAY", "false")
    monkeypatch.setenv("MEDSAM3_GATE_MIN_IMAGES", "4")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    get_settings.cache_clear()
    yield
    use_services(None)
    get_settings.cache_clear()


@pytest.fixture
def stage(
    redis_server: RedisServer, installation: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TrainingStage]:
    with StandInLabelStudio(CONFIG) as label_studio:
        monkeypatch.setenv("LABEL_STUDIO_URL", label_studio.url)
        services = open_services(Settings())
        yield TrainingStage(services, label_studio)
        services.close()


@pytest.fixture
def trainer(stage: TrainingStage) -> Iterator[None]:
    """`medsam3 trainer` as a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "backend.cli.main", "trainer"])
    yield
    process.terminate()
    assert process.wait(60) == 0


def test_train_and_what_came_of_it(stage: TrainingStage, trainer: None) -> None:
    stage.annotate(train=14, val=6)
    base = json_of("models", "list")["default"]
    ended = json_of("train", 7, "--steps", 120, "--learning-rate", "2e-3", "--seed", 3)
    assert (ended["state"], ended["step"], ended["trigger"]) == ("done", 120, "command")
    assert ended["gate"]["passed"], ended["gate"]["reasons"]
    version = ended["candidate"]

    listed = json_of("train", 7, "--list")["training_runs"]
    assert [one["id"] for one in listed] == [ended["id"]]
    assert version in run("train").stdout
    log = json_of("train", "--log", ended["id"])["log"]
    assert log[-1]["text"] == "done"
    assert f"{ended['gate']['reasons'][0]}"[:80] in run("train", "--log", ended["id"]).stdout
    (row,) = [one for one in json_of("models", "list")["models"] if one["version"] == version]
    assert (row["parent"], row["in_service_for"]) == (base, [7])
    printed = run("models", "list").stdout
    assert f"{version}  from {base}  serves [7]" in printed
    assert "Chongcong/Medical-SAM3  Medical-SAM3: medical text" in printed
    card = run("models", "show", version).stdout
    assert version in card
    assert "optic disc" in card

    assert json_of("models", "rollback", 7) == {"project": 7, "version": base, "previous": version}
    assert json_of("models", "promote", 7, version)["version"] == version
    refused = run("models", "promote", 8, version)
    assert refused.exit_code == 1
    assert "trained for project 7" in refused.stderr
    assert run("models", "show", "nothing").exit_code == 1


def test_a_run_that_fails_says_why_and_is_an_error(stage: TrainingStage, trainer: None) -> None:
    result = run("train", 7)
    assert result.exit_code == 1
    assert "no submitted annotations" in result.stdout


def test_a_run_that_waits_can_be_cancelled(stage: TrainingStage) -> None:
    asked = json_of("train", 7, "--no-wait")
    assert asked["new"]
    assert json_of("train", 7, "--no-wait") == {"id": asked["id"], "new": False}
    assert json_of("train", "--cancel", asked["id"])["state"] == "cancelled"
    assert "cancelled" in run("train", "--list").stdout
    assert run("train", "--cancel", "unknown").exit_code == 1
    assert json_of("train", "--log", asked["id"]) == {"log": []}
    assert run("train", "--log", "unknown").exit_code == 1
    with stage.services.database.reading() as session:
        (row,) = runs.list_runs(session, 7)
    assert (row.state, row.trigger) == (RunState.CANCELLED, Trigger.COMMAND)


def folder_of_discs(folder: Path) -> Path:
    """Images with masks, a group for each, on both sides of the split."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    rows = [("name", "group")]
    for split, count in (("train", 8), ("val", 3)):
        for number, group in zip(range(count), groups(split), strict=False):
            content, mask = disc_file(number + (100 if split == "val" else 0))
            name = f"{split}{number}"
            (folder / "images" / f"{name}.png").write_bytes(content)
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")
            rows.append((name, group))
    with (folder / "groups.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_simulate_plays_rounds_and_writes_what_came_of_them(
    installation: None, tmp_path: Path
) -> None:
    data, out = folder_of_discs(tmp_path / "data"), tmp_path / "out"
    played = run(
        "simulate",
        *("--data", data, "--prompt", "optic disc", "--out", out),
        *("--rounds", 2, "--per-round", 2, "--steps", 3, "--validation", 3),
        *("--strategies", "random,uncertainty", "--baseline", "unet", "--json"),
    )
    refused = "after 3 steps: 3 validation images are too few to judge by, 4 are needed"
    assert played.stderr.count(refused) == 4, played.stderr
    figures = json.loads(played.stdout)
    assert figures == json.loads((out / "figures.json").read_text())
    assert figures.keys() == {"random", "uncertainty", "baseline"}
    for strategy in ("random", "uncertainty"):
        rows = figures[strategy]["0"]
        assert [(row["round"], row["corrected"]) for row in rows] == [(0, 0), (1, 2), (2, 4)]
        assert all(0 <= row["dice"] <= 1 and row["apl"] >= 0 for row in rows)
        assert [len(row.get("boxed", [])) for row in rows] == [3, 0, 3]
    assert 0 <= figures["baseline"]["0"]["dice"] <= 1
    with (out / "figures.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    with Image.open(out / "dice.png") as plot:
        assert plot.size == (800, 500)
