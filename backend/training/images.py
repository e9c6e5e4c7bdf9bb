"""The images of a snapshot: fetched as predictions fetch them, encoded once for all versions."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from backend.label_studio.client import LabelStudio
from backend.label_studio.images import fetch_image
from backend.services import Services
from backend.training.examples import Example

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medsam3_model import ImageEmbedding, MedSAM3
    from medsam3_model.box_answers import Window


class Images:
    """Pixels and embeddings of examples; the embeddings' folder is the GPU workers' own."""

    def __init__(self, services: Services, client: LabelStudio) -> None:
        from medsam3_model.embedding_cache import EmbeddingCache

        settings = services.settings
        self._settings = settings
        self._client = client
        self.cache = EmbeddingCache(
            settings.embedding_dir,
            memory_bytes=settings.embedding_memory_mb * 2**20,
            disk_bytes=settings.embedding_disk_mb * 2**20,
        )

    def rgb(self, example: Example) -> "NDArray[np.uint8]":
        """The image, RGB uint8 (H, W, 3).

        Raises:
            ImageSourceError, LabelStudioError: it cannot be fetched.
            ImageError: it cannot be read.
        """
        from medsam3_model.images.reading import ImageLimits, read_image

        content = fetch_image(
            example.reference,
            client=self._client,
            settings=self._settings,
            task_id=example.task_id,
            project_id=example.project_id,
        )
        limits = ImageLimits(
            max_bytes=self._settings.max_image_mb * 2**20,
            max_pixels=int(self._settings.max_image_megapixels * 1e6),
        )
        return read_image(content, limits=limits)

    def embedding(self, model: "MedSAM3", example: Example) -> "ImageEmbedding":
        """What the frozen encoder makes of the image, from the cache where it is there."""
        return self.cache.get(model, example.key, self._encoder(model, example))

    def closer_look(self, model: "MedSAM3", example: Example, window: "Window") -> "ImageEmbedding":
        """A part of the image, encoded as an image of its own, from the cache where it is there."""
        x0, y0, x1, y1 = window
        return self.cache.get(
            model,
            f"{example.key}-window-{x0}-{y0}-{x1}-{y1}",
            lambda: model.encode_image(self.rgb(example)[y0:y1, x0:x1]),
        )

    def _encoder(self, model: "MedSAM3", example: Example) -> Callable[[], "ImageEmbedding"]:
        return lambda: model.encode_image(self.rgb(example))
