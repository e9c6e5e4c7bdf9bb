"""Regions as Label Studio keeps them in the results of annotations and predictions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.labeling import brush_rle


def region(
    id_: str,
    control: str,
    kind: str,
    value: Mapping[str, Any],
    height: int,
    width: int,
    **fields: object,
) -> dict[str, Any]:
    """A region of any type on an image of `height` × `width` pixels."""
    return {
        "id": id_,
        "from_name": control,
        "to_name": "image",
        "type": kind,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": dict(value),
        **fields,
    }


def brush(
    id_: str, mask: NDArray[np.bool_], label: str, *, control: str = "brush", **fields: object
) -> dict[str, Any]:
    """A brush region with a mask, bool (H, W)."""
    value = {"format": "rle", "rle": brush_rle.encode(mask), "brushlabels": [label]}
    return region(id_, control, "brushlabels", value, *mask.shape, **fields)
