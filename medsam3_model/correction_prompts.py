"""What to ask about a corrected image, and the answers that the annotator gave."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from medsam3_model.augmentation import disturb_box
from medsam3_model.boxes import BOX_ERROR, tight_box
from medsam3_model.phrases import GENERIC_PHRASES
from medsam3_model.training_prompts import DrawnPrompt, target_of

_MOST_BY_TEXT = 4
_MOST_BY_BOX = 2
_GENERIC_SHARE = 0.25
"""Of the boxes: asked without the concept's name, as from somebody who only draws."""
_ABSENT_MASKS = 0.25
"""Of the absent concepts: those whose empty mask is learned, too; the others teach presence."""


def draw_prompts(
    layers: Mapping[str, Tensor], mask_size: int, rng: np.random.Generator
) -> list[DrawnPrompt]:
    """Questions about one view of a corrected image, and their answers.

    Every phrase that the annotator was asked for is asked by text, whether it is there or not (up
    to four of each): presence learns from nothing else. What is there is also asked with a box.

    Args:
        layers: phrase -> int64 (S, S) instance numbers of the view.
        mask_size: side of the model's masks; S is a multiple of it.
        rng: decides.
    """
    present = [phrase for phrase, layer in layers.items() if (layer > 0).any()]
    absent = [phrase for phrase in layers if phrase not in present]
    rng.shuffle(present)
    rng.shuffle(absent)
    prompts = [
        DrawnPrompt(phrase, None, target_of(layers[phrase], None, mask_size))
        for phrase in present[:_MOST_BY_TEXT]
    ]
    prompts += [_boxed(phrase, layers[phrase], mask_size, rng) for phrase in present[:_MOST_BY_BOX]]
    for phrase in absent[:_MOST_BY_TEXT]:
        nothing = target_of(layers[phrase], None, mask_size)
        masked = bool(rng.random() < _ABSENT_MASKS)
        prompts.append(DrawnPrompt(phrase, None, nothing, wants_masks=masked))
    if not any(one.wants_masks for one in prompts):
        prompts[0] = replace(prompts[0], wants_masks=True)
    return prompts


def _boxed(phrase: str, layer: Tensor, mask_size: int, rng: np.random.Generator) -> DrawnPrompt:
    """A box around one object, as a person draws it: it asks for that object alone."""
    numbers = layer.unique()
    numbers = numbers[numbers > 0]
    number = numbers[int(rng.integers(len(numbers)))][None]
    side = layer.shape[-1]
    drawn = disturb_box(tight_box(torch.isin(layer, number).numpy()) / side, BOX_ERROR, rng)
    low, high = torch.from_numpy(drawn[:2]), torch.from_numpy(drawn[2:])
    box = torch.cat([(low + high) / 2, high - low])
    if rng.random() < _GENERIC_SHARE:
        phrase = GENERIC_PHRASES[int(rng.integers(len(GENERIC_PHRASES)))]
    return DrawnPrompt(phrase, box, target_of(layer, number, mask_size))
