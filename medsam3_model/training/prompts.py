"""What to ask about a training image, and what the right answers are.

A positive box asks for the object in the box alone, whatever the text says; text without a box asks
for everything of that name. Concepts that the image does not hold are asked too: presence is
learned from nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medsam3_model.pretraining.phrases import (
    CONCEPT_PHRASES,
    GENERIC_PHRASES,
    LESION_CONCEPTS,
    LESION_PHRASES,
    OTHER_PHRASES,
    UNLABELLED,
    all_phrases,
)
from medsam3_model.training.augmentation import disturb_box
from medsam3_model.training.losses import PromptTarget

BOX_ONLY = "object"
"""The concept of things that have no name: only asked for with a box."""

_MOST_INSTANCES = 24
_SMALLEST = 6.0  # cells of the mask: what covers less is neither asked for nor denied


@dataclass(frozen=True)
class DrawnPrompt:
    """One question and its answer.

    box: float32 (4,) cxcywh in 0..1, or None for text alone. wants_masks: whether the mask decoder
    is trained on it (an absent concept mostly needs the presence token only).
    """

    phrase: str
    box: Tensor | None
    target: PromptTarget
    wants_masks: bool = True


def target_of(labels: Tensor, numbers: Tensor | None, mask_size: int) -> PromptTarget:
    """The answer "these instances" at the mask's resolution.

    labels: int64 (S, S) instance numbers, S a multiple of `mask_size`; numbers: the instances asked
    for (None: all). The union has all of them; boxes and masks the largest `_MOST_INSTANCES`.
    """
    if numbers is None:
        numbers = labels.unique()
        numbers = numbers[numbers > 0]
    factor = labels.shape[-1] // mask_size
    union = F.avg_pool2d(torch.isin(labels, numbers).float()[None], factor)[0]
    if len(numbers) == 0:
        return PromptTarget(torch.zeros(0, 4), torch.zeros(0, mask_size, mask_size), union)
    if len(numbers) > _MOST_INSTANCES:
        areas = torch.bincount(labels.flatten(), minlength=int(numbers.max()) + 1)[numbers]
        numbers = numbers[areas.argsort(descending=True)[:_MOST_INSTANCES]]
    each = labels[None] == numbers[:, None, None]
    boxes = torch.stack([_box(mask) for mask in each])
    return PromptTarget(_to_cxcywh(boxes), F.avg_pool2d(each.float(), factor), union)


def draw_prompts(
    layers: Mapping[str, Tensor],
    family: str,
    mask_size: int,
    rng: np.random.Generator,
    most_text: int = 2,
    most_boxes: int = 1,
    asked: Mapping[str, float] | None = None,
) -> list[DrawnPrompt]:
    """Questions about one view.

    layers: concept -> int64 (S, S) instance numbers of the view; an empty one says that the concept
    is absent. At most `most_text` concepts are asked by name and `most_boxes` with a box; one
    absent concept is asked about in every view. asked: how often each concept is asked where it is
    present. Absent ones are drawn alike: a name that is nearly always present when it is asked
    would be answered without a look at the image.
    """
    factor = next(iter(layers.values())).shape[-1] // mask_size
    smallest = _SMALLEST * factor**2
    visible = [c for c, layer in layers.items() if int((layer > 0).sum()) >= smallest]
    gone = [c for c, layer in layers.items() if not (layer > 0).any() and c != BOX_ONLY]
    prompts = []
    named = [c for c in visible if c != BOX_ONLY]
    rng.shuffle(named)
    for concept in named[:most_text]:
        target = target_of(layers[concept], None, mask_size)
        prompts.append(DrawnPrompt(_name(concept, rng), None, target))
    for _ in range(most_boxes):
        if visible:
            concept = visible[int(rng.integers(len(visible)))]
            prompts.append(_boxed(concept, layers[concept], mask_size, smallest, rng))
    prompts.append(_absent(layers, gone, family, mask_size, rng, asked or {}))
    return prompts


def _boxed(
    concept: str, layer: Tensor, mask_size: int, smallest: float, rng: np.random.Generator
) -> DrawnPrompt:
    areas = torch.bincount(layer.flatten())
    areas[0] = 0
    numbers = torch.nonzero(areas >= min(smallest, float(areas.max())))[:, 0]
    if len(numbers) > 3 or rng.random() < 0.5:
        numbers = numbers[int(rng.integers(len(numbers)))][None]
    exact = _box(torch.isin(layer, numbers)).numpy()
    deviation = rng.choice([0.0, 0.04, 0.08, 0.12], p=[0.1, 0.2, 0.5, 0.2])
    box = torch.from_numpy(disturb_box(exact, float(deviation), rng))
    pick = rng.random()
    if concept == BOX_ONLY or 0.45 < pick < 0.8:
        phrase = _one(GENERIC_PHRASES, rng)
    elif pick <= 0.45:
        phrase = _name(concept, rng)
    else:
        phrase = _one(all_phrases(), rng)
    return DrawnPrompt(phrase, _to_cxcywh(box), target_of(layer, numbers, mask_size))


def _absent(
    layers: Mapping[str, Tensor],
    gone: list[str],
    family: str,
    mask_size: int,
    rng: np.random.Generator,
    asked: Mapping[str, float],
) -> DrawnPrompt:
    if gone and rng.random() < 0.3:
        phrase = _name(gone[int(rng.integers(len(gone)))], rng)
    elif rng.random() < 0.85:
        others = [c for c in CONCEPT_PHRASES if c not in layers and c not in UNLABELLED[family]]
        weights = np.array([asked.get(concept, 0.0) + 0.01 for concept in others])
        concept = others[int(rng.choice(len(others), p=weights / weights.sum()))]
        phrase = concept if rng.random() < 0.4 else _one(CONCEPT_PHRASES[concept], rng)
    else:
        phrase = _one(OTHER_PHRASES, rng)
        while phrase in UNLABELLED[family]:
            phrase = _one(OTHER_PHRASES, rng)
    nothing = PromptTarget(
        torch.zeros(0, 4), torch.zeros(0, mask_size, mask_size), torch.zeros(mask_size, mask_size)
    )
    return DrawnPrompt(phrase, None, nothing, wants_masks=rng.random() < 0.25)


def _name(concept: str, rng: np.random.Generator) -> str:
    if concept in LESION_CONCEPTS and rng.random() < 0.12:
        return _one(LESION_PHRASES, rng)
    return concept if rng.random() < 0.4 else _one(CONCEPT_PHRASES[concept], rng)


def _one(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _box(mask: Tensor) -> Tensor:
    """Tightest box of a bool (S, S) mask, xyxy in 0..1, float32."""
    size = mask.shape[-1]
    columns, rows = mask.any(dim=0).nonzero()[:, 0], mask.any(dim=1).nonzero()[:, 0]
    corners = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return torch.stack(corners).float() / size


def _to_cxcywh(boxes: Tensor) -> Tensor:
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)
