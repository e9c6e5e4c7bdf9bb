"""The images of a run's examples with their masks: fetched once, encoded once for all versions."""

import math
from typing import TYPE_CHECKING

from backend.corrections.mask_store import MaskStore
from backend.errors import TrainingError
from backend.label_studio.client import LabelStudio
from backend.label_studio.images import FetchedImages, decode
from backend.models.encoding import EncodedImage, embedding_cache
from backend.services import Services
from backend.settings import Consensus
from backend.training.examples import Example

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Images:
    """Pixels, masks and embeddings of examples; the embeddings' folder is the GPU workers' own.

    A file is fetched when an embedding of the image or of a view of it is missing, and kept for the
    whole run within `image_cache_mb`.
    """

    def __init__(self, services: Services) -> None:
        self._settings = services.settings
        client = LabelStudio.from_settings(services.settings)
        self._files = FetchedImages(client, services.settings, keep_s=math.inf)
        self._masks = MaskStore(services.settings.storage)
        self._sizes: dict[str, tuple[int, int]] = {}
        self.cache = embedding_cache(services.settings)

    def rgb(self, example: Example) -> "NDArray[np.uint8]":
        """The image, RGB uint8 (H, W, 3).

        Raises:
            ImageSourceError, LabelStudioError: it cannot be fetched.
            ImageError: it cannot be read.
            TrainingError: it is not the size that was annotated.
        """
        content, _ = self._files.get(
            example.reference, project_id=example.project_id, task_id=example.task_id
        )
        rgb = decode(content, self._settings)
        height, width = rgb.shape[:2]
        if example.size not in (None, (height, width)):
            raise TrainingError(
                f"The image of task {example.task_id} has {width}×{height} pixels, another size "
                "than when it was annotated: it changed under its address. Annotate it again."
            )
        self._sizes[example.key] = (height, width)
        return rgb

    def layers(
        self, example: Example, rule: Consensus, size: tuple[int, int] | None = None
    ) -> "dict[str, NDArray[np.int32]]":
        """Instance numbers by phrase, see `Example.layers`.

        Args:
            example: whose masks are read.
            rule: what several annotators' masks become.
            size: (height, width) of the image, where the caller knows it; else the recorded one.
                An image of which none is recorded is read, once.
        """
        size = size or example.size or self._sizes.get(example.key)
        if size is None:
            height, width, _ = self.rgb(example).shape
            size = (height, width)
        return example.layers(self._masks, rule, size)

    def encoded(self, example: Example) -> EncodedImage:
        """The image as the model sees it."""
        return EncodedImage(self.cache, example.key, lambda: self.rgb(example))
