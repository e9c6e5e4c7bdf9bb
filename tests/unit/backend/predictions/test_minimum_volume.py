"""Objects of a stack that are too small are left out, and nothing else is."""

import numpy as np
import pytest

from backend.errors import VolumeError
from backend.labeling.concepts import Concept
from backend.labeling.regions import InstanceMask
from backend.predictions.minimum_volume import MinimumVolume, PageInstances

LESION, DARK_LESION = Concept("lesion", "Lesion", (), None), Concept("dark", "Lesion", (), None)
LIVER = Concept("liver", "Liver", (), None)
SIZE = (12, 16)


def instance(rows: slice, columns: slice, size: tuple[int, int] = SIZE) -> InstanceMask:
    mask = np.zeros(size, np.bool_)
    mask[rows, columns] = True
    return InstanceMask(mask, 0.9)


def drawn(pages: list[PageInstances]) -> list[dict[str, list[int]]]:
    """Areas of what is left, by page and phrase."""
    return [
        {concept.phrase: [int(one.mask.sum()) for one in found] for concept, found in page}
        for page in pages
    ]


SPECK = instance(slice(0, 1), slice(0, 2))
HIGH = instance(slice(4, 6), slice(4, 8))
LOW = instance(slice(6, 8), slice(4, 8))


def test_small_objects_go_on_all_their_slices_and_large_ones_stay_whole() -> None:
    pages: list[PageInstances] = [
        [(LESION, [SPECK, HIGH])],
        [(LESION, [SPECK]), (DARK_LESION, [LOW])],  # the object goes on by another phrase
        [(LESION, [HIGH])],
        [(LESION, [])],
        [(LESION, [HIGH])],  # the same place, and a slice between
    ]
    minimum = MinimumVolume(4, 0.1, SIZE, {"Lesion": 1.0})
    assert drawn(minimum.kept(pages)) == [
        {"lesion": [8]},
        {"lesion": [], "dark": [8]},
        {"lesion": [8]},
        {"lesion": []},
        {"lesion": []},
    ]
    exactly = MinimumVolume(4, 0.125, SIZE, {"Lesion": 1.0})
    assert drawn(exactly.kept(pages))[4] == {"lesion": [8]}, "1.0 ml is not below 1.0 ml"


def test_labels_have_minima_of_their_own_and_zero_keeps_all() -> None:
    pages: list[PageInstances] = [[(LIVER, [SPECK]), (LESION, [SPECK])]]
    default = MinimumVolume(4, 0.1, SIZE, {"Lesion": 0.0}, default_ml=1.0)
    assert drawn(default.kept(pages)) == [{"liver": [], "lesion": [2]}]
    other = MinimumVolume(4, 0.1, SIZE, {"Lesion": 1.0})
    assert drawn(other.kept(pages)) == [{"liver": [2], "lesion": []}]


def test_pages_of_another_size_have_no_volume() -> None:
    large = instance(slice(0, 1), slice(0, 2), (24, 32))
    with pytest.raises(VolumeError, match="the pages of task 4 have another size"):
        MinimumVolume(4, 0.1, SIZE, {"Lesion": 1.0}).kept([[(LESION, [large])]])
