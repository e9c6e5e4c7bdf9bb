"""Objects without a name: everything on a picture, and everything like an exemplar."""

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3_model import MedSAM3
from medsam3_model.errors import PromptError
from medsam3_model.proposals.everything import Proposal, distinct, propose_everything
from medsam3_model.proposals.exemplars import segment_like
from medsam3_model.types import ImageEmbedding
from tests.support.masks import dice

H, W = 200, 240
ALIKE = [(50, 50, 24), (120, 60, 22), (190, 50, 25), (60, 140, 23)]
OTHER = (170, 140, 50)


def disk(x: float, y: float, radius: float) -> NDArray[np.bool_]:
    row, column = np.mgrid[:H, :W] + 0.5
    return np.asarray((column - x) ** 2 + (row - y) ** 2 <= radius**2)


@pytest.fixture(scope="module")
def model() -> MedSAM3:
    return MedSAM3.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def image(model: MedSAM3) -> ImageEmbedding:
    picture = np.full((H, W, 3), 60.0)
    for place in ALIKE:
        picture[disk(*place)] = (190, 90, 150)
    picture[disk(*OTHER)] = (120, 150, 110)
    picture += np.random.default_rng(0).normal(0, 5, picture.shape)
    return model.encode_image(picture.clip(0, 255).astype(np.uint8))


def found_of(masks: NDArray[np.bool_], places: list[tuple[int, int, int]]) -> int:
    return sum(any(dice(mask, disk(*place)) > 0.7 for mask in masks) for place in places)


def test_everything_is_proposed_once(model: MedSAM3, image: ImageEmbedding) -> None:
    found = propose_everything(model, image)
    assert found_of(found.masks, [*ALIKE, OTHER]) >= 4
    assert len(found) <= 12
    assert (np.diff(found.scores) <= 0).all()
    assert len(propose_everything(model, image, most=2)) == 2


def test_everything_like_an_exemplar(model: MedSAM3, image: ImageEmbedding) -> None:
    text = model.encode_text(["cell nucleus"])
    box = np.array([[26, 26, 74, 74]], np.float32)
    found = segment_like(model, image, text, box, [1])
    assert dice(found.masks[0], disk(*ALIKE[0])) > 0.8
    assert found_of(found.masks, ALIKE) >= 3
    assert found_of(found.masks, [OTHER]) == 0


def test_without_an_exemplar_nothing_is_meant(model: MedSAM3, image: ImageEmbedding) -> None:
    text = model.encode_text(["cell nucleus"])
    box = np.array([[26, 26, 74, 74]], np.float32)
    with pytest.raises(PromptError, match="no exemplar shows what is meant"):
        segment_like(model, image, text, box, [0])


def test_of_the_same_object_the_surest_is_kept() -> None:
    def proposal(x: int, iou: float) -> Proposal:
        return Proposal(np.where(disk(x, 50, 20), 5.0, -5.0).astype(np.float32), iou)

    kept = distinct([proposal(50, 0.8), proposal(54, 0.9), proposal(150, 0.75)], 10)
    assert [each.iou for each in kept] == [0.9, 0.75]
