"""Exemplars: everything in an image that is like what was boxed, each instance on its own.

SAM 3's detector takes boxes as exemplars. A model whose detector was taught that a box means the
object in it (the bundled one) is asked for that object; what the phrase finds, and what a grid of
clicks finds, is compared with it: by size, and by the encoder's features in the masks.
"""

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medsam3_model.errors import PromptError
from medsam3_model.prompting import SpatialPrompt, segment_prompted
from medsam3_model.proposals.everything import Proposal, as_detections, click_each, distinct
from medsam3_model.second_look import look_closer
from medsam3_model.types import Detections, EncodeWindow, ImageEmbedding, TextEmbedding

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3

# Cosine of two objects' mean features from which on they are of a kind.
_LIKE = 0.8
# Areas of objects of a kind differ by at most this factor.
_SIZES = 4.0
# Share of the smaller of two masks that they may have in common and still be two objects.
_OVERLAP = 0.3
_GRID_LEAST, _GRID_MOST = 12, 40


def segment_like(
    model: "MedSAM3",
    image: ImageEmbedding,
    text: TextEmbedding,
    boxes: NDArray[np.float32],
    box_labels: Sequence[int],
    encode_window: EncodeWindow | None = None,
) -> Detections:
    """All instances of what the exemplar boxes show, those in the boxes among them.

    Args:
        model: whose detector takes exemplars, or which has a tracker.
        image: the encoded image.
        text: one encoded phrase, what the exemplars are called.
        boxes: (N, 4) x0, y0, x1, y1 in pixels of the image.
        box_labels: 1 "such things", 0 "not such things", N of them.
        encode_window: for a closer look at small exemplars.

    Raises:
        PromptError: no exemplar is positive, a box is empty, or the model can do neither.
    """
    if not any(box_labels):
        raise PromptError("no exemplar shows what is meant: draw a box around one such thing first")
    if model.takes_exemplars:
        return model.detect_all(image, text, boxes, box_labels)[0]
    points = np.zeros((0, 2), np.float32)

    def objects(label: int) -> NDArray[np.bool_]:
        drawn = boxes[np.asarray(box_labels, int) == label]
        if not len(drawn):
            return np.zeros((0, *image.original_size), np.bool_)
        prompt = SpatialPrompt(drawn, [1] * len(drawn), points, [])
        return segment_prompted(model, image, text, prompt, encode_window).masks

    shown, refused = objects(1), objects(0)
    if not len(shown):
        raise PromptError("nothing is seen in the exemplar boxes: draw them tightly around objects")
    named = _named(model, image, text, encode_window)
    found = [*named, *distinct(click_each(model, image, _grid(image, shown)), 500)]
    features = F.normalize(model.levels(image)[0][0].float().cpu(), dim=0)
    likes = [_mean_feature(features, mask) for mask in shown]
    unlikes = [_mean_feature(features, mask) for mask in refused]
    areas = [mask.mean() for mask in shown]
    alike = []
    for proposal in found:
        feature = _mean_feature(features, proposal.cells)
        similarity = max(float(feature @ like) for like in likes)
        other = max((float(feature @ unlike) for unlike in unlikes), default=-1.0)
        area = proposal.cells.mean()
        fits = any(area <= _SIZES * shown_area <= _SIZES**2 * area for shown_area in areas)
        if fits and similarity >= _LIKE and similarity > other:
            alike.append(proposal)
    return _with_exemplars(shown, alike, image.original_size, text.phrases[0])


def _named(
    model: "MedSAM3",
    image: ImageEmbedding,
    text: TextEmbedding,
    encode_window: EncodeWindow | None,
) -> list[Proposal]:
    """What the phrase finds: its instances, and the pieces of its semantic map."""
    answers = model.detect_all(image, text)
    if encode_window is not None:
        answers = look_closer(model, image, text, answers, encode_window)
    detections = answers[0]
    pieces, count = ndimage.label(detections.semantic > 0.5)
    masks = [*detections.masks, *(pieces == number for number in range(1, count + 1))]
    return [
        Proposal(
            np.where(mask, 8.0, -8.0).astype(np.float32), float(detections.semantic[mask].mean())
        )
        for mask in masks
    ]


def _grid(image: ImageEmbedding, shown: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Clicks so dense that one falls into each object of the smallest exemplar's size."""
    height, width = image.original_size
    smallest = min(float(np.sqrt(mask.sum())) for mask in shown)
    columns, rows = (
        min(max(ceil(1.5 * length / smallest), _GRID_LEAST), _GRID_MOST)
        for length in (width, height)
    )
    x, y = np.meshgrid(
        (np.arange(columns) + 0.5) / columns * width, (np.arange(rows) + 0.5) / rows * height
    )
    return np.stack([x.ravel(), y.ravel()], 1).astype(np.float32)


def _mean_feature(features: Tensor, mask: NDArray[np.bool_]) -> Tensor:
    """Unit vector (D,): the mean of unit features (D, h, w) in a mask of any resolution."""
    area = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
    weight = F.interpolate(area, features.shape[-2:], mode="bilinear", antialias=True)[0, 0]
    return F.normalize((features * weight).sum((1, 2)), dim=0)


def _with_exemplars(
    shown: NDArray[np.bool_], alike: Sequence[Proposal], size: tuple[int, int], phrase: str
) -> Detections:
    """The exemplars' own objects, and beside them what is like them, each once."""
    logits = [np.where(mask, 8.0, -8.0).astype(np.float32) for mask in shown]
    own = as_detections([Proposal(each, 1.0) for each in logits], size, phrase)
    others = as_detections(alike, size, phrase)
    taken, apart = list(shown), []
    for index, mask in enumerate(others.masks):
        if all((mask & other).sum() <= _OVERLAP * min(mask.sum(), other.sum()) for other in taken):
            taken.append(mask)
            apart.append(index)
    return Detections(
        masks=np.concatenate([own.masks, others.masks[apart]]),
        boxes=np.concatenate([own.boxes, others.boxes[apart]]),
        scores=np.concatenate([own.scores, others.scores[apart]]),
        presence=1.0,
        semantic=np.maximum(own.semantic, others.semantic),
        phrase=phrase,
        max_score=1.0,
    )
