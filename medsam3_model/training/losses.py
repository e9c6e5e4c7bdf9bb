"""SAM 3's training loss: set prediction with auxiliary layers, presence, and a semantic mask.

The terms and weights follow facebook's fine-tuning recipe. One-to-many matching (DAC) is left out:
it needs a second set of decoder outputs inside the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from medsam3_model.detector import DetectorOutput
from medsam3_model.training.matcher import MatchWeights, match


@dataclass(frozen=True)
class LossWeights:
    """Weights and parameters of the loss's terms; the defaults are SAM 3's."""

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
        """Whether the concept is there."""
        return len(self.boxes) > 0

    def to(self, device: torch.device) -> "PromptTarget":
        """The same on another device."""
        return PromptTarget(self.boxes.to(device), self.masks.to(device), self.semantic.to(device))


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
    # The aim is no path for gradients: otherwise a score would rise by lowering its own aim.
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
    present = torch.tensor([target.present for target in targets], device=output.logits.device)
    objects = max(sum(len(target.boxes) for target in targets), 1)
    zero = output.logits.sum() * 0
    terms = dict.fromkeys(
        ("classification", "box_l1", "giou", "presence", "mask_focal", "mask_dice"), zero
    )
    pairs: list[tuple[Tensor, Tensor]] = []
    # Every layer is matched by its own answers, so early layers are not held to the last one's.
    for logits, boxes, presence in zip(output.logits, output.boxes, output.presence, strict=True):
        pairs = match(logits, boxes, [target.boxes for target in targets], weights.match)
        rows, queries = _rows_and_queries(pairs)
        positive = torch.zeros_like(logits, dtype=torch.bool)
        quality = torch.zeros_like(logits)
        if len(rows):
            aims = torch.cat([t.boxes[n] for t, (_, n) in zip(targets, pairs, strict=True)])
            matched = boxes[rows, queries]
            corners, aim_corners = (box_convert(b, "cxcywh", "xyxy") for b in (matched, aims))
            positive[rows, queries] = True
            quality[rows, queries] = box_iou(corners.detach(), aim_corners).diag()
            terms["box_l1"] = terms["box_l1"] + (matched - aims).abs().sum() / objects
            # The default eps is of the size of a small object's area.
            giou = generalized_box_iou_loss(corners, aim_corners, reduction="sum", eps=1e-20)
            terms["giou"] = terms["giou"] + giou / objects
        per_query = classification_loss(logits, quality, positive, weights)
        terms["classification"] = (
            terms["classification"] + (per_query * present[:, None]).sum() / objects
        )
        terms["presence"] = terms["presence"] + F.binary_cross_entropy_with_logits(
            presence, present.float()
        )
    terms |= _mask_terms(output, targets, pairs, weights)
    weighted = {name: getattr(weights, name) * value for name, value in terms.items()}
    weighted["total"] = torch.stack(list(weighted.values())).sum()
    return weighted


def _mask_terms(
    output: DetectorOutput,
    targets: Sequence[PromptTarget],
    pairs: Sequence[tuple[Tensor, Tensor]],
    weights: LossWeights,
) -> dict[str, Tensor]:
    """Focal and Dice loss of the matched instances' masks, and of the semantic masks."""
    terms = {}
    masks, aims = [], []
    # Taken apart once: the gradient of each `pixels[at]` would be a whole batch of zeros.
    for at, (row, pixels) in enumerate(
        zip(output.mask_rows.tolist(), output.pixels.unbind(), strict=True)
    ):
        queries, numbers = pairs[row]
        if len(queries):  # only the matched queries' masks are painted at all
            masks.append(output.masks(at, queries, pixels))
            aims.append(targets[row].masks[numbers])
    if masks:
        every_mask, every_aim = torch.cat(masks), torch.cat(aims)
        focal = sigmoid_focal_loss(every_mask, every_aim, weights.mask_alpha, weights.gamma)
        terms["mask_focal"] = focal.mean(dim=(1, 2)).sum() / len(every_mask)
        terms["mask_dice"] = dice_loss(every_mask, every_aim).sum() / len(every_mask)
    if len(output.mask_rows):
        union = torch.stack([targets[row].semantic for row in output.mask_rows.tolist()])
        focal = sigmoid_focal_loss(output.semantic, union, weights.semantic_alpha, weights.gamma)
        terms["semantic_focal"] = focal.mean()
        terms["semantic_dice"] = dice_loss(output.semantic, union).mean()
    return terms


def _rows_and_queries(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The prompt and the query of each matched pair, int64 (pairs,) each."""
    rows = [torch.full_like(queries, row) for row, (queries, _) in enumerate(pairs)]
    return torch.cat(rows), torch.cat([queries for queries, _ in pairs])
