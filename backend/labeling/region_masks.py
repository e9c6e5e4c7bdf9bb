"""Masks of Label Studio's regions: the inverse of `backend.labeling.regions`.

Understands what the editor writes for a still image: brush (RLE), bitmask (PNG), polygon,
rectangle and ellipse (both with rotation) and closed vector paths, with or without labels. A
shape's pixels are those whose centres it encloses. Percent are of the image's width for x and of
its height for y.
"""

import base64
import binascii
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from backend.errors import RegionError
from backend.labeling import brush_rle
from backend.labeling.masks import Mask
from backend.labeling.polygons import Points, fill
from backend.labeling.shapes import direction, number, rectangle_corners

_PNG_URL = "data:image/png;base64,"
_BEZIER_STEPS = 16
# Pixels of an ellipse at a time: what is computed of one is fifty times as large as its mask.
_PIXELS_AT_ONCE = 2**22
_LINKS = ("id", "prevPointId")


def region_mask(region: Mapping[str, Any], height: int, width: int) -> Mask:
    """The mask of one region.

    Args:
        region: a region dictionary; its `value` decides how it is read.
        height, width: of the image in pixels.

    Returns:
        bool ``(height, width)``.

    Raises:
        RegionError: the region has no area by its nature (a key point, an open path, a text), or
            its value is damaged. `RleError` for a brush that does not fit the image.
    """
    value = region.get("value")
    kind = str(region.get("type") or "")
    if not isinstance(value, Mapping):
        raise RegionError(f"The {kind} region has no value.")
    if "rle" in value:
        return brush_rle.decode(value["rle"], height, width)
    if "imageDataURL" in value:
        return _from_png(value["imageDataURL"], height, width)
    if "points" in value:
        if value.get("closed") is False:
            raise RegionError("The polygon is not closed, so it has no area.")
        return fill(_pixels(value["points"], height, width), height, width)
    if "vertices" in value:
        return fill(_vector_path(value, height, width), height, width)
    if "radiusX" in value:
        return _ellipse(value, height, width)
    if "width" in value and "height" in value:
        _check_sizes(value, "width", "height")
        corners = rectangle_corners(value, height, width)
        return fill(_pixels(corners, height, width), height, width)
    raise RegionError(f"A region of type {kind!r} has no mask.")


def union_mask(regions: Iterable[Mapping[str, Any]], height: int, width: int) -> Mask:
    """The masks of several regions in one, bool ``(height, width)``; raises as `region_mask`."""
    union = np.zeros((height, width), np.bool_)
    for region in regions:
        union |= region_mask(region, height, width)
    return union


def _pixels(points: Any, height: int, width: int) -> Points:
    try:
        percent = np.array(points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        percent = np.zeros(0)
    if percent.ndim != 2 or percent.shape[1] != 2 or len(percent) < 3:
        raise RegionError("The polygon must have at least three points, each [x, y] in percent.")
    return percent * (width / 100, height / 100)


def _ellipse(value: Mapping[str, Any], height: int, width: int) -> Mask:
    x, radius_x = (number(value, key) / 100 * width for key in ("x", "radiusX"))
    y, radius_y = (number(value, key) / 100 * height for key in ("y", "radiusY"))
    _check_sizes(value, "radiusX", "radiusY")
    if radius_x == 0 or radius_y == 0:
        return np.zeros((height, width), dtype=np.bool_)
    cosine, sine = direction(value)
    mask = np.zeros((height, width), np.bool_)
    rows_at_once = max(1, _PIXELS_AT_ONCE // width)
    for top in range(0, height, rows_at_once):
        bottom = min(top + rows_at_once, height)
        dx = np.arange(width) + 0.5 - x
        dy = (np.arange(top, bottom) + 0.5 - y)[:, None]
        # Every pixel's centre in the ellipse's own axes, in units of its radii.
        along = (dx * cosine + dy * sine) / radius_x
        across = (dy * cosine - dx * sine) / radius_y
        mask[top:bottom] = np.square(along) + np.square(across) <= 1
    return mask


def _check_sizes(value: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if number(value, key) < 0:
            raise RegionError(f'The region\'s "{key}" is negative.')


def _from_png(url: Any, height: int, width: int) -> Mask:
    from PIL import Image, UnidentifiedImageError

    if not isinstance(url, str) or not url.startswith(_PNG_URL):
        raise RegionError(f"A bitmask must be a PNG data URL, beginning with {_PNG_URL!r}.")
    try:
        with Image.open(
            io.BytesIO(base64.b64decode(url[len(_PNG_URL) :], validate=True)), formats=["PNG"]
        ) as image:
            if image.size != (width, height):
                raise RegionError(
                    f"The bitmask has {image.height} x {image.width} pixels, but its image has "
                    f"{height} x {width}."
                )
            if not image.has_transparency_data:
                # Every pixel would count, which is what nobody drew.
                raise RegionError("The bitmask's PNG has no transparency, so it shows no mask.")
            transparent = image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
            return np.asarray(transparent.getchannel("A")) > 0
    except Image.DecompressionBombError:
        raise RegionError("The bitmask's PNG announces far too many pixels.") from None
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise RegionError(f"The bitmask's PNG cannot be read: {error}.") from None


def _vector_path(value: Mapping[str, Any], height: int, width: int) -> Points:
    """The closed path of a `Vector` region, ``(N, 2)`` in pixels, Bézier segments sampled."""
    if not value.get("closed"):
        raise RegionError("The vector path is not closed, so it has no area.")
    vertices = _in_path_order(value["vertices"])
    points: list[Sequence[float]] = []
    for vertex, following in zip(vertices, [*vertices[1:], vertices[0]], strict=True):
        start, end = _position(vertex), _position(following)
        leave = _position(vertex.get("controlPoint2") or vertex)
        arrive = _position(following.get("controlPoint1") or following)
        if leave == start and arrive == end:
            points.append(start)
            continue
        # A cubic Bézier curve: its four control points, weighted by the Bernstein polynomials.
        t = np.linspace(0, 1, _BEZIER_STEPS, endpoint=False)[:, None]
        weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3])
        points += (weights @ np.array([start, leave, arrive, end])).tolist()
    return _pixels(points, height, width)


def _in_path_order(vertices: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(vertices, list) or not all(isinstance(v, Mapping) for v in vertices):
        raise RegionError("The vector path's vertices must be a list of points.")
    if any(not isinstance(v.get(key) or "", str | int) for v in vertices for key in _LINKS):
        raise RegionError("The vector path's vertices have ids that are no texts.")
    if len(vertices) < 2:
        raise RegionError("The vector path must have at least two vertices.")
    after = {vertex.get("prevPointId"): vertex for vertex in vertices if vertex.get("prevPointId")}
    first = next((vertex for vertex in vertices if not vertex.get("prevPointId")), vertices[0])
    ordered: list[Mapping[str, Any]] = [first]
    # Each vertex names the one before it; the list itself is in the order of drawing.
    while len(ordered) < len(vertices):
        following = after.get(ordered[-1].get("id"))
        if following is None or following is first:
            return vertices  # without links, or with branches: as listed
        ordered.append(following)
    return ordered


def _position(point: Any) -> tuple[float, float]:
    if not isinstance(point, Mapping):
        raise RegionError("The vector path has a control point that is no point.")
    return number(point, "x"), number(point, "y")
