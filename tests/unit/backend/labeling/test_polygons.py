"""Outlines of masks as polygons, and polygons filled again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw
from scipy import ndimage

from backend.errors import RegionError
from backend.labeling.polygons import _components, _joined, fill, outline
from tests.support.masks import dice

SIZE = (120, 160)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]


def disk(row: float, column: float, radius: float) -> np.ndarray:
    return np.hypot(ROWS + 0.5 - row, COLUMNS + 0.5 - column) < radius


def blob(seed: int, sigma: float = 9.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=SIZE)
    smooth = ndimage.gaussian_filter(noise, sigma)
    return smooth > 0.6 * smooth.std()


def filled(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for polygon in polygons:
        mask |= fill(polygon, *shape)
    return mask


SHAPES = {
    "disk": disk(60, 80, 40),
    "small disk": disk(60, 80, 4),
    "ring": disk(60, 80, 50) & ~disk(65, 70, 25),
    "two holes": disk(60, 80, 50) & ~disk(45, 60, 12) & ~disk(70, 95, 14),
    "cut by the border": disk(0, 160, 50),
    "two parts": disk(30, 30, 20) | disk(80, 110, 30),
    "island in a hole": (disk(60, 80, 50) & ~disk(60, 80, 35)) | disk(60, 80, 15),
    "blob": blob(0),
    "another blob": blob(1, 5.0),
    "rectangle": (ROWS >= 3) & (ROWS < 9) & (COLUMNS >= 10) & (COLUMNS < 100),
    "thin line": ROWS == 60,
    "diagonal line": np.eye(*SIZE, dtype=bool),
    "one pixel": (ROWS == 5) & (COLUMNS == 7),
    "all": np.ones(SIZE, dtype=bool),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_polygon_keeps_its_mask(name):
    mask = SHAPES[name]
    polygons = outline(mask)
    assert dice(filled(polygons, SIZE), mask) >= 0.98
    assert all(polygon.shape[1] == 2 and len(polygon) >= 3 for polygon in polygons)
    for polygon in polygons:
        assert (polygon >= 0).all()
        assert (polygon <= (SIZE[1], SIZE[0])).all()


@pytest.mark.parametrize("name", ["disk", "blob", "two parts", "cut by the border"])
def test_another_rasteriser_sees_the_same_shape(name):
    """Pillow draws the border too, which adds half a pixel all round."""
    image = Image.new("1", SIZE[::-1])
    draw = ImageDraw.Draw(image)
    for polygon in outline(SHAPES[name]):
        draw.polygon([(x - 0.5, y - 0.5) for x, y in polygon.tolist()], fill=1)
    assert dice(np.asarray(image), SHAPES[name]) >= 0.96


def test_points_are_few():
    assert len(outline(SHAPES["disk"])[0]) < 40
    assert len(outline(SHAPES["rectangle"])[0]) == 4
    np.testing.assert_array_equal(
        sorted(outline(SHAPES["rectangle"])[0].tolist()), [[10, 3], [10, 9], [100, 3], [100, 9]]
    )


def test_components_largest_first_and_specks_left_out():
    mask = SHAPES["two parts"].copy()
    mask[0, 159] = True
    first, second = outline(mask)
    assert fill(first, *SIZE)[80, 110]
    assert fill(second, *SIZE)[30, 30]


def test_a_speck_that_is_all_there_is_stays():
    assert len(outline(SHAPES["one pixel"])) == 1
    mask = SHAPES["one pixel"] | ((ROWS == 90) & (COLUMNS == 90))
    assert len(outline(mask)) == 2


def test_corners_connect():
    mask = np.zeros((4, 4), dtype=bool)
    mask[0:2, 0:2] = mask[2:4, 2:4] = True
    (polygon,) = outline(mask)
    np.testing.assert_array_equal(fill(polygon, 4, 4), mask)


def test_nothing_to_outline():
    assert outline(np.zeros(SIZE, dtype=bool)) == []


@settings(deadline=None)
@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_the_exact_outline_fills_to_the_mask(mask):
    """Holes, islands in holes and touching corners included."""
    if mask.any():
        rings = [_joined(component) for component in _components(mask)]
        np.testing.assert_array_equal(filled(rings, mask.shape), mask)


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 16), st.integers(1, 16))))
def test_small_masks_keep_their_dice(mask):
    if mask.any():
        assert dice(filled(outline(mask), mask.shape), mask) >= 0.98


def test_noise_is_bounded():
    """Hundreds of thousands of specks would take minutes, and nobody could edit them."""
    polygons = outline(np.random.default_rng(0).random((512, 512)) > 0.5)
    assert len(polygons) <= 500


class TestFill:
    def test_pixel_edges_are_whole_numbers(self):
        mask = fill(np.array([[2, 1], [5, 1], [5, 3], [2, 3]]), 6, 8)
        expected = np.zeros((6, 8), dtype=bool)
        expected[1:3, 2:5] = True
        np.testing.assert_array_equal(mask, expected)

    def test_overlaps_are_inside_by_the_non_zero_rule(self):
        """A path that goes round twice: the editor's canvas fills it, even-odd would not."""
        ring = np.array([[1, 1], [6, 1], [6, 5], [1, 5]])
        np.testing.assert_array_equal(fill(np.tile(ring, (2, 1)), 6, 8), fill(ring, 6, 8))

    def test_what_lies_outside_is_cut_off(self):
        mask = fill(np.array([[-50, -50], [1e9, -50], [1e9, 2], [-50, 2]]), 6, 8)
        assert mask[:2].all()
        assert not mask[2:].any()
        assert not fill(np.array([[-9, -9], [-5, -9], [-5, -5]]), 6, 8).any()

    @pytest.mark.parametrize("points", [[], [[3, 3]], [[1, 1], [5, 5]], [[1, 1], [3, 1], [6, 1]]])
    def test_without_area(self, points):
        assert not fill(np.array(points, dtype=float), 6, 8).any()

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_not_finite(self, bad):
        with pytest.raises(RegionError, match="not a finite number"):
            fill(np.array([[1, 1], [3, bad], [5, 5]]), 6, 8)
