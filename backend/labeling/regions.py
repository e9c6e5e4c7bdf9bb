"""Label Studio's regions of detected instances, in the shape of each control's tag.

| control | `value` |
| --- | --- |
| `BrushLabels`, `Brush` | `format: rle`, `rle`: see `backend.labeling.brush_rle` |
| `BitmaskLabels`, `Bitmask` | `imageDataURL`: a PNG, black on transparent |
| `PolygonLabels`, `Polygon` | `points` in percent, `closed`; a region per component, keyholed |
| `RectangleLabels`, `Rectangle` | `x, y, width, height` in percent: the mask's extent |
| `EllipseLabels`, `Ellipse` | `x, y, radiusX, radiusY` in percent, `rotation` in degrees |

Percent count from the image's left and top *edge*: a region of the pixel columns 2 and 3 of 10 has
x = 20 and width = 20. The ellipse has the mask's centre and second moments. Tags without labels of
their own give two results of the same id, geometry and `labels`, as the editor writes them.
"""

import base64
import io
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.errors import RegionError
from backend.labeling import brush_rle
from backend.labeling.concepts import Concept
from backend.labeling.config import Control
from backend.labeling.masks import Mask, extent
from backend.labeling.polygons import outline
from backend.labeling.shapes import Region


@dataclass(frozen=True)
class InstanceMask:
    """One detected instance.

    Attributes:
        mask: bool ``(H, W)`` in the size of the original image.
        score: confidence, 0 to 1.
        box: (x0, y0, x1, y1) in pixels, as the model gave it; used where the mask is empty.
    """

    mask: Mask
    score: float
    box: tuple[float, float, float, float] | None = None


def new_region_id() -> str:
    """Twelve url-safe characters, 72 random bits: a region replaces an older one of its id."""
    return secrets.token_urlsafe(9)


def regions_for(
    concept: Concept,
    instances: Sequence[InstanceMask],
    *,
    width: int,
    height: int,
    item_index: int | None = None,
    controls: Sequence[Control] | None = None,
) -> list[Region]:
    """The regions of one concept's instances, for each of its output controls.

    An instance is left out of a control where it does not reach the threshold of its label, and of
    all but the rectangles when its mask is empty.

    Args:
        concept: says label and controls.
        instances: what the model found, masks in the size of the original image.
        width, height: of the original image in pixels.
        item_index: page of a multi-page image, or None.
        controls: only these, for instance `concept.controls_of(image_name)`.

    Raises:
        RegionError: a mask of another size, or a score that is not a number from 0 to 1.
    """
    regions: list[Region] = []
    for instance in instances:
        if instance.mask.shape != (height, width):
            raise RegionError(
                f"An instance of {concept.label!r} has a mask of {instance.mask.shape}, but the "
                f"image has {(height, width)} pixels."
            )
        if not 0 <= instance.score <= 1:
            raise RegionError(f"An instance of {concept.label!r} has the score {instance.score}.")
        mask = np.ascontiguousarray(instance.mask, dtype=np.bool_)
        for control in concept.controls if controls is None else controls:
            if instance.score < (control.threshold_of(concept.label) or 0):
                continue
            for value in _geometry(control, mask, instance.box):
                common = {
                    "id": new_region_id(),
                    "to_name": control.to_name,
                    "original_width": int(width),
                    "original_height": int(height),
                    "image_rotation": 0,
                    "score": float(instance.score),
                }
                if item_index is not None:
                    common["item_index"] = int(item_index)
                regions += _results(control, concept.label, value, common)
    return regions


def label_values(region: Mapping[str, Any]) -> frozenset[str]:
    """The labels that a region of Label Studio carries."""
    return frozenset(
        name
        for key, value in region["value"].items()
        if key.endswith("labels") and isinstance(value, list)
        for name in value
    )


def _results(
    control: Control, label: str, value: dict[str, Any], common: dict[str, Any]
) -> list[Region]:
    def result(name: str, kind: str, labels: dict[str, Any]) -> Region:
        return {**common, "from_name": name, "type": kind, "value": {**value, **labels}}

    kind = control.result_type
    if control.labels_name is None:
        return [result(control.name, kind, {kind: [label]})]
    return [
        result(control.name, kind, {}),
        result(control.labels_name, "labels", {"labels": [label]}),
    ]


def _geometry(
    control: Control, mask: Mask, box: tuple[float, float, float, float] | None
) -> list[dict[str, Any]]:
    """The value or values of one instance, without labels."""
    height, width = mask.shape
    shape = control.tag.removesuffix("Labels")
    if shape == "Rectangle":
        edges = extent(mask)
        if edges is not None:
            top, left, bottom, right = edges
            box = (left, top, right, bottom)
        return [] if box is None else _rectangle(box, height, width)
    if not mask.any():
        return []
    if shape == "Brush":
        return [{"format": "rle", "rle": brush_rle.encode(mask)}]
    if shape == "Bitmask":
        return [{"imageDataURL": _png_url(mask)}]
    if shape == "Polygon":
        scale = (100 / width, 100 / height)
        return [
            {"points": (points * scale).round(6).tolist(), "closed": True}
            for points in outline(mask)
        ]
    if shape == "Ellipse":
        return [_ellipse(mask)]
    raise RegionError(f"<{control.tag}> cannot hold a prediction.")


def _rectangle(
    box: tuple[float, float, float, float], height: int, width: int
) -> list[dict[str, Any]]:
    x0, x1 = (min(max(x / width * 100, 0.0), 100.0) for x in (box[0], box[2]))
    y0, y1 = (min(max(y / height * 100, 0.0), 100.0) for y in (box[1], box[3]))
    if not (x1 > x0 and y1 > y0):
        return []
    return [{"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "rotation": 0}]


def _ellipse(mask: Mask) -> dict[str, Any]:
    """The ellipse with the mask's centre and second moments.

    A filled ellipse has the variance r²/4 along a semi-axis r, and a pixel 1/12 by itself.
    """
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    centre_x, centre_y = columns.mean() + 0.5, rows.mean() + 0.5
    dx, dy = columns + 0.5 - centre_x, rows + 0.5 - centre_y
    covariance = np.array([[np.mean(dx * dx), np.mean(dx * dy)], [0, np.mean(dy * dy)]])
    covariance[1, 0] = covariance[0, 1]
    variances, axes = np.linalg.eigh(covariance)
    radii = 2 * np.sqrt(variances + 1 / 12)
    # radiusX belongs to the axis that is nearer to the image's x axis; the rotation is then
    # within 45 degrees, and no radius needs more than half of its own side of the image.
    along = int(np.argmax(np.abs(axes[0])))
    direction = axes[:, along] * np.sign(axes[0, along])
    return {
        "x": float(centre_x / width * 100),
        "y": float(centre_y / height * 100),
        "radiusX": float(min(radii[along] / width * 100, 50.0)),
        "radiusY": float(min(radii[1 - along] / height * 100, 50.0)),
        "rotation": math.degrees(math.atan2(direction[1], direction[0])) % 360,
    }


def _png_url(mask: Mask) -> str:
    from PIL import Image

    rgba = np.zeros((*mask.shape, 4), dtype=np.uint8)
    rgba[..., 3] = mask * np.uint8(255)
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, format="PNG", compress_level=3)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
