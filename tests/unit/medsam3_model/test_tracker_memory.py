"""What the tracker remembers of a frame, against facebook's implementation."""

import numpy as np
import pytest
import torch

from medsam3_model import MedSAM3
from medsam3_model.tracker import Tracker
from tests.support import sam3_reference

SIZE = 224


@pytest.mark.parametrize("binary", [False, True])
def test_the_memory_of_a_frame(video_model: MedSAM3, binary: bool) -> None:
    tracker = video_model.tracker
    assert isinstance(tracker, Tracker)
    golden = sam3_reference.tracker_golden()
    frame = torch.from_numpy(golden["frames"][:1]).permute(0, 3, 1, 2).float()
    mask = torch.from_numpy(golden["image/clicks/masks"]).float().reshape(1, 1, 64, 64)
    logits = torch.nn.functional.interpolate(
        mask, (SIZE, SIZE), mode="bilinear", align_corners=False
    )
    with torch.inference_mode():
        levels, _ = tracker.frame_levels(tracker.trunk((frame / 255 - 0.5) / 0.5))
        coarsest = levels[-1].flatten(2).permute(2, 0, 1)
        memory, _ = tracker.model._encode_new_memory(coarsest, logits, torch.ones(1, 1), binary)
    expected = golden[f"memory/{'hard' if binary else 'soft'}"]
    ours = memory.float().permute(1, 2, 0).reshape(expected.shape)
    # Kept as bfloat16, as facebook does.
    rounded = torch.from_numpy(expected).to(torch.bfloat16).float()
    np.testing.assert_allclose(ours, rounded, rtol=2**-7, atol=5e-5)
