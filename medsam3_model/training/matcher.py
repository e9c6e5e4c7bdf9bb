"""Which query answers for which object: the one-to-one matching of DETR."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True)
class MatchWeights:
    """Weights of the matching cost and parameters of its focal loss: SAM 3's recipe."""

    classification: float = 2.0
    box_l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) boxes from centre and size to corners."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def box_iou_and_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019) of xyxy boxes that broadcast, (..., 4).

    Boxes without area have IoU 0 with everything; nothing is divided by zero.
    """
    tiny = torch.finfo(first.dtype).eps
    overlap = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(
        first[..., :2], second[..., :2]
    )
    intersection = overlap.clamp(min=0).prod(dim=-1)
    union = _area(first) + _area(second) - intersection
    hull = (
        torch.maximum(first[..., 2:], second[..., 2:])
        - torch.minimum(first[..., :2], second[..., :2])
    ).prod(dim=-1)
    iou = intersection / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


@torch.no_grad()
def matching_cost(
    logits: Tensor, boxes: Tensor, target_boxes: Tensor, weights: MatchWeights
) -> Tensor:
    """Cost of giving target n to query q, float32 (Q, N).

    logits (Q,), boxes (Q, 4) and target_boxes (N, 4), both cxcywh in 0..1. Classification costs the
    focal loss of a positive less that of a negative (Deformable DETR).
    """
    probability = logits.float().sigmoid()
    positive = weights.alpha * (1 - probability) ** weights.gamma * -(probability + 1e-8).log()
    negative = (1 - weights.alpha) * probability**weights.gamma * -(1 - probability + 1e-8).log()
    boxes, target_boxes = boxes.float(), target_boxes.float()
    distance = (boxes[:, None] - target_boxes[None]).abs().sum(dim=-1)
    _, giou = box_iou_and_giou(cxcywh_to_xyxy(boxes)[:, None], cxcywh_to_xyxy(target_boxes)[None])
    return (
        weights.classification * (positive - negative)[:, None]
        + weights.box_l1 * distance
        - weights.giou * giou
    )


@torch.no_grad()
def match(
    logits: Tensor,
    boxes: Tensor,
    target_boxes: Sequence[Tensor],
    weights: MatchWeights | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """The cheapest one-to-one assignment for each prompt of a batch.

    logits (P, Q); boxes (P, Q, 4) cxcywh; target_boxes: P tensors (N_p, 4) cxcywh. Returns P pairs
    (query indices, target indices), int64, both of length min(Q, N_p).
    """
    weights = weights or MatchWeights()
    pairs = []
    for row, targets in enumerate(target_boxes):
        if len(targets) == 0:
            empty = torch.zeros(0, dtype=torch.long, device=logits.device)
            pairs.append((empty, empty))
            continue
        cost = matching_cost(logits[row], boxes[row], targets, weights)
        queries, objects = linear_sum_assignment(cost.cpu().numpy())
        pairs.append(
            (
                torch.as_tensor(queries, dtype=torch.long, device=logits.device),
                torch.as_tensor(objects, dtype=torch.long, device=logits.device),
            )
        )
    return pairs
