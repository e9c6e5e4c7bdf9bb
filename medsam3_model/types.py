"""Embeddings, detections and windows: what goes into and comes out of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Window = tuple[int, int, int, int]
"""A part of an image: x0, y0, x1, y1 in whole pixels, the last ones exclusive."""

MaskRule = Literal["instances", "semantic"]
MaskSource = Literal["instances", "semantic", "none"]

# Above it the model itself says that the concept is in the image.
PRESENCE_THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """The frozen vision encoder's output for one image; good for any number of prompts.

    Attributes:
        fpn_hidden_states: three feature levels, finest first, each float
            (1, hidden_size, H_i, W_i), on the model's device.
        last_hidden_state: the ViT's output, float (1, patches, vit_size), from which the levels
            can be computed again; what the disk cache keeps, being the smallest.
        original_size: (height, width) of the image in pixels.
        encoder_hash: the encoder weights that made it; another encoder refuses it.
        neck_hash: the neck that made the levels, which a trained version may have of its own; a
            version with another one makes them again.
        mirrored: gives the embedding of the same image mirrored left to right, encoded when first
            asked for; None where a model looks at the image as it is alone (`MedSAM3.mirrors`).
    """

    fpn_hidden_states: tuple[torch.Tensor, ...]
    last_hidden_state: torch.Tensor
    original_size: tuple[int, int]
    encoder_hash: str
    neck_hash: str
    mirrored: Callable[[], ImageEmbedding] | None = None

    @classmethod
    def of_batch(
        cls,
        levels: Sequence[torch.Tensor],
        hidden: torch.Tensor,
        sizes: Sequence[tuple[int, int]],
        encoder_hash: str,
        neck_hash: str,
    ) -> list[ImageEmbedding]:
        """One for each of B images: levels (B, hidden_size, H_i, W_i), hidden (B, patches, C)."""

        def image_of(batch: torch.Tensor, row: int) -> torch.Tensor:
            # A view would keep the whole batch in memory for as long as one image is kept.
            return batch if len(sizes) == 1 else batch[row : row + 1].clone()

        return [
            cls(
                tuple(image_of(level, row) for level in levels),
                image_of(hidden, row),
                size,
                encoder_hash,
                neck_hash,
            )
            for row, size in enumerate(sizes)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold in memory."""
        tensors = (*self.fpn_hidden_states, self.last_hidden_state)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def stored_form(hidden: torch.Tensor) -> torch.Tensor:
    """The vision transformer's output as the disk keeps it, in 16 bit wherever that holds it.

    float16 and not bfloat16: its 11 significant bits against 8 keep masks closer to those of
    float32 (lowest Dice on the bundled model's own images .9998 against .9995), and the values are
    small, about 30 at most there. Where one is beyond float16's range of 65,504, or is no number,
    the whole entry keeps its own type: larger, but never silently infinite.

    Args:
        hidden: float32, bfloat16 or float16, of any shape; 16 bit stay as they are.
    """
    import torch

    if hidden.dtype != torch.float32:
        return hidden.detach()
    halves = hidden.detach().to(torch.float16)
    return halves if bool(torch.isfinite(halves).all()) else hidden.detach()


EncodeWindow = Callable[[Window], ImageEmbedding]
"""Encodes a part of an image as an image of its own."""


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """The frozen text encoder's output for K phrases.

    Attributes:
        phrases: the K phrases as they were given.
        features: float (K, tokens, hidden_size), projected to the detector's width.
        attention_mask: bool (K, tokens); true for tokens, false for padding.
        encoder_hash: the encoder weights that made it; another encoder refuses it.
    """

    phrases: tuple[str, ...]
    features: torch.Tensor
    attention_mask: torch.Tensor
    encoder_hash: str

    def __len__(self) -> int:
        return len(self.phrases)

    def __getitem__(self, index: int) -> TextEmbedding:
        """The embedding of one of the phrases."""
        start = range(len(self))[index]
        rows = slice(start, start + 1)
        return TextEmbedding(
            self.phrases[rows], self.features[rows], self.attention_mask[rows], self.encoder_hash
        )

    @classmethod
    def concatenate(cls, parts: list[TextEmbedding]) -> TextEmbedding:
        """One embedding of all phrases of `parts`, in their order."""
        import torch

        return cls(
            tuple(phrase for part in parts for phrase in part.phrases),
            torch.cat([part.features for part in parts]),
            torch.cat([part.attention_mask for part in parts]),
            parts[0].encoder_hash,
        )


@dataclass(frozen=True, eq=False)
class Detections:
    """What the model found for one phrase, best first.

    Attributes:
        masks: bool (N, H, W) at the size and orientation of the image given to `encode_image`.
        boxes: float32 (N, 4), x0, y0, x1, y1 in pixels of that image, clipped to it.
        scores: float32 (N,), 0 to 1, descending.
        presence: probability, 0 to 1, that the concept is in the image at all.
        semantic: float32 (H, W), probability that a pixel belongs to the concept, from the
            semantic head: a fallback for the union of the masks when no instance passes.
        phrase: the phrase that was asked for.
        max_score: the best instance score before thresholding, 0 to 1: what the model would
            have had to be allowed to show anything.
    """

    masks: npt.NDArray[np.bool_]
    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    presence: float
    semantic: npt.NDArray[np.float32]
    phrase: str = ""
    max_score: float = 0.0

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score_threshold: float) -> Detections:
        """The instances whose score is above a threshold; presence and semantic map stay."""
        kept = self.scores > score_threshold
        return replace(
            self, masks=self.masks[kept], boxes=self.boxes[kept], scores=self.scores[kept]
        )

    def union(self) -> npt.NDArray[np.bool_]:
        """All instances in one mask, bool (H, W)."""
        return np.asarray(self.masks.any(axis=0))

    def concept_mask(
        self, *, rule: MaskRule = "instances"
    ) -> tuple[npt.NDArray[np.bool_], MaskSource]:
        """One mask of the concept, bool (H, W), and where it came from.

        `instances`: the union of the instances, which are those that passed the model's threshold;
        where none did, the semantic map above 0.5. `semantic`: that map always, which is the
        better answer where more instances are in the image than the detector has queries. Either
        way the semantic map counts only where the model says that the concept is there at all.
        """
        if rule == "instances" and len(self):
            mask = self.union()
            return mask, "instances" if mask.any() else "none"
        if self.presence >= PRESENCE_THRESHOLD:
            mask = np.asarray(self.semantic > 0.5)
            if mask.any():
                return mask, "semantic"
        return np.zeros(self.semantic.shape, np.bool_), "none"
