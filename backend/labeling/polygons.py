"""Polygons of masks and masks of polygons, in pixels.

Coordinates are (x, y) with pixel *edges* at whole numbers: pixel (row r, column c) is the square
from (c, r) to (c + 1, r + 1), and a mask's polygon runs along the outside of its pixels. A pixel
belongs to a polygon when its centre is inside by the non-zero winding rule, which is how the
editor's canvas fills; so the exact outline of a mask fills to exactly that mask.
"""

import numpy as np
import numpy.typing as npt

from backend.errors import RegionError
from backend.labeling.masks import Mask, extent

Points = npt.NDArray[np.float64]

# Pixels that may change, as a share of the mask, when specks are dropped and pinholes closed, so
# that an annotator gets one polygon to edit rather than a hundred.
_SPECKS = 0.005
# Nobody edits more components than this by hand.
_MOST_COMPONENTS = 500
# Joining more holes than this takes minutes, for a mask of noise.
_MOST_HOLES = 200
# Simplification in pixels, coarsest first; the exact polygon is taken where none is good enough.
_TOLERANCES = (1.0, 0.5, 0.25)
# The least Dice of a simplified polygon with its component.
_LEAST_DICE = 0.988


def outline(
    mask: Mask, *, least_dice: float = _LEAST_DICE, specks: float = _SPECKS
) -> list[Points]:
    """The polygons of a mask, one per component (pixels that touch at a corner are connected).

    A polygon of Label Studio is one ring, so a cut joins each hole to the outer ring; the polygon
    runs along the cut in both directions (a keyhole), so the cut encloses nothing. Points are
    thinned out as far as the polygon keeps its Dice with the component. Left out are specks and
    pinholes that together have less than a share of the mask, and all but the 500 largest
    components and 200 largest holes.

    Args:
        mask: bool ``(H, W)``.
        least_dice: of a polygon with its component.
        specks: the share of the mask's pixels that may change as specks and pinholes.

    Returns:
        ``(N, 2)`` float64 (x, y) pixel edges each, N >= 3, not closed by a repeated point, largest
        component first; an empty list for an empty mask.
    """
    edges = extent(mask)
    if edges is None:
        return []
    top, left, bottom, right = edges
    cropped = mask[top:bottom, left:right]
    components = _components(_without_specks(cropped, specks))
    polygons = [_simplified(rings, least_dice) for rings in components]
    corner = np.array([left, top])
    return [polygon + corner for polygon in sorted(polygons, key=_area, reverse=True)]


def fill(points: Points, height: int, width: int) -> Mask:
    """The pixels whose centres a polygon encloses by the non-zero winding rule.

    Args:
        points: ``(N, 2)`` (x, y) in pixels; the last point is joined to the first. Parts outside
            the image are cut off.
        height, width: of the image in pixels.

    Returns:
        bool ``(height, width)``.

    Raises:
        RegionError: a coordinate is not a finite number or far away, or there are far too many
            edges.
    """
    from medsam3_model.data.scan_conversion import winding_numbers

    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    mask = np.zeros((height, width), dtype=np.bool_)
    try:
        for top, winding in winding_numbers(points, height, width):
            mask[top : top + len(winding)] = winding != 0
    except ValueError as error:
        raise RegionError(f"A polygon {error}.") from None
    return mask


def _area(ring: Points) -> float:
    """Signed area in square pixels."""
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
    return float(np.sum(x0 * y1 - x1 * y0)) / 2


def _without_specks(mask: Mask, share: float) -> Mask:
    import cv2

    allowance = int(share * np.count_nonzero(mask))
    padded = np.pad(mask, 1).astype(np.uint8)
    # Foreground is connected at corners, so background is not: else a diagonal line of pixels
    # would be one component and part the background too.
    for value, connectivity, most in ((1, 8, _MOST_COMPONENTS), (0, 4, _MOST_HOLES)):
        _, labels, stats, _ = cv2.connectedComponentsWithStats(
            (padded == value).astype(np.uint8), connectivity=connectivity
        )
        areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
        areas[[0, labels[0, 0]]] = np.iinfo(np.int32).max  # the other value, and the outside
        # Smallest first, as many as the allowance pays for, or more where there are too many.
        order = np.argsort(areas, kind="stable")
        few_pixels = int(np.searchsorted(np.cumsum(areas[order]), allowance, side="right"))
        too_many = int(np.count_nonzero(areas < areas.max())) - most
        dropped = order[: max(few_pixels, too_many)]
        if dropped.size:
            # What the specks used up is no longer there for the pinholes.
            allowance = max(0, allowance - int(areas[dropped].sum()))
            padded[np.isin(labels, dropped)] = 1 - value
    return padded[1:-1, 1:-1].astype(np.bool_)


def _components(mask: Mask) -> list[list[Points]]:
    """Exact rings of each component along the pixel edges: the outer one, then its holes.

    OpenCV traces through pixel centres, so the mask is first drawn on a lattice of twice the
    resolution in which pixel edges and corners are pixels too.
    """
    import cv2

    height, width = mask.shape
    lattice = np.zeros((2 * height + 1, 2 * width + 1), dtype=np.uint8)
    lattice[1::2, 1::2] = mask
    closed = cv2.dilate(lattice, np.ones((3, 3), dtype=np.uint8))
    contours, hierarchy = cv2.findContours(closed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [contour.reshape(-1, 2).astype(np.float64) / 2 for contour in contours]
    # An outer ring has no parent (-1); the parent of a hole is the outer ring around it.
    parents = hierarchy[0][:, 3].tolist()
    return [
        [ring, *(hole for hole, parent in zip(rings, parents, strict=True) if parent == index)]
        for index, ring in enumerate(rings)
        if parents[index] < 0
    ]


def _simplified(rings: list[Points], least_dice: float) -> Points:
    import cv2

    corner = rings[0].min(axis=0)
    width, height = (int(size) for size in rings[0].max(axis=0) - corner)
    exact = _joined(rings)
    component = fill(exact - corner, height, width)
    for tolerance in _TOLERANCES:
        # A ring that is thinned to a line has no area: a hole then closes, and without its outer
        # ring the polygon is not taken.
        thinned = [
            cv2.approxPolyDP(ring.astype(np.float32), tolerance, closed=True)
            .reshape(-1, 2)
            .astype(np.float64)
            for ring in rings
        ]
        polygon = _joined([ring for ring in thinned if len(ring) >= 3])
        if len(polygon) < 3:
            continue
        filled = fill(polygon - corner, height, width)
        overlap = np.count_nonzero(filled & component)
        if 2 * overlap >= least_dice * (np.count_nonzero(filled) + np.count_nonzero(component)):
            return polygon
    return exact


def _joined(rings: list[Points]) -> Points:
    """One ring: an outer ring joined with its holes, which run the other way round."""
    if not rings:
        return np.zeros((0, 2))
    joined = rings[0] if _area(rings[0]) > 0 else rings[0][::-1]
    # Holes from the left, each from its leftmost point: cuts are short then, and seldom cross
    # another hole, because those between are part of the ring already.
    for hole in sorted(rings[1:], key=lambda ring: float(ring[:, 0].min())):
        if _area(hole) > 0:
            hole = hole[::-1]
        start = int(np.argmin(hole[:, 0]))
        # To the nearest point of the ring, around the hole, and back along the same cut.
        at = int(np.argmin(np.square(joined - hole[start]).sum(axis=1)))
        there_and_back = np.concatenate([hole[start:], hole[: start + 1]])
        joined = np.concatenate([joined[: at + 1], there_and_back, joined[at:]])
    return joined
