"""Slices of the brain template, and their true masks."""

import numpy as np
import pytest

from medsam3_model.data.template import (
    TEMPLATE_CONCEPTS,
    TEMPLATE_DEMO_SLICES,
    demo_slices,
    template_slice,
)
from medsam3_model.errors import DatasetError


def test_every_demo_slice_shows_every_concept() -> None:
    slices = demo_slices()
    assert len(slices) == len(TEMPLATE_DEMO_SLICES) >= 16
    for one in slices:
        assert one.image.dtype == np.uint8
        assert one.image.shape == (233, 197, 3)
        assert set(one.masks) == set(TEMPLATE_CONCEPTS)
        for mask in one.masks.values():
            assert mask.dtype == np.bool_
            assert mask.shape == (233, 197)
            assert mask.sum() > 500


def test_tissues_lie_inside_the_brain_and_apart() -> None:
    one = template_slice(85)
    grey, white, brain = (one.masks[c] for c in ("grey matter", "white matter", "brain"))
    assert not (grey & ~brain).any()
    assert (white & ~brain).sum() == 0
    assert (grey & white).sum() < 0.01 * brain.sum()


def test_white_matter_is_brighter_than_grey_on_t1() -> None:
    one = template_slice(85)
    grey = one.image[one.masks["grey matter"], 0].mean()
    assert one.image[one.masks["white matter"], 0].mean() > grey + 20


def test_front_of_the_head_is_at_the_top() -> None:
    # The cerebellum is the only brain on the low slices, and it lies at the back.
    rows = np.nonzero(template_slice(20).masks["brain"])[0]
    assert rows.mean() > 233 / 2


def test_columns_run_from_the_subjects_right() -> None:
    # The template is symmetric, so the order is read off the plane that the slice was made from.
    from medsam3_model.data.template import _volume

    volume = _volume("t1")
    image = template_slice(85).image[:, :, 0]
    assert image[0, 0] == volume[-1, -1, 85]
    assert image[100, 30] == volume[197 - 1 - 30, 233 - 1 - 100, 85]


def test_count_spreads_over_the_held_out_slices() -> None:
    some = demo_slices(16)
    indices = [one.index for one in some]
    assert len(set(indices)) == 16
    assert indices[0] == TEMPLATE_DEMO_SLICES[0]
    assert indices[-1] == TEMPLATE_DEMO_SLICES[-1]
    assert len({one.name for one in some}) == 16


@pytest.mark.parametrize("index", [-1, 189])
def test_a_slice_outside_the_volume_is_refused(index: int) -> None:
    with pytest.raises(DatasetError, match="0 to 188"):
        template_slice(index)


def test_more_slices_than_there_are_is_refused() -> None:
    with pytest.raises(DatasetError, match="asked for 99"):
        demo_slices(99)
