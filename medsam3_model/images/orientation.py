"""Which way up a picture is shown, by its EXIF or TIFF orientation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# Those that swap height and width.
SIDEWAYS = frozenset({5, 6, 7, 8})


def turned(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """A view of pixels (H, W, ...) as an orientation shows them; of an unknown one as they are.

    Source: EXIF 2.32, tag 0x0112.
    """
    if orientation in SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.asarray(pixels)
