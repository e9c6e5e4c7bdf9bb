"""What goes into and comes out of the model: embeddings and detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


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
    """

    fpn_hidden_states: tuple[torch.Tensor, ...]
    last_hidden_state: torch.Tensor
    original_size: tuple[int, int]
    encoder_hash: str

    @classmethod
    def of_batch(
        cls,
        levels: Sequence[torch.Tensor],
        hidden: torch.Tensor,
        sizes: Sequence[tuple[int, int]],
        encoder_hash: str,
    ) -> list[ImageEmbedding]:
        """One for each of B images: levels (B, hidden_size, H_i, W_i), hidden (B, patches, C)."""

        def of_one(batch: torch.Tensor, row: int) -> torch.Tensor:
            # A view would keep the whole batch in memory for as long as one image is kept.
            return batch if len(sizes) == 1 else batch[row : row + 1].clone()

        return [
            cls(tuple(of_one(one, row) for one in levels), of_one(hidden, row), size, encoder_hash)
            for row, size in enumerate(sizes)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold in memory."""
        tensors = (*self.fpn_hidden_states, self.last_hidden_state)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


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

    def union(self, *, semantic_fallback: bool = False) -> npt.NDArray[np.bool_]:
        """All instances in one mask, bool (H, W).

        With `semantic_fallback` the semantic map above 0.5 stands in where no instance passed.
        """
        if len(self) == 0 and semantic_fallback:
            return self.semantic > 0.5
        return np.asarray(self.masks.any(axis=0))
