"""A concept through a video: the same objects as facebook's implementation finds, on all frames."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medsam3_model import MedSAM3
from medsam3_model.errors import PromptError
from medsam3_model.types import ImageEmbedding
from medsam3_model.video.concepts import track_concept
from medsam3_model.video.lives import ConceptSettings
from tests.support import sam3_reference

COUNT = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MedSAM3:
    path = tmp_path_factory.mktemp("concepts") / "sam3.pt"
    torch.save({"model": sam3_reference.concept_tensors()}, path)
    return MedSAM3.from_pretrained(path, config=sam3_reference.video_config(), device="cpu")


@pytest.fixture(scope="module")
def images(model: MedSAM3) -> list[ImageEmbedding]:
    return model.encode_images(list(sam3_reference.tracker_golden()["frames"][:COUNT]))


def settings_of(case: str) -> ConceptSettings:
    description = sam3_reference.concept_description()
    thresholds, options = description["thresholds"], description["kw"]
    heuristics = description["cases"][case.removesuffix("_select")]
    return ConceptSettings(
        detection_score=thresholds["score_threshold_detection"],
        detection_overlap=options["det_nms_thresh"],
        new_score=thresholds["new_det_thresh"],
        match_overlap=options["assoc_iou_thresh"],
        hold_back=heuristics["hotstart_delay"],
        most_unmatched=heuristics["hotstart_unmatch_thresh"],
        most_doubled=heuristics["hotstart_dup_thresh"],
        mend_every=heuristics["recondition_every_nth_frame"],
        occlusion_overlap=options["suppress_overlapping_based_on_recent_occlusion_threshold"],
        speck_pixels=options["fill_hole_area"],
        memory_selection=case.endswith("_select"),
    )


def unpacked(packed: NDArray[np.uint8], count: int) -> NDArray[np.bool_]:
    side = 224 // 2
    return np.unpackbits(packed)[: count * side * side].reshape(count, side, side) > 0


@pytest.mark.parametrize("case", ["plain", "plain_select", "heuristics"])
def test_the_same_objects_on_every_frame(
    model: MedSAM3, images: list[ImageEmbedding], case: str
) -> None:
    golden = sam3_reference.concept_golden()
    text = model.encode_text([sam3_reference.concept_description()["phrase"]])
    frames = list(track_concept(model, images.__getitem__, COUNT, text, settings_of(case)))
    assert [one.frame for one in frames] == list(range(COUNT))
    for one in frames:
        where = f"{case}/{one.frame}"
        assert one.object_ids == tuple(golden[f"{where}/ids"]), where
        np.testing.assert_allclose(one.scores, golden[f"{where}/scores"], atol=1e-4)
        expected = unpacked(golden[f"{where}/masks"], len(one.object_ids))
        ours = one.masks[:, ::2, ::2]
        common, union = (ours & expected).sum((1, 2)), (ours | expected).sum((1, 2))
        # A pixel where two objects meet may go to either.
        assert (union - common <= 2).all(), where
        assert one.masks.sum(0).max(initial=0) <= 1


def test_what_cannot_be_followed_is_refused_by_name(
    model: MedSAM3, images: list[ImageEmbedding]
) -> None:
    both = model.encode_text(["optic cup", "optic disc"])
    with pytest.raises(PromptError, match="one phrase is followed at a time, not 2"):
        next(track_concept(model, images.__getitem__, COUNT, both))
    without = MedSAM3(model.model, model.tokenizer, device="cpu")
    with pytest.raises(PromptError, match="has no memory of frames"):
        next(track_concept(without, images.__getitem__, COUNT, both[0]))
