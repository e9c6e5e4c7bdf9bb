"""Objects without a name: everything on a picture, and everything like an exemplar."""

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3_model import MedSAM3
from medsam3_model.boxes import tight_box
from medsam3_model.errors import PromptError
from medsam3_model.pretraining.phantoms.phantoms import phantom
from medsam3_model.proposals.everything import Proposal, distinct, propose_everything
from medsam3_model.proposals.exemplars import segment_like
from medsam3_model.types import ImageEmbedding, Window
from tests.support.masks import dice

PICTURE = phantom("microscopy", 3)
LAYER = PICTURE.layers["cell nucleus"]
NUCLEI = [number == LAYER for number in range(1, LAYER.max() + 1) if (number == LAYER).sum() > 60]
LARGEST = max(NUCLEI, key=lambda nucleus: int(nucleus.sum()))
BOX = tight_box(LARGEST)[None].astype(np.float32)


@pytest.fixture(scope="module")
def model() -> MedSAM3:
    return MedSAM3.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def image(model: MedSAM3) -> ImageEmbedding:
    return model.encode_image(PICTURE.image)


def share_found(masks: NDArray[np.bool_]) -> float:
    return float(np.mean([any(dice(mask, one) > 0.5 for mask in masks) for one in NUCLEI]))


def test_everything_is_proposed_once(model: MedSAM3, image: ImageEmbedding) -> None:
    found = propose_everything(model, image)
    assert share_found(found.masks) > 0.4
    assert (np.diff(found.scores) <= 0).all()
    shared = np.einsum("ahw,bhw->ab", found.masks.astype(int), found.masks.astype(int))
    areas = shared.diagonal()
    iou = shared / (areas[:, None] + areas[None] - shared)
    assert (iou - np.eye(len(iou))).max() <= 0.5  # at the image's size
    assert len(propose_everything(model, image, most=2)) == 2


def test_everything_like_an_exemplar(model: MedSAM3, image: ImageEmbedding) -> None:
    def encode(window: Window) -> ImageEmbedding:
        x0, y0, x1, y1 = window
        return model.encode_image(PICTURE.image[y0:y1, x0:x1])

    text = model.encode_text(["cell nucleus"])
    found = segment_like(model, image, text, BOX, [1], encode)
    assert dice(found.masks[0], LARGEST) > 0.8
    assert share_found(found.masks) > 0.7
    background = sum(mask[LAYER == 0].sum() > mask.sum() / 2 for mask in found.masks)
    assert background <= 2


def test_without_an_exemplar_nothing_is_meant(model: MedSAM3, image: ImageEmbedding) -> None:
    text = model.encode_text(["cell nucleus"])
    with pytest.raises(PromptError, match="no exemplar shows what is meant"):
        segment_like(model, image, text, BOX, [0])


def test_of_the_same_object_the_surest_is_kept() -> None:
    def proposal(column: int, iou: float) -> Proposal:
        logits = np.full((40, 40), -5, np.float32)
        logits[10:20, column : column + 10] = 5
        return Proposal(logits, iou)

    kept = distinct([proposal(5, 0.8), proposal(6, 0.9), proposal(25, 0.75)], 10)
    assert [each.iou for each in kept] == [0.9, 0.75]
