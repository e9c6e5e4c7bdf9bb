"""Neighbours: further corrected slices leave the rest of a stack as good as it was."""

from functools import lru_cache

import numpy as np

from medsam3_model.data.template import template_slice
from medsam3_model.evaluation.propagation import dice_3d
from medsam3_model.predictor import MedSAM3
from medsam3_model.types import ImageEmbedding
from medsam3_model.video.slices import CorrectedSlice
from medsam3_model.video.stacks import propagate_stack

SLICES = [template_slice(index) for index in range(6, 160, 10)]
TRUTH = np.stack([one.masks["brain"] for one in SLICES])


def test_slices_that_the_text_does_not_know_do_not_silence_it_on_those_it_knows() -> None:
    model = MedSAM3.from_pretrained("tiny", device="cpu")
    text = model.encode_text(["brain"])

    @lru_cache
    def encoded(place: int) -> ImageEmbedding:
        return model.encode_image(SLICES[place].image)

    def drawn(corrected: list[int]) -> np.ndarray:
        masks = np.zeros_like(TRUTH)
        for one in propagate_stack(
            model,
            encoded,
            len(SLICES),
            [CorrectedSlice(place, 1, TRUTH[place]) for place in corrected],
            texts={1: text},
            pictures=lambda place: SLICES[place].image,
        ):
            masks[one.place] = one.mask
        return masks

    # At the lower end of the brain the text answers with something else.
    known = [model.detect_all(encoded(place), text)[0].concept_mask()[0] for place in (0, 7)]
    assert dice_3d(known[0], TRUTH[0]) < 0.3
    assert dice_3d(known[1], TRUTH[7]) > 0.98
    one, three = (dice_3d(drawn(places), TRUTH) for places in ([7], [0, 7, 14]))
    assert one > 0.95
    assert three > 0.985
    assert three > one - 0.001
