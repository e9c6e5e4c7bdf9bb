"""Intensities: deep grey values to bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_SAMPLE = 4_000_000


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
        finite = values[np.isfinite(values)]
        low, high = float(finite.min()), float(finite.max())
    return float(low), float(high)


def to_bytes(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """`low` and less becomes 0, `high` and more 255, linear between; not-a-number becomes 0."""
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    scaled = values.astype(np.float32)
    scaled -= low
    scaled *= 255.0 / (high - low)
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    np.clip(scaled, 0, 255, out=scaled)
    return np.rint(scaled, out=scaled).astype(np.uint8)
