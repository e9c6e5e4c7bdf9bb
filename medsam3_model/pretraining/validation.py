"""Quick figures during pre-training, on images of groups that are not trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsam3_model.checkpoints.bundle import PIXEL_MEAN, PIXEL_STD
from medsam3_model.checkpoints.tokenizer import tokenize
from medsam3_model.data.template import TEMPLATE_DEMO_SLICES
from medsam3_model.detector import PADDED_BOX, DetectorOutput, Prompts, detect, vision_features
from medsam3_model.pretraining.data import Sample, read_folder, template_sample
from medsam3_model.training.augmentation import WHOLE, disturb_box, sample_image

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Sam3Model

_BOX_ERROR = 0.08  # each side of the true box moves by a normal error of 8 % of the box's size


@dataclass(frozen=True)
class Validation:
    """Samples by source; every concept of each is asked by name and, where `boxed`, with a box."""

    samples: Mapping[str, tuple[Sample, ...]]
    boxed: frozenset[str]

    def score(
        self, model: "Sam3Model", tokenizer: "PreTrainedTokenizerFast"
    ) -> dict[str, dict[str, float]]:
        """Per source: `T_<concept>` (semantic Dice), `TI` (semantic, with a disturbed box), `TI_q`
        (the best query's mask instead), and `false` (presence above ½ for an absent concept).
        """
        return {
            source: self._score_source(source, samples, model, tokenizer)
            for source, samples in self.samples.items()
        }

    @torch.no_grad()
    def _score_source(
        self,
        source: str,
        samples: tuple[Sample, ...],
        model: "Sam3Model",
        tokenizer: "PreTrainedTokenizerFast",
    ) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        rng = np.random.default_rng(0)
        for sample in samples:
            concepts = [c for c, layer in sample.layers.items() if layer.any()]
            absent = "skin lesion" if "polyp" in sample.layers else "polyp"
            phrases = [absent]
            boxes: list[NDArray[np.float32] | None] = [None]
            truths: list[NDArray[np.bool_] | None] = [None]
            for concept in concepts:
                mask = sample.layers[concept] > 0
                phrases.append(concept)
                boxes.append(None)
                truths.append(mask)
                if source in self.boxed:
                    phrases.append(concept)
                    boxes.append(disturb_box(_box(mask), _BOX_ERROR, rng))
                    truths.append(mask)
            output = _ask(model, tokenizer, sample, phrases, boxes)
            found.setdefault("false", []).append(float(output.presence[-1, 0] > 0))
            for row in range(1, len(phrases)):
                truth, box = truths[row], boxes[row]
                assert truth is not None
                score = dice(output.semantic[row], truth)
                if box is None:
                    found.setdefault(f"T_{phrases[row]}", []).append(score)
                else:
                    best = output.logits[-1, row].argmax()[None]
                    found.setdefault("TI", []).append(score)
                    found.setdefault("TI_q", []).append(dice(output.masks(row, best)[0], truth))
        return {name: round(float(np.mean(values)), 4) for name, values in found.items()}


def load_validation(
    folders: Mapping[str, Path], most: int = 24, template_slices: int = 6
) -> Validation:
    """The first `most` validation samples of each folder, and some of the demo's slices."""
    samples = {
        source: tuple(read_folder(source, folder, "val"))[:most]
        for source, folder in folders.items()
    }
    step = max(len(TEMPLATE_DEMO_SLICES) // template_slices, 1)
    samples["template"] = tuple(template_sample(index) for index in TEMPLATE_DEMO_SLICES[::step])
    return Validation(samples, boxed=frozenset(samples) - {"template"})


def dice(logits: Tensor, truth: NDArray[np.bool_]) -> float:
    """Dice of a mask given as logits (h, w), enlarged to the truth's size, cut at probability ½."""
    large = F.interpolate(logits[None, None], truth.shape, mode="bilinear", align_corners=False)
    mask = (large[0, 0] > 0).numpy()
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else 1.0


def _ask(
    model: "Sam3Model",
    tokenizer: "PreTrainedTokenizerFast",
    sample: Sample,
    phrases: list[str],
    boxes: list[NDArray[np.float32] | None],
) -> DetectorOutput:
    pixels = sample_image(sample.image, WHOLE, model.config.image_size)
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    ids, mask = tokenize(tokenizer, phrases)
    text = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    whole = np.array([0, 0, 1, 1], dtype=np.float32)
    corners = torch.from_numpy(np.stack([whole if box is None else box for box in boxes]))
    centred = torch.cat(
        [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1
    )
    labels = torch.tensor([PADDED_BOX if box is None else 1 for box in boxes])
    prompts = Prompts(
        torch.zeros(len(phrases), dtype=torch.long),
        text,
        mask.bool(),
        centred[:, None],
        labels[:, None],
    )
    return detect(model, vision_features(model, pixels[None]), prompts)


def _box(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    height, width = mask.shape
    return np.array(
        [
            columns[0] / width,
            rows[0] / height,
            (columns[-1] + 1) / width,
            (rows[-1] + 1) / height,
        ],
        dtype=np.float32,
    )
