"""Everything in an image: a grid of clicks through the tracker, without any name.

Each click has three answers; those are kept that the tracker trusts and whose edge is sharp, each
object once, as SAM's automatic mask generator does it (Kirillov et al. 2023, appendix B).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torchvision.ops import box_iou

from medsam3_model.boxes import tight_box
from medsam3_model.errors import PromptError
from medsam3_model.types import Detections, ImageEmbedding

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3

_CLICKS_AT_ONCE = 32
# Share of the image beyond which a mask is its background.
_LARGEST = 0.6
_SMALLEST_CELLS = 4
# Of two masks that overlap more than this the less trusted one goes.
_SAME = 0.5


@dataclass(frozen=True, eq=False)
class Proposal:
    """One object: logits float32 (h, w) over the whole image, and the IoU the tracker predicts."""

    logits: NDArray[np.float32]
    iou: float

    @property
    def cells(self) -> NDArray[np.bool_]:
        """The mask at the tracker's resolution, bool (h, w)."""
        return np.asarray(self.logits > 0)


def propose_everything(
    model: "MedSAM3", image: ImageEmbedding, *, grid: int = 16, most: int = 100
) -> Detections:
    """All objects of an image, the most trusted first.

    Args:
        model: with a tracker.
        image: the encoded image.
        grid: clicks along each side.
        most: objects at most.

    Raises:
        PromptError: the model has no tracker.
    """
    height, width = image.original_size
    centres = (np.arange(grid) + 0.5) / grid
    x, y = np.meshgrid(centres * width, centres * height)
    points = np.stack([x.ravel(), y.ravel()], 1).astype(np.float32)
    found = distinct(click_each(model, image, points), most)
    return apart(as_detections(found, image.original_size))


def click_each(
    model: "MedSAM3", image: ImageEmbedding, points: NDArray[np.float32]
) -> Iterator[Proposal]:
    """What single clicks at (N, 2) x, y mean, as far as the tracker is sure of it.

    Raises PromptError where the model has no tracker.
    """
    if model.tracker is None:
        raise PromptError(
            f"{model.version} has no tracker, which objects without a name need: use a checkpoint "
            "with SAM 3's tracker, such as facebook's sam3.pt"
        )
    traits = model.tracker.traits
    for start in range(0, len(points), _CLICKS_AT_ONCE):
        answer = model.tracker.ask_each(image, points[start : start + _CLICKS_AT_ONCE])
        logits, iou = answer.logits.reshape(-1, *answer.logits.shape[-2:]), answer.iou.ravel()
        areas = (logits > 0).sum((1, 2))
        stable = (logits > 1).sum((1, 2)) / np.maximum((logits > -1).sum((1, 2)), 1)
        good = (iou >= traits.trusted_iou) & (stable >= traits.trusted_stability)
        good &= (areas >= _SMALLEST_CELLS) & (areas <= _LARGEST * logits[0].size)
        for index in np.nonzero(good)[0].tolist():
            yield Proposal(logits[index], min(1.0, float(iou[index])))


def distinct(proposals: Iterator[Proposal] | Sequence[Proposal], most: int) -> list[Proposal]:
    """Each object once, the most trusted first."""
    ordered = sorted(proposals, key=lambda proposal: -proposal.iou)
    kept: list[Proposal] = []
    cells: NDArray[np.bool_] = np.zeros((0, 0), np.bool_)
    for proposal in ordered:
        mask = proposal.cells.ravel()
        if kept:
            shared = (cells & mask).sum(1)
            either = (cells | mask).sum(1)
            if (shared / either).max() > _SAME:
                continue
        kept.append(proposal)
        cells = np.stack([other.cells.ravel() for other in kept])
        if len(kept) == most:
            break
    return kept


def as_detections(
    proposals: Sequence[Proposal], size: tuple[int, int], phrase: str = ""
) -> Detections:
    """Proposals at the image's own size, (height, width)."""
    masks, scores = [], []
    semantic = np.zeros(size, np.float32)
    for proposal in proposals:
        large = F.interpolate(
            torch.from_numpy(proposal.logits)[None, None],
            size,
            mode="bilinear",
            align_corners=False,
        )[0, 0]
        mask = (large > 0).numpy()
        if mask.any():
            masks.append(mask)
            scores.append(proposal.iou)
            np.maximum(semantic, large.sigmoid().numpy(), out=semantic)
    return Detections(
        masks=np.stack(masks) if masks else np.zeros((0, *size), np.bool_),
        boxes=np.array([tight_box(mask) for mask in masks], np.float32).reshape(-1, 4),
        scores=np.array(scores, np.float32),
        presence=max(scores, default=0.0),
        semantic=semantic,
        phrase=phrase,
        max_score=max(scores, default=0.0),
    )


def apart(found: Detections) -> Detections:
    """Each object once at the image's own size, too.

    Small masks change their shape when they are enlarged, and two may come out alike.
    """
    boxes = torch.from_numpy(found.boxes)
    meet = box_iou(boxes, boxes).numpy() > 0
    kept: list[int] = []
    for number, mask in enumerate(found.masks):
        others = (found.masks[other] for other in kept if meet[other, number])
        if all((other & mask).sum() <= _SAME * (other | mask).sum() for other in others):
            kept.append(number)
    return replace(
        found, masks=found.masks[kept], boxes=found.boxes[kept], scores=found.scores[kept]
    )
