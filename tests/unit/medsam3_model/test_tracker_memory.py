"""The tracker's memory: frames of a video after a prompt, against facebook's implementation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import (
    Sam3TrackerVideoInferenceSession as Session,
)

from medsam3_model import MedSAM3
from medsam3_model.tracker_memory import TrackerModel
from tests.support import sam3_reference

SIZE = 224


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return sam3_reference.tracker_golden()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MedSAM3:
    path = tmp_path_factory.mktemp("video") / "sam3.pt"
    tensors = sam3_reference.facebook_tensors() | sam3_reference.tracker_tensors()
    torch.save({"model": tensors}, path)
    return MedSAM3.from_pretrained(path, config=sam3_reference.video_config(), device="cpu")


@pytest.fixture
def tracker(model: MedSAM3) -> TrackerModel:
    return model.tracker.model


@pytest.fixture
def session(golden: dict[str, np.ndarray]) -> Session:
    frames = torch.from_numpy(golden["frames"]).permute(0, 3, 1, 2).float()
    pixels = (frames / 255 - 0.5) / 0.5
    return Session(video=pixels, video_height=SIZE, video_width=SIZE, dtype=torch.float32)


def prompt(
    tracker: TrackerModel, session: Session, frame: int, points: Any, labels: Sequence[int]
) -> None:
    """Points of one object on a frame; labels 2 and 3 are the corners of a box."""
    object_index = session.obj_id_to_idx(1)
    coordinates = torch.from_numpy(np.asarray(points, np.float32)).reshape(1, 1, -1, 2)
    inputs = {"point_coords": coordinates, "point_labels": torch.tensor(labels).reshape(1, 1, -1)}
    session.add_point_inputs(object_index, frame, inputs)
    session.obj_with_new_inputs.append(1)
    with torch.inference_mode():
        tracker(session, frame_idx=frame)


def give_mask(tracker: TrackerModel, session: Session, frame: int, mask: np.ndarray) -> None:
    tensor = torch.from_numpy(mask.astype(np.float32))[None, None]
    session.add_mask_inputs(session.obj_id_to_idx(1), frame, tensor)
    session.obj_with_new_inputs.append(1)
    with torch.inference_mode():
        tracker(session, frame_idx=frame)


def check(
    tracker: TrackerModel,
    session: Session,
    golden: dict[str, np.ndarray],
    case: str,
    start: int,
    tolerance: float,
) -> None:
    """Go both ways from `start` and compare the logits of every frame."""
    answers = {}
    for reverse in (False, True):
        for output in tracker.propagate_in_video_iterator(
            session, start_frame_idx=start, reverse=reverse
        ):
            answers[output.frame_idx] = output.pred_masks[0, 0, ::2, ::2].float().numpy()
    expected = golden[f"video/{case}/masks"]
    for frame, logits in zip(golden[f"video/{case}/frames"], expected, strict=True):
        np.testing.assert_allclose(
            answers[int(frame)], logits[0], rtol=0, atol=tolerance, err_msg=f"frame {frame}"
        )


@pytest.mark.parametrize("case", ["click", "clicks", "box"])
def test_prompts_on_the_first_frame(
    tracker: TrackerModel, session: Session, golden: dict[str, np.ndarray], case: str
) -> None:
    points, labels = golden["image/points"][0], [int(label) for label in golden["image/labels"][0]]
    if case == "box":
        points, labels = golden["image/box"][0].reshape(2, 2), [2, 3]
    if case == "click":
        points, labels = points[:1], labels[:1]
    prompt(tracker, session, 0, points, labels)
    check(tracker, session, golden, case, start=0, tolerance=2e-3)


def test_clicks_on_two_frames(
    tracker: TrackerModel, session: Session, golden: dict[str, np.ndarray]
) -> None:
    labels = [int(label) for label in golden["video/two_slices/labels"]]
    for frame in (2, 7):
        prompt(tracker, session, frame, golden[f"video/two_slices/points{frame}"], labels)
    check(tracker, session, golden, "two_slices", start=2, tolerance=2e-3)


def test_a_mask_in_the_middle_goes_both_ways(
    tracker: TrackerModel, session: Session, golden: dict[str, np.ndarray]
) -> None:
    mask = np.unpackbits(golden["truth5"])[: SIZE * SIZE].reshape(SIZE, SIZE)
    give_mask(tracker, session, 5, mask)
    check(tracker, session, golden, "mask_both_ways", start=5, tolerance=5e-3)


def test_an_empty_mask_says_that_there_is_no_object(
    tracker: TrackerModel, session: Session, golden: dict[str, np.ndarray]
) -> None:
    give_mask(tracker, session, 0, np.zeros((SIZE, SIZE)))
    check(tracker, session, golden, "empty_mask", start=0, tolerance=2e-3)


@pytest.mark.parametrize("binary", [False, True])
def test_the_memory_of_a_frame(
    tracker: TrackerModel,
    session: Session,
    golden: dict[str, np.ndarray],
    binary: bool,
) -> None:
    pixels = session.get_frame(0)[None]
    mask = torch.from_numpy(golden["image/clicks/masks"]).float().reshape(1, 1, 64, 64)
    logits = torch.nn.functional.interpolate(
        mask, (SIZE, SIZE), mode="bilinear", align_corners=False
    )
    with torch.inference_mode():
        features = tracker.get_image_features(pixels).fpn_hidden_states[-1]
        memory, _ = tracker._encode_new_memory(features, logits, torch.ones(1, 1), binary)
    expected = golden[f"memory/{'hard' if binary else 'soft'}"]
    ours = memory.float().permute(1, 2, 0).reshape(expected.shape)
    # Kept as bfloat16, as facebook does.
    rounded = torch.from_numpy(expected).to(torch.bfloat16).float()
    np.testing.assert_allclose(ours, rounded, rtol=2**-7, atol=5e-5)
