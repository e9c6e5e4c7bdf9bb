"""Preprocessing: from arrays and pixel boxes to the tensors that SAM 3 takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import functional as transforms

from medsam3_model.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Mirroring an image makes the left lung a right one.
_SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)

PADDED_BOX = -10
"""transformers' label of a box that only fills the batch."""


def to_pixel_values(rgb: npt.NDArray[np.uint8], image_size: int) -> torch.Tensor:
    """Square resize (bilinear, antialiased, on bytes as facebook does) and scaling to -1..1.

    Args:
        rgb: uint8 (H, W, 3).
        image_size: side of the model's square input in pixels.

    Returns:
        float32 (1, 3, image_size, image_size).
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise PromptError(
            f"an image is uint8 (height, width, 3); this one is {rgb.dtype} {rgb.shape}: "
            "read it with medsam3_model.images.reading.read_image"
        )
    channels_first = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None]
    resized = transforms.resize(channels_first, [image_size, image_size], antialias=True)
    return resized.to(torch.float32).div_(127.5).sub_(1.0)


def tells_sides(phrase: str) -> bool:
    """Whether a phrase tells left from right, so that it names something else in a mirror image."""
    return _SIDED.search(phrase) is not None


def phrase_tokens(
    tokenizer: PreTrainedTokenizerBase,
    phrases: Sequence[str],
    length: int,
    *,
    padding: Literal["max_length", "longest"] = "max_length",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 (K, length) of K phrases, and which of them count, bool (K, length).

    Longer texts are cut. With `padding` "longest" the second axis is as long as the longest phrase.

    Raises:
        PromptError: no phrase, or an empty one.
    """
    if isinstance(phrases, str) or not phrases:
        raise PromptError("phrases is a non-empty list of texts")
    if any(not phrase.strip() for phrase in phrases):
        raise PromptError("a phrase is empty")
    tokens = tokenizer(
        list(phrases), padding=padding, truncation=True, max_length=length, return_tensors="pt"
    )
    return tokens["input_ids"], tokens["attention_mask"].bool()


def text_mask(input_ids: torch.Tensor, end_of_text: int) -> torch.Tensor:
    """Which tokens count, bool (K, L), from token ids alone.

    facebook pads with 0 and masks every 0; Hugging Face pads with the end-of-text token, of which
    the first one counts.
    """
    if end_of_text == 2:  # named by early CLIP configs, used by no tokenizer
        end_of_text = 49407
    # All tokens up to the first end of text: those before which there was none.
    is_end = (input_ids == end_of_text).long()
    ends_before = is_end.cumsum(dim=1) - is_end
    padded_with_zero = input_ids[:, -1:] == 0
    return torch.where(padded_with_zero, input_ids != 0, ends_before == 0)


def per_phrase_boxes(
    boxes: Any, box_labels: Any, phrases: int
) -> tuple[list[npt.NDArray[np.float64]], list[npt.NDArray[np.int64]]]:
    """Boxes and labels of each phrase, from the forms that `MedSAM3.detect` takes.

    Args:
        boxes: None, one box (4,), boxes for all phrases (M, 4), or a sequence of K such arrays.
        box_labels: None (all positive), or 1 and 0 in the same form without the last axis.
        phrases: K.

    Returns:
        K arrays float64 (M_k, 4) and K arrays int64 (M_k,).

    Raises:
        PromptError: shapes do not fit, a coordinate is not finite, a box is empty or inverted,
            or a label is neither 1 nor 0.
    """
    if boxes is None:
        if box_labels is not None:
            raise PromptError("box_labels were given without boxes")
        return [np.zeros((0, 4))] * phrases, [np.zeros(0, dtype=np.int64)] * phrases

    # One box or a list of boxes is for all phrases; one level deeper each phrase has its own.
    shared = _depth(boxes) <= 2
    if shared:
        row = _box_array(boxes)
        return [row] * phrases, [_label_array(box_labels, len(row))] * phrases
    if len(boxes) != phrases:
        raise PromptError(f"boxes were given for {len(boxes)} phrases, but there are {phrases}")
    rows = [_box_array(item) for item in boxes]
    given = [None] * phrases if box_labels is None else list(box_labels)
    if len(given) != phrases:
        raise PromptError(f"box_labels were given for {len(given)} phrases, not {phrases}")
    return rows, [_label_array(item, len(row)) for item, row in zip(given, rows, strict=True)]


def model_boxes(
    rows: Sequence[npt.NDArray[np.float64]],
    labels: Sequence[npt.NDArray[np.int64]],
    size: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel boxes as the geometry encoder takes them, padded to the same number per phrase.

    A phrase without boxes still gets one padding box: transformers leaves the geometry encoder
    (and its CLS token, which facebook's model always appends) out when there is none at all.

    Args:
        rows: K arrays (M_k, 4), x0, y0, x1, y1 in pixels.
        labels: K arrays (M_k,), 1 or 0.
        size: (height, width) of the image.

    Returns:
        float32 (K, M, 4), normalised cx, cy, w, h; int64 (K, M) with -10 for padding.
    """
    height, width = size
    most = max(1, *(len(row) for row in rows)) if rows else 1
    out = torch.zeros(len(rows), most, 4)
    out_labels = torch.full((len(rows), most), PADDED_BOX, dtype=torch.long)
    for index, (row, row_labels) in enumerate(zip(rows, labels, strict=True)):
        if len(row) == 0:
            continue
        scaled = np.clip(row / [width, height, width, height], 0.0, 1.0)
        centre = (scaled[:, :2] + scaled[:, 2:]) / 2
        extent = scaled[:, 2:] - scaled[:, :2]
        out[index, : len(row)] = torch.from_numpy(np.concatenate([centre, extent], axis=1)).float()
        out_labels[index, : len(row)] = torch.from_numpy(row_labels)
    return out, out_labels


def raw_boxes(boxes: Any, box_labels: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`MedSAM3.raw`'s boxes float32 (B, M, 4) and labels int64 (B, M); without boxes, padding."""
    if boxes is None:
        return model_boxes(*per_phrase_boxes(None, None, count), (1, 1))
    prompt = torch.as_tensor(boxes, dtype=torch.float32)
    if box_labels is None:
        return prompt, torch.ones(prompt.shape[:2], dtype=torch.long)
    return prompt, torch.as_tensor(box_labels, dtype=torch.long)


def _depth(value: Any) -> int:
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim
    if isinstance(value, Sequence):
        return 1 + (max((_depth(item) for item in value), default=0))
    return 0


def _box_array(boxes: Any) -> npt.NDArray[np.float64]:
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    array = np.atleast_2d(array)
    if array.ndim != 2 or array.shape[1] != 4:
        raise PromptError(f"boxes are (M, 4) x0, y0, x1, y1 in pixels, not {array.shape}")
    if not np.isfinite(array).all():
        raise PromptError("a box has a coordinate that is not a finite number")
    if (array[:, 2:] <= array[:, :2]).any():
        raise PromptError("a box is empty: x1 and y1 must be greater than x0 and y0")
    return array


def _label_array(labels: Any, count: int) -> npt.NDArray[np.int64]:
    if labels is None:
        return np.ones(count, dtype=np.int64)
    array = np.atleast_1d(np.asarray(labels)).astype(np.int64)
    if count == 0 and array.size == 0:  # [] or, for a single phrase, [[]]
        array = array.reshape(0)
    if array.shape != (count,):
        raise PromptError(f"{count} boxes need as many labels, not {array.shape}")
    if not np.isin(array, (0, 1)).all():
        raise PromptError("a box label is 1 (show such things) or 0 (not such things)")
    return array
