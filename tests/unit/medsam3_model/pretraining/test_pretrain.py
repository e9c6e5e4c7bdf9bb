"""Pretraining: its configuration, its data, and a short run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medsam3_model.checkpoints.presets import PRESETS, read_bundle_info
from medsam3_model.data.samples import split_of_group
from medsam3_model.data.template import TEMPLATE_DEMO_SLICES
from medsam3_model.errors import DatasetError
from medsam3_model.pretraining import pretrain
from medsam3_model.pretraining.data import SourceImage, balanced, load_sources, read_folder

CONFIG = Path(pretrain.__file__).with_name("pretrain.toml")
SHORT = """
preset = "tiny"
images_per_step = 2
workers = 1
weight_decay = 0.1
clip_norm = 5.0
loudness = 2.0
average = 0.9
phantoms_per_kind = 1
validate_every = 100
[shares]
polyps = 1
template = 1
shapes = 1
[loss]
presence = 1.0
[[phases]]
input_size = 72
steps = 2
warm_up = 1
learning_rate = [1e-3, 1e-4]
[[phases]]
input_size = 144
steps = 1
warm_up = 1
learning_rate = [1e-4, 1e-4]
"""


def _folder(root: Path) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(12):
        picture = np.full((60, 80, 3), 90 + number, np.uint8)
        mask = np.zeros((60, 80), np.uint8)
        mask[20:40, 30:60] = 255
        picture[mask > 0] = 200
        Image.fromarray(picture).save(root / "images" / f"p{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"p{number}.png")
    return root


def test_the_rate_warms_up_and_then_runs_between_its_ends() -> None:
    phase = pretrain.Phase(144, steps=101, warm_up=10, learning_rate=(1e-3, 1e-4))
    assert phase.rate(0) == pytest.approx(1e-4)
    assert phase.rate(50) == pytest.approx(5.5e-4)
    assert phase.rate(100) == pytest.approx(1e-4)


def test_shipped_configuration_reads_and_its_shares_are_whole() -> None:
    config = pretrain.read_config(CONFIG)
    assert sum(config.shares.values()) == pytest.approx(1.0)
    assert config.phases[-1].input_size == PRESETS[config.preset]().image_size


def test_quiet_features_cost_nothing_and_loud_ones_do() -> None:
    assert pretrain.loudness([torch.full((1, 2, 4, 4), 0.9)]).item() == 0
    assert pretrain.loudness([torch.full((1, 2, 4, 4), 3.0)]).item() == pytest.approx(4.0)


def test_validation_groups_and_demo_slices_are_never_loaded(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "polyps")
    sources = load_sources({"kvasir_seg": folder}, phantoms_per_kind=1)
    names = {sample.name for sample in sources["kvasir_seg"]}
    assert names == {f"p{n}" for n in range(12) if split_of_group(f"p{n}") == "train"}
    held_out = {f"mni152_axial_{index:03d}" for index in TEMPLATE_DEMO_SLICES}
    assert not held_out & {sample.name for sample in sources["template"]}


def test_rare_looks_of_microscopy_come_up_more_often() -> None:
    def sample(name: str, family: str, colour: tuple[int, int, int]) -> SourceImage:
        return SourceImage(name, family, np.full((4, 4, 3), colour, np.uint8), 1.0, {})

    dark = [sample(f"dark{n}", "microscopy", (20, 20, 20)) for n in range(40)]
    stained = [sample(f"stained{n}", "microscopy", (220, 160, 200)) for n in range(10)]
    grey = [sample("grey", "microscopy", (180, 180, 180))]
    drawn = [one.name for one in balanced([*dark, *stained, *grey])]
    assert [drawn.count(one) for one in ("dark0", "stained0", "grey")] == [1, 2, 6]
    skin = [sample("fair", "skin", (220, 170, 150)), sample("dark", "skin", (60, 50, 40))]
    assert balanced([*skin, *skin]) == [*skin, *skin]


def test_a_set_that_may_not_be_trained_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="may be trained on"):
        list(read_folder("acdc", tmp_path, "train"))


def test_a_short_run_writes_a_bundle_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    config, out = tmp_path / "short.toml", tmp_path / "out"
    config.write_text(SHORT.replace("polyps", "kvasir_seg"))
    data = f"kvasir_seg={_folder(tmp_path / 'polyps')}"
    arguments = ["--config", str(config), "--out", str(out), "--data", data]
    threads = torch.get_num_threads()
    try:
        pretrain.main(arguments)
        assert read_bundle_info(out / "bundle").input_size == 144
        first = load_file(out / "bundle" / "model.safetensors")
        state = torch.load(out / "checkpoint.pt", weights_only=True)
        assert (state["phase"], state["step"]) == (1, 1)
        pretrain.main(arguments)
    finally:
        torch.set_num_threads(threads)
    second = load_file(out / "bundle" / "model.safetensors")
    assert all(torch.equal(first[key], second[key]) for key in first)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    scores = next(line["validation"] for line in lines if "validation" in line)
    assert 0 <= scores["template"]["T_brain"] <= 1
