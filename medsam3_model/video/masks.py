"""Masks beside each other: which are the same, which pixels are whose, and specks in them."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

# What a filled hole and a removed speck are given as logits.
_FILLED, _REMOVED = 0.1, -0.1
# A pixel of another object: sigmoid(-10) is nothing.
_OTHER_OBJECT = -10.0
# Of a mask that loses more of its area to others, nothing is left.
_LEAST_KEPT = 0.3
_EIGHT_NEIGHBOURS = np.ones((3, 3))


def mask_ious(masks: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of bool masks (N, H, W) with others (M, H, W), float32 (N, M)."""
    flat, other = masks.flatten(1).float(), others.flatten(1).float()
    common = flat @ other.T
    union = flat.sum(1, keepdim=True) + other.sum(1) - common
    return common / union.clamp(min=1)


def best_of_overlapping(masks: Tensor, scores: Tensor, most: float) -> Tensor:
    """Non-maximum suppression: int64 indices of bool masks (N, H, W), in ascending order.

    The best goes first; whatever overlaps with one that is kept, with an IoU above `most`, goes.
    """
    ious = mask_ious(masks, masks)
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if all(ious[index, better] <= most for better in kept):
            kept.append(index)
    return torch.tensor(sorted(kept), dtype=torch.int64, device=masks.device)


def without_specks(logits: Tensor, most: int) -> Tensor:
    """Logits (N, H, W) with holes of at most so many pixels filled, then islands removed.

    An island goes only where it is at most half of its mask: a tiny object stays.
    """
    if most <= 0 or not len(logits):
        return logits
    cleaned = [_cleaned(one, most) for one in logits.float().cpu().numpy()]
    return torch.from_numpy(np.stack(cleaned)).to(logits.device)


def _cleaned(logits: np.ndarray, most: int) -> np.ndarray:
    logits = np.where(_in_parts_of(logits <= 0, most), np.float32(_FILLED), logits)
    inside = logits > 0
    islands = _in_parts_of(inside, min(most, int(inside.sum()) // 2))
    return np.where(islands, np.float32(_REMOVED), logits)


def _in_parts_of(mask: np.ndarray, most: int) -> np.ndarray:
    """The pixels of a mask that are in connected parts of at most so many."""
    parts, _ = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
    small = np.bincount(parts.ravel()) <= most
    small[0] = False
    return np.asarray(small[parts])


def one_object_each(logits: Tensor) -> Tensor:
    """Logits (B, 1, H, W) in which each pixel belongs to the object that claims it most."""
    if len(logits) == 1:
        return logits
    winner = logits.argmax(dim=0, keepdim=True)
    mine = winner == torch.arange(len(logits), device=logits.device).view(-1, 1, 1, 1)
    return torch.where(mine, logits, logits.clamp(max=_OTHER_OBJECT))


def without_swallowed(logits: Tensor) -> Tensor:
    """Logits (B, 1, H, W) without the masks that lose most of their pixels to others.

    A mask without a pixel is surely none.
    """
    before = (logits > 0).sum((-1, -2)).clamp(min=1)
    kept = (one_object_each(logits) > 0).sum((-1, -2)) / before >= _LEAST_KEPT
    return torch.where(kept[..., None, None], logits, logits.clamp(max=_OTHER_OBJECT))


def shared_out(masks: Tensor, scores: Tensor) -> Tensor:
    """Bool masks (N, H, W) in which a pixel of several goes to the one with the best score."""
    if len(masks) < 2:
        return masks
    claims = torch.where(masks, scores[:, None, None].to(masks.device), 0.0)
    winner = claims.argmax(dim=0, keepdim=True)
    return masks & (winner == torch.arange(len(masks), device=masks.device)[:, None, None])
