"""Training images of a folder."""

from pathlib import Path

import numpy as np

from medsam3_model.data.datasets import load_dataset
from medsam3_model.data.samples import split_of_group
from medsam3_model.training import folder
from tests.support.discs import disc, folder_of_discs


def test_training_images_of_a_folder(tmp_path: Path) -> None:
    dataset = load_dataset(folder_of_discs(tmp_path / "discs", 10))
    images = folder.training_images(dataset, {"disc": "optic disc"})
    names = [Path(one.key).name for one in images]
    assert names == [str(n) for n in range(10) if split_of_group(str(n)) == "train"]
    for name, one in zip(names, images, strict=True):
        layer = one.layers()["optic disc"]
        np.testing.assert_array_equal(layer > 0, disc(int(name))[1] & bool(int(name) % 2))
        np.testing.assert_array_equal(one.read(), disc(int(name))[0])
