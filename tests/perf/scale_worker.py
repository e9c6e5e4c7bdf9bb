"""A real GPU worker whose model is a stub: `python -m tests.perf.scale_worker MILLISECONDS`.

The stub finds one disc in every image, after so many milliseconds of sleep. Everything around it is
the worker's own: rows, leases, jobs, fetching, decoding, caches, regions.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from medsam3_model.postprocessing import DetectionSettings
from medsam3_model.types import Detections, ImageEmbedding, TextEmbedding

# As the bundled model's.
PATCHES, WIDTH = 18 * 18, 192


@dataclass(frozen=True)
class StubModel:
    """Answers as `MedSAM3` does, without looking.

    Attributes:
        seconds: that an answer takes, half of them for the encoder.
    """

    seconds: float
    version = "stub"
    mirrors = False
    base_hash = encoder_hash = neck_hash = "stub"
    dtype = torch.float32
    device = torch.device("cpu")
    # Of a large model: one task at a time.
    image_size = 1008
    tracker = None
    settings = DetectionSettings()

    def encode_image(self, rgb: np.ndarray, *, rounded: bool = False) -> ImageEmbedding:
        """An embedding of the bundled model's size on disk."""
        time.sleep(self.seconds / 2)
        height, width = rgb.shape[:2]
        hidden = torch.full((1, PATCHES, WIDTH), float(rgb[0, 0, 0]) / 256)
        return self.restore_embedding(hidden, (height, width))

    def restore_embedding(self, hidden: torch.Tensor, size: tuple[int, int]) -> ImageEmbedding:
        """Without a neck."""
        return ImageEmbedding(
            (torch.zeros(1, 1, 1, 1),), hidden.float(), size, self.encoder_hash, self.neck_hash
        )

    def encode_text(self, phrases: Sequence[str]) -> TextEmbedding:
        """Nothing but the phrases."""
        nothing = torch.zeros(len(phrases), 1, 1)
        return TextEmbedding(tuple(phrases), nothing, nothing[..., 0] >= 0, self.base_hash)

    def threshold_of(self, phrase: str) -> float:
        """The same for every phrase."""
        return self.settings.score_threshold

    def second_look_of(self, phrase: str) -> None:
        """No phrase has one."""

    def detect_all(
        self, image_embedding: ImageEmbedding, text_embedding: TextEmbedding, **_: Any
    ) -> list[Detections]:
        """A disc for every phrase."""
        time.sleep(self.seconds / 2)
        height, width = image_embedding.original_size
        rows, columns = np.ogrid[:height, :width]
        mask = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (height / 4) ** 2
        return [
            Detections(
                masks=mask[None],
                boxes=np.array([[0.25, 0.25, 0.75, 0.75]], np.float32) * [[width, height] * 2],
                scores=np.array([0.9], np.float32),
                presence=0.95,
                semantic=np.where(mask, np.float32(0.9), np.float32(0.02)),
                phrase=phrase,
                max_score=0.9,
            )
            for phrase in text_embedding.phrases
        ]


def main() -> None:
    """Work on the queue `gpu` until told to stop."""
    from backend.models.loading import Models
    from backend.predictions.worker import run_worker
    from backend.processes.queues import QueueName
    from backend.services import open_services

    stub = StubModel(float(sys.argv[1]) / 1000)
    with patch.object(Models, "_base", lambda _models, _source: stub):
        run_worker(open_services(), QueueName.GPU)


if __name__ == "__main__":
    main()
