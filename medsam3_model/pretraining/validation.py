"""Validation during pre-training: quick figures on images of groups that are not trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_convert

from medsam3_model.boxes import BOX_ERROR, tight_box
from medsam3_model.checkpoints.bundle import PIXEL_MEAN, PIXEL_STD
from medsam3_model.checkpoints.tokenizer import MAX_TOKENS
from medsam3_model.data.template import TEMPLATE_DEMO_SLICES
from medsam3_model.detector import Prompts, answer_prompts, feature_levels, vision_hidden
from medsam3_model.evaluation.metrics import dice
from medsam3_model.preprocessing import phrase_tokens
from medsam3_model.pretraining.data import SourceImage, read_folder, template_image
from medsam3_model.training.augmentation import WHOLE, disturb_box, sample_image

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Sam3Model


@dataclass(frozen=True)
class Validation:
    """Samples by source; every concept of each is asked by name and, where `boxed`, with a box."""

    samples: Mapping[str, tuple[SourceImage, ...]]
    boxed: frozenset[str]

    def score(
        self, model: "Sam3Model", tokenizer: "PreTrainedTokenizerFast"
    ) -> dict[str, dict[str, float]]:
        """Per source: `T_<concept>` (semantic Dice), `TI` (semantic, with a disturbed box), `TI_q`
        (the best query's mask instead), `false` (presence above ½ for a concept of another source)
        and `false_<concept>` (the same for one that was looked for in vain).
        """
        return {
            source: self._score_source(source, samples, model, tokenizer)
            for source, samples in self.samples.items()
        }

    @torch.no_grad()
    def _score_source(
        self,
        source: str,
        samples: tuple[SourceImage, ...],
        model: "Sam3Model",
        tokenizer: "PreTrainedTokenizerFast",
    ) -> dict[str, float]:
        scores: dict[str, list[float]] = {}
        rng = np.random.default_rng(0)
        for sample in samples:
            concepts = list(sample.layers)
            absent = "skin lesion" if "polyp" in sample.layers else "polyp"
            asked: list[tuple[int, str, Tensor | None]] = [(0, absent, None)]
            for concept in concepts:
                asked.append((0, concept, None))
                if source in self.boxed and sample.layers[concept].any():
                    mask = sample.layers[concept] > 0
                    height, width = mask.shape
                    tight = (tight_box(mask) / [width, height, width, height]).astype(np.float32)
                    drawn = torch.from_numpy(disturb_box(tight, BOX_ERROR, rng))
                    asked.append((0, concept, box_convert(drawn, "xyxy", "cxcywh")))
            pixels = normalise(sample_image(sample.image, WHOLE, model.config.image_size))
            output = answer_prompts(
                model,
                feature_levels(model, vision_hidden(model, pixels[None])),
                encode_prompts(model, tokenizer, asked),
            )
            scores.setdefault("false", []).append(float(output.presence[-1, 0] > 0))
            for row, (_, concept, box) in enumerate(asked[1:], start=1):
                if not sample.layers[concept].any():
                    present = float(output.presence[-1, row] > 0)
                    scores.setdefault(f"false_{concept}", []).append(present)
                    continue
                truth = sample.layers[concept] > 0
                score = _dice_of_logits(output.semantic[row], truth)
                if box is None:
                    scores.setdefault(f"T_{concept}", []).append(score)
                else:
                    best = output.logits[-1, row].argmax()[None]
                    by_query = _dice_of_logits(output.masks(row, best)[0], truth)
                    scores.setdefault("TI", []).append(score)
                    scores.setdefault("TI_q", []).append(by_query)
        return {name: round(float(np.mean(values)), 4) for name, values in scores.items()}


def load_validation(
    folders: Mapping[str, Path], most: int = 24, template_slices: int = 6
) -> Validation:
    """The first `most` validation samples of each folder, and some of the demo's slices."""
    samples = {
        source: tuple(read_folder(source, folder, "val"))[:most]
        for source, folder in folders.items()
    }
    step = max(len(TEMPLATE_DEMO_SLICES) // template_slices, 1)
    samples["template"] = tuple(template_image(index) for index in TEMPLATE_DEMO_SLICES[::step])
    return Validation(samples, boxed=frozenset(samples) - {"template"})


def _dice_of_logits(logits: Tensor, truth: NDArray[np.bool_]) -> float:
    """Dice of a mask given as logits (h, w), enlarged to the truth's size, cut at probability ½."""
    large = F.interpolate(logits[None, None], truth.shape, mode="bilinear", align_corners=False)
    return dice((large[0, 0] > 0).numpy(), truth)


def normalise(pixels: Tensor) -> Tensor:
    """From 0..1 to what the model reads, (..., 3, S, S)."""
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    return (pixels - mean[:, None, None]) / std[:, None, None]


def encode_prompts(
    model: "Sam3Model",
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Sequence[tuple[int, str, Tensor | None]],
) -> Prompts:
    """A batch of (image, phrase, cxcywh box or None), the phrases encoded."""
    phrases = [phrase for _, phrase, _ in prompts]
    ids, mask = phrase_tokens(tokenizer, phrases, MAX_TOKENS, padding="longest")
    text = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    images, boxes = [image for image, _, _ in prompts], [box for _, _, box in prompts]
    return Prompts.with_one_box(images, text, mask, boxes)
