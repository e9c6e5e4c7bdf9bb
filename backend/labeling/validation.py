"""Regions are checked against the labeling config before they leave.

Label Studio stores whatever a prediction holds; the editor then throws, or hides the region. So
each region must name a control of the config, lie on that control's image, have its type, carry
labels that it offers, and a geometry that the editor draws.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeGuard

from backend.errors import RegionError
from backend.labeling.config import Control, LabelConfig, parse_label_config
from backend.labeling.shapes import Region


def validate(regions: Sequence[Region], label_config_xml: str) -> None:
    """Check regions before they leave.

    Raises:
        RegionError: names the first faults: a control, label or value that the config does not
            allow, an id that is used twice, a size or score that the editor cannot show, an RLE
            of another size.
    """
    if not regions:
        return
    config = parse_label_config(label_config_xml)
    faults: list[str] = []
    ids: set[tuple[str, str]] = set()
    for region in regions:
        key = (str(region.get("id") or ""), str(region.get("type")))
        if not key[0] or key in ids:
            faults.append(f"the region id {key[0]!r} is missing or used twice")
        ids.add(key)
        faults += list(_frame_faults(region)) or list(_config_faults(region, config))
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise RegionError("; ".join(fault[:300] for fault in faults[:3]) + more)


def _frame_faults(region: Region) -> Iterator[str]:
    width, height = region.get("original_width"), region.get("original_height")
    for size in (width, height):
        if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
            yield (
                "original_width and original_height must be positive integers, "
                f"not {width}, {height}"
            )
            return
    score = region.get("score")
    if score is not None and not _is_number(score, 0, 1):
        yield f"the score {score} is not between 0 and 1"
    page = region.get("item_index")
    if page is not None and (not isinstance(page, int) or page < 0):
        yield f"the item_index {page} is not the number of a page"


def _config_faults(region: Region, config: LabelConfig) -> Iterator[str]:
    name = region.get("from_name")
    control = config.control(name) if isinstance(name, str) else None
    if control is None:
        yield f"'from_name' {name!r} not found in the labeling config"
        return
    if region.get("to_name") != control.to_name:
        yield f"'to_name' {region.get('to_name')!r} is not the image of {name!r}: {control.to_name}"
    # The name of a <Labels> stands for the labels of the tool beside it.
    by_labels = name != control.name
    kind = "labels" if by_labels else control.result_type
    if region.get("type") != kind:
        yield f"the type {region.get('type')!r} does not match that of {name!r}: {kind}"
        return
    value = region.get("value")
    if not isinstance(value, dict):
        yield f"the value of a region of {name!r} is missing"
        return
    if by_labels or control.labels_name is None:
        yield from _label_faults(value.get(kind), control, str(name))
    if by_labels:
        return  # the geometry is that of the tool's own result
    draws = _GEOMETRY.get(control.tag.removesuffix("Labels"))
    if draws is None or not draws(value, region):
        yield f"the geometry of a region of {name!r} is not one that <{control.tag}> draws"


def _label_faults(labels: Any, control: Control, name: str) -> Iterator[str]:
    if not isinstance(labels, list) or not labels:
        yield f"a region of {name!r} has no label"
        return
    unknown = [
        label for label in labels if not isinstance(label, str) or label not in control.label_values
    ]
    if unknown:
        yield f"{name!r} offers no label {unknown[0]!r}"


def _is_number(value: Any, lowest: float, highest: float) -> TypeGuard[float]:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and lowest <= value <= highest
    )


def _is_rle(value: dict[str, Any], region: Region) -> bool:
    rle = value.get("rle")
    if value.get("format") != "rle" or not isinstance(rle, list) or len(rle) <= 4:
        return False
    try:
        # The first four bytes are the number of values: four for each pixel.
        samples = int.from_bytes(bytes(rle)[:4], "big")
    except (TypeError, ValueError):
        return False
    return samples == 4 * region["original_width"] * region["original_height"]


def _is_png(value: dict[str, Any], region: Region) -> bool:
    return str(value.get("imageDataURL")).startswith("data:image/png;base64,iVBORw0KGgo")


def _is_polygon(value: dict[str, Any], region: Region) -> bool:
    points = value.get("points")
    return (
        isinstance(points, list)
        and len(points) >= 3
        and all(isinstance(point, list | tuple) and len(point) == 2 for point in points)
        and all(_is_number(number, 0, 100) for point in points for number in point)
    )


def _is_rectangle(value: dict[str, Any], region: Region) -> bool:
    sides = [value.get(name) for name in ("width", "height")]
    return _is_placed(value) and all(_is_number(side, 0, 100) and side > 0 for side in sides)


def _is_ellipse(value: dict[str, Any], region: Region) -> bool:
    radii = [value.get(name) for name in ("radiusX", "radiusY")]
    return _is_placed(value) and all(_is_number(radius, 0, 50) and radius > 0 for radius in radii)


def _is_placed(value: dict[str, Any]) -> bool:
    return all(_is_number(value.get(axis), 0, 100) for axis in ("x", "y")) and _is_number(
        value.get("rotation", 0), -360, 360
    )


_GEOMETRY: dict[str, Callable[[dict[str, Any], Region], bool]] = {
    "Brush": _is_rle,
    "Bitmask": _is_png,
    "Polygon": _is_polygon,
    "Rectangle": _is_rectangle,
    "Ellipse": _is_ellipse,
}
