"""Fine-tuning on a folder, from the command line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsam3_model.checkpoints.detectors import load_detector
from medsam3_model.data.datasets import load_dataset
from medsam3_model.data.samples import split_of_group
from medsam3_model.training import folder
from tests.support.discs import disc


def folder_of_discs(root: Path, count: int) -> Path:
    for part in ("images", "masks/disc"):
        (root / part).mkdir(parents=True)
    for seed in range(count):
        image, mask = disc(seed)
        Image.fromarray(image).save(root / "images" / f"{seed}.png")
        if seed % 2:
            Image.fromarray(mask).save(root / "masks/disc" / f"{seed}.png")
    return root


def test_training_images_of_a_folder(tmp_path: Path) -> None:
    dataset = load_dataset(folder_of_discs(tmp_path / "discs", 10))
    images = folder.training_images(dataset, {"disc": "optic disc"})
    names = [Path(one.key).name for one in images]
    assert names == [str(n) for n in range(10) if split_of_group(str(n)) == "train"]
    for name, one in zip(names, images, strict=True):
        layer = one.layers()["optic disc"]
        np.testing.assert_array_equal(layer > 0, disc(int(name))[1] & bool(int(name) % 2))
        np.testing.assert_array_equal(one.read(), disc(int(name))[0])


def test_the_command_writes_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of_discs(tmp_path / "discs", 4)
    out = tmp_path / "new.safetensors"
    command = ["--data", str(data), "--out", str(out), "--steps", "1", "--name", "discs"]
    folder.main([*command, "--prompt", "optic disc"])
    found = load_detector(out)
    assert (found.name, found.base) == ("discs", "tiny")
    assert capsys.readouterr().out.startswith(f"{out}: version discs-")
