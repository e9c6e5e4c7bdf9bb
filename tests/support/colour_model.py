"""A model that segments by colour, exactly, behind the same calls as the real one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medsam3_model.boxes import tight_box
from medsam3_model.postprocessing import DetectionSettings
from medsam3_model.types import Detections, ImageEmbedding, TextEmbedding

CHANNELS = {"red": 0, "green": 1, "blue": 2}


@dataclass(frozen=True)
class ColourModel:
    """Finds the pixels that are red, green or blue, whichever the phrase names last.

    Attributes:
        patches: of the encoder, along a side; a closer look is taken at what has few of them.
        certainty: log-odds of its pixels; 0 knows nothing.
        offset: added to every log-odds, as in a model that is wrong about how much there is.
        encoded: sizes of what was encoded, in order.
        prompted: boxes of every prompt with boxes, in order, in pixels of what was encoded.
    """

    version = "colour-1"
    mirrors = False
    tracker = None
    settings = DetectionSettings()
    patches: int = 64
    certainty: float = 8.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoded", [])
        object.__setattr__(self, "prompted", [])

    encoded: Any = None
    prompted: Any = None

    def encode_image(self, rgb: np.ndarray, *, rounded: bool = False) -> ImageEmbedding:
        """The picture itself stands for its features."""
        self.encoded.append(rgb.shape[:2])
        pixels = torch.from_numpy(rgb.copy())
        patches = torch.zeros(1, self.patches**2, 1)
        return ImageEmbedding((pixels,), patches, (rgb.shape[0], rgb.shape[1]), "", "")

    def encode_text(self, phrases: Sequence[str]) -> TextEmbedding:
        """Which channel each phrase names."""
        channels = torch.tensor([CHANNELS[phrase.split()[-1]] for phrase in phrases])
        return TextEmbedding(tuple(phrases), channels[:, None, None], channels[:, None] >= 0, "")

    def threshold_of(self, phrase: str) -> float:
        """The same for every phrase."""
        return self.settings.score_threshold

    def second_look_of(self, phrase: str) -> None:
        """No phrase has one."""

    def detect_all(
        self,
        image_embedding: ImageEmbedding,
        text_embedding: TextEmbedding,
        boxes: Any = None,
        box_labels: Any = None,
        *,
        settings: DetectionSettings | None = None,
        read: Callable[[Any, int, int], Any] | None = None,
    ) -> list[Any]:
        """One instance of each colour that is in the image, whatever was drawn, or as it is read.

        To be read there are two queries: nothing anywhere, and the colour, boxed as it was asked.
        """
        channels = text_embedding.features.flatten().tolist()
        masks = [image_embedding.fpn_hidden_states[0][..., c] > 128 for c in channels]
        if read is None:
            return [self._detections(mask.numpy()) for mask in masks]
        height, width = image_embedding.original_size
        answers = []
        for index, (mask, asked) in enumerate(zip(masks, boxes, strict=True)):
            self.prompted.append(np.asarray(asked))
            logits = torch.where(mask, self.certainty, -self.certainty) + self.offset
            box = torch.as_tensor(asked[0]) / torch.tensor([width, height] * 2)
            outputs = {
                "pred_boxes": torch.stack([torch.tensor([0.0, 0, 1, 1]), box.float()])[None],
                "pred_logits": torch.tensor([[-9.0, 2.0]]),
                "pred_masks": torch.stack([torch.full_like(logits, -9.0), logits])[None],
                "semantic_seg": logits[None, None],
                "presence_logits": torch.tensor([[4.0 if mask.any() else -4.0]]),
            }
            answers.append(read(outputs, 0, index))
        return answers

    def _detections(self, mask: np.ndarray) -> Detections:
        masks = mask[None] if mask.any() else np.zeros((0, *mask.shape), bool)
        return Detections(
            masks=masks,
            boxes=np.array([tight_box(mask) for mask in masks], np.float32).reshape(-1, 4),
            scores=np.full(len(masks), 0.9, np.float32),
            presence=float(mask.any()),
            semantic=np.zeros(mask.shape, np.float32),
        )
