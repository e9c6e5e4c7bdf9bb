"""Prompts that are drawn for training images, with their right answers.

A positive box asks for the object in the box alone, whatever the text says; text without a box asks
for everything of that name. Concepts that the image does not hold are asked too: presence is
learned from nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_convert

from medsam3_model.boxes import BOX_ERROR, tight_box
from medsam3_model.pretraining.phrases import (
    CONCEPT_PHRASES,
    EVERYDAY_PHRASES,
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

SOUGHT = 0.3
"""Of the absent concepts that pre-training asks about, those that were looked for in the image."""

# The prompts about corrections.
_ABSENT_SHARE = 0.2
"""Of the prompts: presence learns from nothing else."""
_FOREIGN_SHARE = 0.3
"""Of these, where an absent concept is known: an everyday thing instead; else all of them. Where
every image holds what is asked for, a detector would otherwise learn to answer to any name."""
_BOXED_SHARE = 0.3
"""Of the prompts for what is there."""
_GENERIC_SHARE = 0.25
"""Of the boxes: asked without the concept's name, as from somebody who only draws."""
_EMPTY_MASKED_SHARE = 0.25
"""Of the prompts for what is not there: those of which an empty mask is learned, too. Presence and
scores say nearly all about it, and the masks of what is there are worth more."""


@dataclass(frozen=True)
class DrawnPrompt:
    """One prompt and its answer.

    box: float32 (4,) cxcywh in 0..1, or None for text alone. wants_masks: whether the mask decoder
    is trained on it (an absent concept mostly needs the presence token only).
    """

    phrase: str
    box: Tensor | None
    target: PromptTarget
    wants_masks: bool = True


def target_of(labels: Tensor, numbers: Tensor | None, mask_size: int) -> PromptTarget:
    """The answer that consists of some instances, at the mask's resolution.

    labels: int64 (S, S) instance numbers, S a multiple of `mask_size`; numbers: the instances asked
    for (None: all). The union has all of them; boxes and masks the largest `_MOST_INSTANCES`.
    """
    if numbers is None:
        numbers = _numbers(labels)
    factor = labels.shape[-1] // mask_size
    union = F.avg_pool2d(torch.isin(labels, numbers).float()[None], factor)[0]
    if len(numbers) == 0:
        return PromptTarget(torch.zeros(0, 4), torch.zeros(0, mask_size, mask_size), union)
    if len(numbers) > _MOST_INSTANCES:
        areas = torch.bincount(labels.flatten(), minlength=int(numbers.max()) + 1)[numbers]
        numbers = numbers[areas.argsort(descending=True)[:_MOST_INSTANCES]]
    each = labels[None] == numbers[:, None, None]
    boxes = torch.from_numpy(np.stack([_box(mask) for mask in each]))
    return PromptTarget(
        box_convert(boxes, "xyxy", "cxcywh"), F.avg_pool2d(each.float(), factor), union
    )


def correction_prompt(
    layers: Mapping[str, Tensor], mask_size: int, rng: np.random.Generator
) -> DrawnPrompt:
    """A prompt about one view of a corrected image, for fine-tuning.

    It asks by text or with a box around one object for something that is there, or by text for
    something that the annotator looked for and did not find, or for an everyday thing.

    Args:
        layers: phrase -> int64 (S, S) instance numbers of the view.
        mask_size: side of the model's masks; S is a multiple of it.
        rng: decides.
    """
    present = [phrase for phrase, layer in layers.items() if (layer > 0).any()]
    absent = [phrase for phrase in layers if phrase not in present]
    ask_absent = not present or rng.random() < _ABSENT_SHARE
    if ask_absent and (not absent or rng.random() < _FOREIGN_SHARE):
        foreign = tuple(name for name in EVERYDAY_PHRASES if name not in layers)
        phrase = _any_of(foreign, rng)
        return DrawnPrompt(phrase, None, _nothing(mask_size), wants_masks=False)
    phrases = absent if ask_absent else present
    phrase = phrases[int(rng.integers(len(phrases)))]
    if not ask_absent and rng.random() < _BOXED_SHARE:
        prompt = _boxed_object(phrase, layers[phrase], mask_size, rng)
    else:
        prompt = DrawnPrompt(phrase, None, target_of(layers[phrase], None, mask_size))
    wants_masks = not ask_absent or rng.random() < _EMPTY_MASKED_SHARE
    return replace(prompt, wants_masks=bool(wants_masks))


def pretraining_prompts(
    layers: Mapping[str, Tensor],
    family: str,
    mask_size: int,
    rng: np.random.Generator,
    most_text: int = 2,
    most_boxes: int = 1,
    asked: Mapping[str, float] | None = None,
    sought: float = SOUGHT,
) -> list[DrawnPrompt]:
    """Prompts about one view of an image with known concepts, for pre-training.

    layers: concept -> int64 (S, S) instance numbers of the view; an empty one says that the concept
    is absent. At most `most_text` concepts are asked by name and `most_boxes` with a box; one
    absent concept is asked about in every view. asked: how often each concept is asked where it is
    present. Absent ones are drawn alike: a name that is nearly always present when it is asked
    would be answered without a look at the image. sought: of the absent ones, the share that was
    looked for in vain in this image.
    """
    factor = next(iter(layers.values())).shape[-1] // mask_size
    smallest = _SMALLEST * factor**2
    # What is there but too small in this view is in neither list.
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
            prompts.append(_boxed_instances(concept, layers[concept], mask_size, smallest, rng))
    prompts.append(_absent(layers, gone, family, mask_size, rng, asked or {}, sought))
    return prompts


def _boxed_instances(
    concept: str, layer: Tensor, mask_size: int, smallest: float, rng: np.random.Generator
) -> DrawnPrompt:
    """A box around one instance, or around all of a few, with a name that says more or less."""
    areas = torch.bincount(layer.flatten())
    areas[0] = 0
    numbers = torch.nonzero(areas >= min(smallest, float(areas.max())))[:, 0]
    if len(numbers) > 3 or rng.random() < 0.5:
        numbers = numbers[int(rng.integers(len(numbers)))][None]
    exact = _box(torch.isin(layer, numbers))
    # Also exact boxes and sloppy ones, so that no one error is counted on.
    deviation = rng.choice([0.0, 0.04, 0.08, 0.12], p=[0.1, 0.2, 0.5, 0.2])
    box = torch.from_numpy(disturb_box(exact, float(deviation), rng))
    pick = rng.random()
    if concept == BOX_ONLY or 0.45 < pick < 0.8:
        phrase = _any_of(GENERIC_PHRASES, rng)
    elif pick <= 0.45:
        phrase = _name(concept, rng)
    else:
        phrase = _any_of(all_phrases(), rng)
    return DrawnPrompt(
        phrase, box_convert(box, "xyxy", "cxcywh"), target_of(layer, numbers, mask_size)
    )


def _absent(
    layers: Mapping[str, Tensor],
    gone: list[str],
    family: str,
    mask_size: int,
    rng: np.random.Generator,
    asked: Mapping[str, float],
    sought: float,
) -> DrawnPrompt:
    """The name of something that is not in the view: looked for in vain, or of another family."""
    if gone and rng.random() < sought:
        phrase = _name(gone[int(rng.integers(len(gone)))], rng)
    elif rng.random() < 0.85:
        others = [c for c in CONCEPT_PHRASES if c not in layers and c not in UNLABELLED[family]]
        weights = np.array([asked.get(concept, 0.0) + 0.01 for concept in others])
        concept = others[int(rng.choice(len(others), p=weights / weights.sum()))]
        phrase = concept if rng.random() < 0.4 else _any_of(CONCEPT_PHRASES[concept], rng)
    else:
        phrase = _any_of(OTHER_PHRASES, rng)
        while phrase in UNLABELLED[family]:
            phrase = _any_of(OTHER_PHRASES, rng)
    return DrawnPrompt(phrase, None, _nothing(mask_size), wants_masks=rng.random() < 0.25)


def _nothing(mask_size: int) -> PromptTarget:
    """The answer to what is not there."""
    return PromptTarget(
        torch.zeros(0, 4), torch.zeros(0, mask_size, mask_size), torch.zeros(mask_size, mask_size)
    )


def _boxed_object(
    phrase: str, layer: Tensor, mask_size: int, rng: np.random.Generator
) -> DrawnPrompt:
    """A box around one object, as a person draws it: it asks for that object alone."""
    numbers = _numbers(layer)
    number = numbers[int(rng.integers(len(numbers)))][None]
    drawn = disturb_box(_box(torch.isin(layer, number)), BOX_ERROR, rng)
    box = box_convert(torch.from_numpy(drawn), "xyxy", "cxcywh")
    if rng.random() < _GENERIC_SHARE:
        phrase = _any_of(GENERIC_PHRASES, rng)
    return DrawnPrompt(phrase, box, target_of(layer, number, mask_size))


def _numbers(labels: Tensor) -> Tensor:
    """The numbers of the instances that are there, int64 (N,), ascending."""
    # Counted, not sorted as `unique` does: it is asked for every prompt.
    return torch.bincount(labels.flatten())[1:].nonzero()[:, 0] + 1


def _name(concept: str, rng: np.random.Generator) -> str:
    if concept in LESION_CONCEPTS and rng.random() < 0.12:
        return _any_of(LESION_PHRASES, rng)
    return concept if rng.random() < 0.4 else _any_of(CONCEPT_PHRASES[concept], rng)


def _any_of(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _box(mask: Tensor) -> NDArray[np.float32]:
    """Tight box of a bool (S, S) mask, xyxy in 0..1, float32 (4,)."""
    return np.asarray(tight_box(mask.numpy()) / mask.shape[-1], np.float32)
