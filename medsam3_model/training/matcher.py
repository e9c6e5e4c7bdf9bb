"""The one-to-one matching of DETR: which query answers for which object."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou


@dataclass(frozen=True)
class MatchWeights:
    """Weights of the matching cost and parameters of its focal loss: SAM 3's recipe."""

    classification: float = 2.0
    box_l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0


@torch.no_grad()
def matching_cost(
    logits: Tensor, boxes: Tensor, target_boxes: Tensor, weights: MatchWeights
) -> Tensor:
    """Cost of giving target n to query q, float32 (Q, N).

    logits (Q,), boxes (Q, 4) and target_boxes (N, 4), both cxcywh in 0..1. Classification costs the
    focal loss of a positive less that of a negative (Deformable DETR).
    """
    probability = logits.float().sigmoid()
    # The focal loss that a query adds as a positive, and the one that it no longer adds as a
    # negative: a sure query is cheap, an unsure one is nearly free either way.
    positive = weights.alpha * (1 - probability) ** weights.gamma * -(probability + 1e-8).log()
    negative = (1 - weights.alpha) * probability**weights.gamma * -(1 - probability + 1e-8).log()
    boxes, target_boxes = boxes.float(), target_boxes.float()
    distance = (boxes[:, None] - target_boxes[None]).abs().sum(dim=-1)
    # Distance favours small boxes, overlap does not: the two together are fair to every size.
    giou = generalized_box_iou(
        box_convert(boxes, "cxcywh", "xyxy"), box_convert(target_boxes, "cxcywh", "xyxy")
    )
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
        if len(targets) == 0:  # nothing to give: all queries stay negatives
            empty = torch.zeros(0, dtype=torch.long, device=logits.device)
            pairs.append((empty, empty))
            continue
        cost = matching_cost(logits[row], boxes[row], targets, weights)
        # The Hungarian method: of all one-to-one assignments the one with the least total cost,
        # which no query-by-query choice finds where two objects want the same query.
        queries, objects = (
            torch.as_tensor(indices, dtype=torch.long, device=logits.device)
            for indices in linear_sum_assignment(cost.cpu().numpy())
        )
        pairs.append((queries, objects))
    return pairs
