"""Cropped masks: cut to what they show, so that comparing regions costs their size only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.labeling.masks import Mask, extent


@dataclass(frozen=True, eq=False)
class CroppedMask:
    """A mask of an image `height` × `width`: `pixels` bool (h, w) with its corner at (top, left).

    `pixels` has foreground in its first and last row and column; it is (0, 0) for an empty mask.
    """

    height: int
    width: int
    top: int
    left: int
    pixels: Mask

    @classmethod
    def of(cls, mask: Mask) -> "CroppedMask":
        """Cut a mask bool (H, W) of a whole image."""
        top, left, bottom, right = extent(mask) or (0, 0, 0, 0)
        height, width = mask.shape
        return cls(height, width, top, left, mask[top:bottom, left:right].copy())

    @property
    def area(self) -> int:
        """Foreground pixels."""
        return int(np.count_nonzero(self.pixels))

    @property
    def bottom(self) -> int:
        """The row after the last one with foreground."""
        return self.top + self.pixels.shape[0]

    @property
    def right(self) -> int:
        """The column after the last one with foreground."""
        return self.left + self.pixels.shape[1]

    def full(self) -> Mask:
        """The mask at the image's size, bool (height, width)."""
        return self.within(0, 0, self.height, self.width)

    def packed(self) -> NDArray[np.uint8]:
        """The mask at the image's size, eight pixels a byte: uint8 (height, ceil(width / 8)).

        The same as `np.packbits(self.full(), axis=1)`, in a fraction of the time.
        """
        rows = np.zeros((self.height, -(-self.width // 8)), np.uint8)
        if self.pixels.size:
            first, shift = divmod(self.left, 8)
            shifted = np.zeros((self.pixels.shape[0], shift + self.pixels.shape[1]), np.bool_)
            shifted[:, shift:] = self.pixels
            packed = np.packbits(shifted, axis=1)
            rows[self.top : self.bottom, first : first + packed.shape[1]] = packed
        return rows

    def within(self, top: int, left: int, bottom: int, right: int) -> Mask:
        """The part of the mask in a window of the image, bool (bottom − top, right − left)."""
        window = np.zeros((bottom - top, right - left), np.bool_)
        first, last = max(top, self.top), min(bottom, self.bottom)
        start, stop = max(left, self.left), min(right, self.right)
        if first < last and start < stop:
            window[first - top : last - top, start - left : stop - left] = self.pixels[
                first - self.top : last - self.top, start - self.left : stop - self.left
            ]
        return window

    def same(self, other: "CroppedMask") -> bool:
        """Whether both show the same pixels of an image of the same size."""
        return self is other or (
            (self.height, self.width, self.top, self.left)
            == (other.height, other.width, other.top, other.left)
            and self.pixels.shape == other.pixels.shape
            and bool(np.array_equal(self.pixels, other.pixels))
        )


def common_windows(masks: Sequence[CroppedMask], margin: int = 0) -> list[Mask]:
    """All masks, each in the smallest window of the image that shows every one of them.

    Args:
        masks: of one image.
        margin: pixels around them, as far as the image goes.
    """
    window = _window(masks)
    if window is None:
        return [np.zeros((1, 1), np.bool_) for _ in masks]
    top, left = max(window[0] - margin, 0), max(window[1] - margin, 0)
    bottom = min(window[2] + margin, masks[0].height)
    right = min(window[3] + margin, masks[0].width)
    return [mask.within(top, left, bottom, right) for mask in masks]


def union(masks: Sequence[CroppedMask]) -> CroppedMask:
    """Every pixel that one of the masks has; `masks` is not empty."""
    window = _window(masks)
    if len(masks) == 1 or window is None:
        return masks[0]
    top, left, bottom, right = window
    together = np.zeros((bottom - top, right - left), np.bool_)
    # Into one array: a window for each of a hundred regions would fill the memory.
    for mask in masks:
        together[mask.top - top : mask.bottom - top, mask.left - left : mask.right - left] |= (
            mask.pixels
        )
    return CroppedMask(masks[0].height, masks[0].width, top, left, together)


def overlap(mask: CroppedMask, other: CroppedMask, without: Sequence[CroppedMask] = ()) -> int:
    """Pixels that `mask` and `other` share and none of `without` has."""
    top, bottom = max(mask.top, other.top), min(mask.bottom, other.bottom)
    left, right = max(mask.left, other.left), min(mask.right, other.right)
    if top >= bottom or left >= right:
        return 0
    window = (top, left, bottom, right)
    shared = mask.within(*window) & other.within(*window)
    for excluded in without:
        shared &= ~excluded.within(*window)
    return int(np.count_nonzero(shared))


def iou(mask: CroppedMask, other: CroppedMask) -> float:
    """Intersection over union; 0 when both are empty."""
    shared = overlap(mask, other)
    return shared / (mask.area + other.area - shared) if shared else 0.0


def _window(masks: Sequence[CroppedMask]) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) of the foreground of all masks; None when all are empty."""
    filled = [mask for mask in masks if mask.pixels.size]
    if not filled:
        return None
    return (
        min(mask.top for mask in filled),
        min(mask.left for mask in filled),
        max(mask.bottom for mask in filled),
        max(mask.right for mask in filled),
    )
