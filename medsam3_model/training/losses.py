"""SAM 3's training loss: set prediction with auxiliary layers, presence, and a semantic mask.

The terms and weights follow facebook's fine-tuning recipe. One-to-many matching (DAC) is left out:
it needs a second set of decoder outputs inside the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from medsam3_model.detector import DetectorOutput
from medsam3_model.training.matcher import MatchWeights, box_iou_and_giou, cxcywh_to_xyxy, match


@dataclass(frozen=True)
class LossWeights:
    """Weights and parameters of the terms; the defaults are SAM 3's."""

    classification: float = 20.0
    box_l1: float = 5.0
    giou: float = 2.0
    presence: float = 20.0
    mask_focal: float = 200.0
    mask_dice: float = 10.0
    semantic_focal: float = 20.0
    semantic_dice: float = 30.0
    semantic_alpha: float = 0.6
    mask_alpha: float = 0.25
    gamma: float = 2.0
    positive_weight: float = 10.0
    match: MatchWeights = field(default_factory=MatchWeights)


@dataclass(frozen=True)
class PromptTarget:
    """The truth for one prompt.

    boxes: float32 (N, 4) cxcywh in 0..1, one per instance; masks: float32 (N, h, w) in 0..1 at the
    model's mask resolution; semantic: float32 (h, w) in 0..1, the union. An absent concept has
    N = 0 and an empty union.
    """

    boxes: Tensor
    masks: Tensor
    semantic: Tensor

    @property
    def present(self) -> bool:
        return len(self.boxes) > 0


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss per element (Lin et al. 2017), same shape as `logits`; targets in 0..1."""
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    correct = probability * targets + (1 - probability) * (1 - targets)
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return balance * (1 - correct) ** gamma * entropy


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − soft Dice per mask: (N, ...) logits and targets in 0..1 to (N,). Empty masks are fine."""
    probability, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    shared = (probability * targets).sum(dim=1)
    return 1 - (2 * shared + 1) / (probability.sum(dim=1) + targets.sum(dim=1) + 1)


def classification_loss(
    logits: Tensor, quality: Tensor, positive: Tensor, weights: LossWeights
) -> Tensor:
    """IoU-aware classification per query, same shape as `logits`.

    A matched query (`positive`) aims at p^.25·IoU^.75 (at least .01; `quality` holds the IoU), so
    that the score tells how good the box is; the others aim at 0, weighted by p^γ.
    """
    probability = logits.detach().sigmoid()
    aim = torch.where(
        positive, (probability**0.25 * quality.clamp(min=0) ** 0.75).clamp(min=0.01), 0.0
    )
    entropy = F.binary_cross_entropy_with_logits(logits, aim, reduction="none")
    scale = torch.where(
        positive, torch.full_like(entropy, weights.positive_weight), probability**weights.gamma
    )
    return scale * entropy


def detector_loss(
    output: DetectorOutput, targets: Sequence[PromptTarget], weights: LossWeights | None = None
) -> dict[str, Tensor]:
    """The weighted terms and their sum (`total`), scalars, for P prompts with `targets`.

    Classification, boxes and presence are summed over the decoder's layers; masks are scored on the
    last. Queries are taught to reject only where the concept is present: its absence is the
    presence token's to say.
    """
    weights = weights or LossWeights()
    layers = output.logits.shape[0]
    device = output.logits.device
    present = torch.tensor([target.present for target in targets], device=device)
    objects = max(sum(len(target.boxes) for target in targets), 1)
    zero = output.logits.sum() * 0
    terms = dict.fromkeys(
        ("classification", "box_l1", "giou", "presence", "mask_focal", "mask_dice"), zero
    )
    pairs: list[tuple[Tensor, Tensor]] = []
    for layer in range(layers):
        logits, boxes = output.logits[layer], output.boxes[layer]
        pairs = match(logits, boxes, [target.boxes for target in targets], weights.match)
        rows, queries = _rows_and_queries(pairs)
        positive = torch.zeros_like(logits, dtype=torch.bool)
        quality = torch.zeros_like(logits)
        if len(rows):
            aims = torch.cat([t.boxes[n] for t, (_, n) in zip(targets, pairs, strict=True)])
            found = boxes[rows, queries]
            iou, giou = box_iou_and_giou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(aims))
            positive[rows, queries] = True
            quality[rows, queries] = iou.detach()
            terms["box_l1"] = terms["box_l1"] + (found - aims).abs().sum() / objects
            terms["giou"] = terms["giou"] + (1 - giou).sum() / objects
        per_query = classification_loss(logits, quality, positive, weights)
        terms["classification"] = (
            terms["classification"] + (per_query * present[:, None]).sum() / objects
        )
        terms["presence"] = terms["presence"] + F.binary_cross_entropy_with_logits(
            output.presence[layer], present.float()
        )

    position = {int(row): at for at, row in enumerate(output.mask_rows)}
    found_masks, aim_masks = [], []
    for row, (queries, numbers) in enumerate(pairs):
        if row in position and len(queries):
            found_masks.append(output.masks(position[row], queries))
            aim_masks.append(targets[row].masks[numbers])
    if found_masks:
        masks, aims = torch.cat(found_masks), torch.cat(aim_masks)
        focal = sigmoid_focal_loss(masks, aims, weights.mask_alpha, weights.gamma)
        terms["mask_focal"] = focal.mean(dim=(1, 2)).sum() / len(masks)
        terms["mask_dice"] = dice_loss(masks, aims).sum() / len(masks)
    if len(output.mask_rows):
        union = torch.stack([targets[int(row)].semantic for row in output.mask_rows])
        focal = sigmoid_focal_loss(output.semantic, union, weights.semantic_alpha, weights.gamma)
        terms["semantic_focal"] = focal.mean()
        terms["semantic_dice"] = dice_loss(output.semantic, union).mean()
    weighted = {name: getattr(weights, name) * value for name, value in terms.items()}
    weighted["total"] = torch.stack(list(weighted.values())).sum()
    return weighted


def _rows_and_queries(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    rows = [torch.full_like(queries, row) for row, (queries, _) in enumerate(pairs)]
    return torch.cat(rows), torch.cat([queries for queries, _ in pairs])
