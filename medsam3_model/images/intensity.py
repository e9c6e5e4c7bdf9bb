"""Intensities: deep values to bytes, a few rows at a time, as copies in float are large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

_SAMPLE = 4_000_000
_STRIP = 4_000_000


def strips(height: int, width: int) -> Iterator[slice]:
    """Rows of a picture in slices of some four million pixels."""
    rows = max(1, _STRIP // max(1, width))
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def full_range(values: npt.NDArray[Any]) -> tuple[float, float]:
    """The 0.5th and 99.5th percentile of the finite values; of a sample where they are many.

    Where the percentiles coincide (a small bright spot on nothing) the smallest and largest.
    """
    flat = values.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE)].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(sample, (0.5, 99.5))
    if high <= low:
        finite = np.isfinite(values)
        low = np.min(values, where=finite, initial=sample[0].astype(values.dtype))
        high = np.max(values, where=finite, initial=sample[0].astype(values.dtype))
    return float(low), float(high)


def to_bytes(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """`low` and less becomes 0, `high` and more 255, linear between; not-a-number becomes 0.

    Args:
        values: (H, W) or (H, W, channels) of any real kind.
        low, high: see above.
    """
    result = np.zeros(values.shape, dtype=np.uint8)
    if not high > low:
        return result
    # Differences of large integers and doubles do not survive in 32 bits.
    kind = np.float32 if values.dtype.itemsize <= 2 else np.float64
    for rows in strips(values.shape[0], int(np.prod(values.shape[1:]))):
        scaled: npt.NDArray[Any] = values[rows].astype(kind)
        np.subtract(scaled, low, out=scaled)
        np.multiply(scaled, 255.0 / (high - low), out=scaled)
        np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
        np.clip(scaled, 0, 255, out=scaled)
        result[rows] = np.rint(scaled, out=scaled)
    return result


def grey_rgb(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Grey (H, W) as red, green and blue (H, W, 3)."""
    return np.repeat(grey[:, :, None], 3, axis=2)
