"""What to ask about a corrected image, and the answers that the annotator gave."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from medsam3_model.boxes import BOX_ERROR, tight_box
from medsam3_model.pretraining.phrases import GENERIC_PHRASES
from medsam3_model.training.augmentation import disturb_box
from medsam3_model.training.prompts import DrawnPrompt, target_of

_ABSENT_SHARE = 0.4
"""Of the prompts, where an absent concept is known: presence learns from nothing else."""
_BOXED_SHARE = 0.4
"""Of the prompts for what is there."""
_GENERIC_SHARE = 0.25
"""Of the boxes: asked without the concept's name, as from somebody who only draws."""
_EMPTY_MASKED_SHARE = 0.25
"""Of the prompts for what is not there: those of which an empty mask is learned, too. Presence and
scores say nearly all about it, and the masks of what is there are worth more."""


def draw_prompt(
    layers: Mapping[str, Tensor], mask_size: int, rng: np.random.Generator
) -> DrawnPrompt:
    """A question about one view of a corrected image, and its answer.

    It asks by text or with a box around one object for something that is there, or by text for
    something that the annotator looked for and did not find.

    Args:
        layers: phrase -> int64 (S, S) instance numbers of the view.
        mask_size: side of the model's masks; S is a multiple of it.
        rng: decides.
    """
    present = [phrase for phrase, layer in layers.items() if (layer > 0).any()]
    absent = [phrase for phrase in layers if phrase not in present]
    ask_absent = not present or (bool(absent) and rng.random() < _ABSENT_SHARE)
    phrases = absent if ask_absent else present
    phrase = phrases[int(rng.integers(len(phrases)))]
    if not ask_absent and rng.random() < _BOXED_SHARE:
        prompt = _boxed(phrase, layers[phrase], mask_size, rng)
    else:
        prompt = DrawnPrompt(phrase, None, target_of(layers[phrase], None, mask_size))
    wants_masks = not ask_absent or rng.random() < _EMPTY_MASKED_SHARE
    return replace(prompt, wants_masks=bool(wants_masks))


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
