"""Objects followed through the frames of a video, against facebook's implementation."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medsam3_model import MedSAM3
from medsam3_model.errors import PromptError
from medsam3_model.tracker import Tracker
from medsam3_model.video.propagation import Tracked
from tests.support import sam3_reference

SIZE = 224
Given = tuple[int, int, dict[str, Any]]


@pytest.fixture(scope="module")
def tracker(video_model: MedSAM3) -> Tracker:
    assert isinstance(video_model.tracker, Tracker)
    return video_model.tracker


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    frames = torch.from_numpy(sam3_reference.tracker_golden()["frames"])
    return (frames.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def truth(frame: int) -> NDArray[np.uint8]:
    packed = sam3_reference.tracker_golden()[f"truth{frame}"]
    return np.unpackbits(packed)[: SIZE * SIZE].reshape(SIZE, SIZE)


def prompts_of(case: str) -> list[Given]:
    golden = sam3_reference.tracker_golden()
    points, labels = golden["image/points"][0], golden["image/labels"][0]
    clicks = {"points": points, "point_labels": labels}
    one = {"points": points[:1], "point_labels": labels[:1]}
    match case.removeprefix("select_"):
        case "click":
            return [(0, 1, one)]
        case "clicks":
            return [(0, 1, clicks)]
        case "box":
            return [(0, 1, {"box": golden["image/box"][0]})]
        case "mask_both_ways":
            return [(5, 1, {"mask": truth(5)})]
        case "empty_mask":
            return [(0, 1, {"mask": np.zeros((SIZE, SIZE))})]
        case "two_objects":
            return [(0, 1, clicks), (0, 2, {"points": golden["video/second/points"]})]
        case "two_slices":
            inside = {"point_labels": golden["video/two_slices/labels"]}
            return [
                (frame, 1, {"points": golden[f"video/two_slices/points{frame}"]} | inside)
                for frame in (2, 7)
            ]
    raise ValueError(case)


@pytest.mark.parametrize(
    ("case", "tolerance"),
    [
        ("click", 2e-3),
        ("clicks", 2e-3),
        ("box", 2e-3),
        ("two_objects", 2e-3),
        ("two_slices", 2e-3),
        ("empty_mask", 2e-3),
        ("mask_both_ways", 5e-3),
        ("select_click", 2e-3),
        ("select_mask_both_ways", 5e-3),
    ],
)
def test_logits_of_every_frame(
    tracker: Tracker, pixels: torch.Tensor, case: str, tolerance: float
) -> None:
    golden, prompts = sam3_reference.tracker_golden(), prompts_of(case)
    start, selects = prompts[0][0], case.startswith("select_")
    answers = tracker.propagate_raw(pixels, prompts, start, memory_selection=selects)
    assert list(answers) == list(range(start, len(pixels)))
    if start:
        back = tracker.propagate_raw(pixels, prompts, start, True, memory_selection=selects)
        assert list(back) == list(range(start, -1, -1))
        answers |= back
    for frame, masks in zip(
        golden[f"video/{case}/frames"], golden[f"video/{case}/masks"], strict=True
    ):
        assert len(answers[int(frame)]) == len(masks)
        for logits, expected in zip(answers[int(frame)].values(), masks, strict=True):
            assert logits.shape == (64, 64)
            np.testing.assert_allclose(
                logits[::2, ::2], expected, rtol=0, atol=tolerance, err_msg=f"frame {frame}"
            )


def test_the_order_of_prompts_does_not_matter(tracker: Tracker, pixels: torch.Tensor) -> None:
    prompts = prompts_of("two_slices")
    forwards = tracker.propagate_raw(pixels[:8], prompts, 2)
    backwards = tracker.propagate_raw(pixels[:8], prompts[::-1], 2)
    for frame, logits in forwards.items():
        np.testing.assert_array_equal(logits[1], backwards[frame][1])


def test_objects_that_are_prompted_on_different_frames(
    tracker: Tracker, pixels: torch.Tensor
) -> None:
    """A frame that is prompted for one object says of the other that it is not there."""
    first, second = np.zeros((2, SIZE, SIZE), np.bool_)
    first[:120], second[100:] = True, True
    answers = tracker.propagate_raw(
        pixels[:3], [(0, 4, {"mask": first}), (2, 9, {"mask": second})], 0
    )
    assert {frame: list(logits) for frame, logits in answers.items()} == {
        frame: [4, 9] for frame in range(3)
    }
    assert (answers[0][9] == -1024).all()
    assert (answers[2][4] == -1024).all()


def test_of_masks_that_overlap_the_last_one_has_the_pixels(
    tracker: Tracker, pixels: torch.Tensor
) -> None:
    first, second = np.zeros((2, SIZE, SIZE), np.bool_)
    first[:, :150], second[:, 100:] = True, True
    answers = tracker.propagate_raw(
        pixels[:1], [(0, 1, {"mask": first}), (0, 2, {"mask": second})], 0
    )
    there = {key: (logits > 0).numpy() for key, logits in answers[0].items()}
    assert not (there[1] & there[2]).any()
    assert there[2].sum() > there[1].sum()


def test_memory_is_bounded(tracker: Tracker, pixels: torch.Tensor) -> None:
    """Features stay of six frames after the start, of six before this one, and of this one."""
    frames = 24
    propagation = tracker.propagation(
        lambda frame: tracker.frame_levels(tracker.trunk(pixels[frame % 10][None])),
        frames,
        prompts_of("click"),
    )
    tracked: Tracked = {}
    for answer in propagation.run(0, tracked=tracked):
        kept = [
            frame
            for frame, seen in tracked.items()
            if any(one.features is not None for one in seen)
        ]
        assert len(kept) <= 13, answer.frame


@pytest.mark.parametrize(
    ("prompts", "start", "sentence"),
    [
        ([], 0, "at least one prompt"),
        ([(10, 1, {"box": [1, 1, 9, 9]})], 0, "frame 10 is prompted"),
        ([(0, 1, {"box": [1, 1, 9, 9]})] * 2, 0, "prompted twice"),
        ([(0, 1, {"box": [9, 1, 1, 9]})], 0, "x1 > x0"),
        ([(0, 1, {"points": [[1, 1]], "point_labels": [2]})], 0, "1 points need as many labels"),
        ([(0, 1, {"points": [[np.nan, 1]]})], 0, "finite points"),
        ([(0, 1, {})], 0, "finite points, a box or a mask"),
        ([(0, 1, {"mask": np.zeros((64, 64))})], 0, "224 x 224 pixels"),
        ([(0, 1, {"mask": np.full((SIZE, SIZE), 0.5)})], 0, "of 0 and 1"),
        ([(0, 1, {"mask": np.zeros((SIZE, SIZE)), "box": [1, 1, 9, 9]})], 0, "the whole answer"),
        ([(0, 1, {"stroke": 1})], 0, "stroke, which is no kind of prompt"),
        ([(0, 1, {"box": [1, 1, 9, 9]})], 10, "no frame 10 to start from"),
    ],
)
def test_malformed_prompts_are_refused_by_name(
    tracker: Tracker, pixels: torch.Tensor, prompts: list[Given], start: int, sentence: str
) -> None:
    with pytest.raises(PromptError, match=sentence):
        tracker.propagate_raw(pixels, prompts, start)
