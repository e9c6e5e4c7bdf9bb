"""Brush RLE: how much faster `labeling.brush_rle` is than the SDK's converter, in the same run.

Both sides work on the same masks and give the same answer (checked here too). Each figure is
the SDK's best time divided by ours; repetitions alternate between the two, so that a busy machine
slows both.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from scipy.ndimage import gaussian_filter

from backend.labeling import brush_rle

Mask = npt.NDArray[np.bool_]


def ragged_blob(size: int, seed: int = 0) -> Mask:
    """A disk whose boundary is broken up by noise over a wide band: many short runs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    noise = gaussian_filter(rng.normal(size=(size, size)), 0.8)
    return 0.35 - np.hypot(x, y) + 0.3 * noise > 0


def masks() -> Iterator[tuple[str, Mask]]:
    rng = np.random.default_rng(7)
    yield "ragged 1024", ragged_blob(1024)
    yield "ragged 256", ragged_blob(256)
    yield "ragged 48", ragged_blob(48)
    for size in (1, 2, 3, 8, 16, 33, 64, 128, 333, 1024):
        yield f"empty {size}", np.zeros((size, size), dtype=np.bool_)
        yield f"full {size}", np.ones((size, size), dtype=np.bool_)
    for size in (2, 8, 33, 128, 512):
        yield f"noise {size}", rng.random((size, size)) > 0.5
        yield f"sparse noise {size}", rng.random((size, size)) > 0.98
        yield f"checkerboard {size}", np.indices((size, size)).sum(axis=0) % 2 == 1
    for size in (9, 32, 100, 320, 1024):
        y, x = np.mgrid[:size, :size] - size / 2
        yield f"disk {size}", np.hypot(y, x) < size / 3
        line = np.zeros((size, size), dtype=np.bool_)
        line[size // 2] = True
        yield f"horizontal line {size}", line
        yield f"vertical line {size}", line.T.copy()
        yield f"diagonal line {size}", np.eye(size, dtype=np.bool_)
    yield "wide 1 x 5000", rng.random((1, 5000)) > 0.5
    yield "tall 5000 x 1", rng.random((5000, 1)) > 0.5


def _best_of_both(
    theirs: Callable[[], Any], ours: Callable[[], Any]
) -> tuple[float, float, Any, Any]:
    """Best seconds of each, and their answers; at least four rounds, small cases many more."""
    best_theirs = best_ours = float("inf")
    spent, rounds = 0.0, 0
    answer_theirs = answer_ours = None
    while rounds < 4 or (spent < 0.05 and rounds < 200):
        begin = time.perf_counter()
        answer_theirs = theirs()
        middle = time.perf_counter()
        answer_ours = ours()
        end = time.perf_counter()
        best_theirs, best_ours = min(best_theirs, middle - begin), min(best_ours, end - middle)
        spent, rounds = spent + end - begin, rounds + 1
    return best_theirs, best_ours, answer_theirs, answer_ours


def compare(mask: Mask) -> tuple[float, float]:
    """Speed-ups over the SDK for one mask: (encode, decode)."""
    height, width = mask.shape
    values = mask.astype(np.uint8) * np.uint8(255)
    theirs, ours, rle_theirs, rle = _best_of_both(
        lambda: mask2rle(values), lambda: brush_rle.encode(mask)
    )
    if rle_theirs != rle:
        raise AssertionError("encode differs from the SDK")
    encode_speedup = theirs / ours
    theirs, ours, decoded_theirs, decoded = _best_of_both(
        lambda: decode_rle(rle).reshape(height, width, 4)[..., 3] > 0,
        lambda: brush_rle.decode(rle, height, width),
    )
    if not np.array_equal(decoded_theirs, decoded):
        raise AssertionError("decode differs from the SDK")
    return encode_speedup, theirs / ours


def measure(verbose: bool = False) -> dict[str, float]:
    """`rle_encode_speedup_ragged`, `rle_decode_speedup_ragged` (1024²) and `rle_min_speedup`."""
    result: dict[str, float] = {}
    smallest = float("inf")
    for name, mask in masks():
        encode_speedup, decode_speedup = compare(mask)
        if verbose:
            print(f"{name:24} {encode_speedup:8.1f} {decode_speedup:8.1f}", file=sys.stderr)
        if name == "ragged 1024":
            result["rle_encode_speedup_ragged"] = round(encode_speedup, 1)
            result["rle_decode_speedup_ragged"] = round(decode_speedup, 1)
        smallest = min(smallest, encode_speedup, decode_speedup)
    result["rle_min_speedup"] = round(smallest, 2)
    return result


if __name__ == "__main__":
    print(json.dumps(measure(verbose=True)))
