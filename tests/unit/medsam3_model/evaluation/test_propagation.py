"""Evaluation of propagation: volumes with masks as they are stored, and figures side by side."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medsam3_model.errors import DatasetError
from medsam3_model.evaluation.propagation import evaluate_propagation
from medsam3_model.evaluation.volumes import read_volumes
from tests.support.ball_stack import Ball
from tests.support.discs import small_model


def stored(folder: Path, ball: Ball) -> None:
    """The ball's stack as NIfTI files, value 1 in its upper half and 4 in its lower one."""
    labels = ball.masks.astype(np.int16)
    labels[:, ball.size[0] // 2 :] *= 4
    for kind, values in (("images", ball.pages), ("labels", labels)):
        (folder / kind).mkdir()
        # Columns, rows, slices, from the patient's left to the right and from behind to the front.
        turned = values.transpose(2, 1, 0)[::-1, ::-1]
        nibabel.save(nibabel.Nifti1Image(turned, np.eye(4)), folder / kind / "ball.nii.gz")


def test_a_pair_of_files_gives_figures_beside_what_needs_no_model(tmp_path: Path) -> None:
    ball = Ball()
    stored(tmp_path, ball)
    (volume,) = read_volumes(tmp_path, None, ["1+4=ball"])
    assert volume.phrases == {"ball": "ball"}
    assert volume.masks["ball"].sum() == ball.masks.sum()
    report = evaluate_propagation(small_model(), [volume], "balls", slices=2)
    one, two = report.objects
    areas = volume.masks["ball"].sum((1, 2))
    assert one.corrected == (areas.argmax(),)
    assert set(one.corrected) < set(two.corrected)
    for row in report.objects:
        assert row.propagation > max(row.copy, row.interpolation)
        assert row.text is not None
    assert min(one.propagation, two.propagation) > 0.95
    assert json.loads(report.to_json())["objects"][0]["volume"] == "ball"
    assert report.render() is not None
    (volume,) = read_volumes(tmp_path / "images" / "ball.nii.gz", tmp_path / "labels/ball.nii.gz")
    assert sorted(volume.masks) == ["1", "4"]
    assert not volume.phrases


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    stored(tmp_path, Ball())
    image = tmp_path / "images" / "ball.nii.gz"
    for labels, prompts, sentence in (
        (None, [], "--labels is missing"),
        (tmp_path / "none.nii", [], "there is no file"),
        (tmp_path / "labels/ball.nii.gz", ["7=liver"], "none of the values"),
    ):
        with pytest.raises(DatasetError, match=sentence):
            list(read_volumes(image, labels, prompts))
    with pytest.raises(DatasetError, match="no liver"):
        list(read_volumes(Path("template"), None, ["liver"]))
