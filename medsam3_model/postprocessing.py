"""Postprocessing: from the detector's tensors to instances at the image's own size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou, nms

from medsam3_model.types import Detections

# Queries below this score are noise even for a drawn box.
_LOWEST_SCORE = 0.02


@dataclass(frozen=True)
class DetectionSettings:
    """How the detector's queries become instances.

    Attributes:
        score_threshold: lowest score of a shown instance (facebook 0.5, transformers 0.3).
        use_presence: multiply scores by the presence probability, as SAM 3 does; the published
            MedSAM3-v1 scripts do not.
        nms_iou_threshold: of boxes, and of masks, that overlap more than this the best stays;
            None: no NMS.
        mask_threshold: probability above which a pixel belongs to an instance.
        min_area: smallest mask, in pixels of the image, that counts as an instance.
        max_instances: at most this many, best first.
        semantic_share: how much the semantic map counts in the log-odds of every instance's mask,
            0 to 1. The map is the steadier of the two, and a query is sure of what belongs to its
            neighbours.
    """

    score_threshold: float = 0.5
    use_presence: bool = True
    nms_iou_threshold: float | None = 0.5
    mask_threshold: float = 0.5
    min_area: int = 1
    max_instances: int = 100
    semantic_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("score_threshold", "nms_iou_threshold", "semantic_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is between 0 and 1, not {value}")
        if not 0 < self.mask_threshold < 1:
            raise ValueError(f"mask_threshold is between 0 and 1, not {self.mask_threshold}")
        if self.min_area < 0 or self.max_instances < 1:
            raise ValueError("min_area is at least 0, max_instances at least 1")


SAM3_SETTINGS = DetectionSettings(nms_iou_threshold=None)
"""As facebook's image processor: 0.5, with presence, without NMS."""

MEDSAM3_V1_SETTINGS = DetectionSettings(use_presence=False)
"""As the published MedSAM3-v1 scripts: 0.5, presence ignored, box NMS 0.5."""

MEDICAL_SAM3_SETTINGS = DetectionSettings(score_threshold=0.1)
"""As Medical-SAM3's scripts: 0.1, with presence. They look at the best instance only; here all are
kept that are not a better one again, because a label may have several."""


def to_detections(
    outputs: Mapping[str, torch.Tensor],
    row: int,
    size: tuple[int, int],
    settings: DetectionSettings,
    phrase: str = "",
) -> Detections:
    """Instances of one phrase.

    Args:
        outputs: the tensors of `MedSAM3.raw`.
        row: which phrase of the batch.
        size: (height, width) of the image in pixels.
        settings: thresholds.
        phrase: kept in the result.
    """
    height, width = size
    presence = outputs["presence_logits"][row].float().sigmoid().reshape(())
    scores = outputs["pred_logits"][row].float().sigmoid()
    if settings.use_presence:
        scores = scores * presence
    scale = torch.tensor([width, height, width, height], device=scores.device)
    boxes = outputs["pred_boxes"][row].float().clamp(0, 1) * scale

    # From here on queries by their numbers, best first.
    order = scores.argsort(descending=True)
    order = order[scores[order] > settings.score_threshold]
    if settings.nms_iou_threshold is not None:
        order = order[nms(boxes[order], scores[order], settings.nms_iou_threshold)]
        order = _distinct(outputs["pred_masks"][row], order, settings)

    # A mask is enlarged only when its turn comes: most queries never get that far.
    masks: list[np.ndarray] = []
    kept: list[int] = []
    semantic_logits = outputs["semantic_seg"][row, 0].float()
    for query in order.tolist():
        if len(kept) == settings.max_instances:
            break
        own = outputs["pred_masks"][row, query].float()
        logits = own.lerp(semantic_logits, settings.semantic_share)
        mask = _full_size_mask(logits, size, settings.mask_threshold)
        if int(mask.sum()) >= settings.min_area:
            masks.append(mask)
            kept.append(query)

    semantic = F.interpolate(
        semantic_logits[None, None], size, mode="bilinear", align_corners=False
    )
    return Detections(
        masks=np.stack(masks) if masks else np.zeros((0, height, width), dtype=np.bool_),
        boxes=boxes[kept].cpu().numpy(),
        scores=scores[kept].cpu().numpy(),
        presence=float(presence),
        semantic=semantic[0, 0].sigmoid_().cpu().numpy(),
        phrase=phrase,
        max_score=float(scores.max()),
    )


def object_logits(
    outputs: Mapping[str, torch.Tensor], row: int, box: np.ndarray
) -> tuple[np.ndarray, float]:
    """What the detector says about the object in a box that it was asked with.

    The query whose box overlaps most with the asked one tells it from its neighbours; the semantic
    map, in which all queries have a say, is the steadier of the two. They are averaged, the query's
    weight being that overlap: a detector that finds the object answers with its query, one that
    finds no such thing with the map.

    Args:
        outputs: the tensors of `MedSAM3.raw`.
        row: which prompt of the batch.
        box: float (4,), x0, y0, x1, y1 as fractions of the image.

    Returns:
        Log-odds float32 (h, w) at the detector's resolution, and the presence probability.
    """
    boxes = outputs["pred_boxes"][row].float().clamp(0, 1)
    overlaps = box_iou(boxes, torch.as_tensor(box, device=boxes.device).float()[None])[:, 0]
    scores = outputs["pred_logits"][row].float().sigmoid()
    overlaps = overlaps.masked_fill(scores < _LOWEST_SCORE, 0)
    # Of queries that box it alike the surer one; the root lets overlap weigh more than score.
    best = int((overlaps * scores.sqrt()).argmax())
    weight = overlaps[best]
    semantic = outputs["semantic_seg"][row, 0].float()
    logits = weight * outputs["pred_masks"][row, best].float() + (1 - weight) * semantic
    presence = outputs["presence_logits"][row].float().sigmoid().reshape(())
    return logits.cpu().numpy(), float(presence)


def _distinct(
    logits: torch.Tensor, order: torch.Tensor, settings: DetectionSettings
) -> torch.Tensor:
    """The queries whose masks are not those of a better one again.

    Two queries may draw the same mask and box it differently, which box NMS lets through. At the
    detector's own resolution, where hundreds of masks are compared in a millisecond.

    Args:
        logits: masks of all queries (Q, h, w).
        order: the queries to look at, best first.
        settings: `nms_iou_threshold` is used for masks, too.
    """
    cut = math.log(settings.mask_threshold / (1 - settings.mask_threshold))
    pixels = (logits[order] > cut).flatten(1).float()
    # Masks of 0 and 1: one product of the matrix with itself counts what every two share.
    shared = pixels @ pixels.T
    areas = pixels.sum(1)
    ious = shared / (areas[:, None] + areas[None] - shared).clamp(min=1)
    kept: list[int] = []
    for index, row in enumerate(ious.tolist()):
        # Compared with those that stay only: what was dropped drops nobody else.
        if all(row[better] <= (settings.nms_iou_threshold or 1) for better in kept):
            kept.append(index)
    return order[kept]


def _full_size_mask(logits: torch.Tensor, size: tuple[int, int], threshold: float) -> np.ndarray:
    """One instance at the image's size, one at a time so that large photographs stay cheap."""
    resized = F.interpolate(logits[None, None].float(), size, mode="bilinear", align_corners=False)[
        0, 0
    ]
    # The sigmoid is monotonic: comparing logits spares computing it for every pixel.
    return (resized > math.log(threshold / (1 - threshold))).cpu().numpy()
