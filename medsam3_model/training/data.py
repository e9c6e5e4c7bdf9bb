"""The data of fine-tuning: corrected images, their views, and the embeddings of these.

Embeddings come from an `EmbeddingCache`, of the image as it is and of a bounded number of augmented
views, so each is computed once, for this run and all later ones. Images are read only for that;
instance maps are kept, compressed.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam3_model.box_answers import enlarged
from medsam3_model.boxes import tight_box
from medsam3_model.data.samples import lot_of_group
from medsam3_model.detector import Prompts
from medsam3_model.preprocessing import tells_sides
from medsam3_model.pretraining.phrases import EVERYDAY_PHRASES, GENERIC_PHRASES
from medsam3_model.second_look import ROOMS, SMALL_PATCHES
from medsam3_model.training.adapting import adapted, stem_of
from medsam3_model.training.augmentation import (
    WHOLE,
    View,
    random_look,
    random_view,
    sample_image,
    sample_labels,
    view_of_window,
)
from medsam3_model.training.prompts import DrawnPrompt
from medsam3_model.types import ImageEmbedding, TextEmbedding

if TYPE_CHECKING:
    from medsam3_model.embeddings.embedding_cache import EmbeddingCache
    from medsam3_model.predictor import MedSAM3

# This share of the groups is withheld, by a lot of their own: another one than that of the gate's.
_SPARED, _SPARED_LOT = 1 / 6, 28
# No more than this share is withheld, however the lots fall, and of a handful none.
_MOST_WITHHELD, _LEAST_TO_WITHHOLD = 0.6, 6
# So many images of what is withheld judge; validation is to stay a small part of the run.
_MOST_JUDGED = 24
# With fewer images, or fewer withheld ones, nothing is judged by them.
_LEAST_FOR_STOPPING, _LEAST_JUDGED = 12, 2
# With fewer groups the images are drawn one by one.
_LEAST_GROUPS = 3
# Of an image's views, the first that may be enlarged.
_FIRST_ENLARGED = 2
# Standard error of an enlarged object's place, as a share of its longer side.
_BESIDE = 0.12


@dataclass(frozen=True)
class TrainingImage:
    """An image with the truth about it.

    Attributes:
        key: identifies the pixels in the embedding cache.
        group: what belongs together, such as a patient's images; empty: the image is by itself.
        read: the image, RGB uint8 (H, W, 3).
        layers: instance numbers by phrase, integers (H, W); all 0: the concept is absent.
    """

    key: str
    read: Callable[[], NDArray[np.uint8]]
    layers: Callable[[], Mapping[str, NDArray[np.int32]]]
    group: str = ""


@dataclass(frozen=True)
class _Layers:
    """Instance maps of one image, compressed: masks shrink to a hundredth."""

    phrases: tuple[str, ...]
    shape: tuple[int, ...]
    packed: bytes

    @classmethod
    def of(cls, layers: Mapping[str, NDArray[np.integer]]) -> "_Layers":
        stack = np.stack(list(layers.values())).astype(np.uint16)
        return cls(tuple(layers), stack.shape, zlib.compress(stack.tobytes(), 1))

    def unpacked(self) -> NDArray[np.uint16]:
        """The maps, (phrases, H, W)."""
        return np.frombuffer(zlib.decompress(self.packed), np.uint16).reshape(self.shape)


class TrainingData:
    """Embeddings, instance maps and phrases of a run's images, as tensors for the detector."""

    def __init__(
        self,
        model: "MedSAM3",
        images: Sequence[TrainingImage],
        cache: "EmbeddingCache",
        *,
        adapts: bool = False,
    ) -> None:
        """Read the truth about every image and encode all phrases.

        Args:
            model: whose frozen encoders are used; its detector is not.
            images: all that will be asked about.
            cache: of embeddings.
            adapts: an adapter is learned, so embeddings are those of the encoder's stem, see
                `adapting`.
        """
        self._model, self._cache = model, cache
        self._encoder = stem_of(model) if adapts else model
        self._layers = {image.key: _Layers.of(image.layers()) for image in images}
        self._viewed: dict[tuple[str, View], _Layers] = {}
        self._small: dict[str, list[NDArray[np.float32]]] = {}
        phrases = {phrase for layers in self._layers.values() for phrase in layers.phrases}
        ordered = sorted(phrases | set(GENERIC_PHRASES) | set(EVERYDAY_PHRASES))
        self._text = model.encode_text(ordered)
        self._row = {phrase: index for index, phrase in enumerate(ordered)}
        side = model.image_size // int(model.config.vision_config.backbone_config.patch_size)
        self.mask_size = 4 * side

    def view(self, image: TrainingImage, number: int) -> tuple[View, ImageEmbedding]:
        """View `number` of an image with its embedding; 0 is the image as it is.

        From the second on they are of a small object and its surroundings, where there is one: a
        second look sees no more (`second_look`). A view follows from image, masks and number
        alone, so every run finds it in the cache.
        """
        if number == 0:
            plain = self._cache.get(
                self._encoder,
                image.key,
                lambda: self._encoder.encode_image(image.read(), rounded=True),
            )
            return WHOLE, plain
        layers = self._layers[image.key]
        sided = any(map(tells_sides, layers.phrases))
        # The same numbers draw geometry and look, here and in every later run.
        rng = np.random.default_rng([zlib.crc32(image.key.encode()), number])
        view = self._enlarged(image.key, layers, rng, sided) if number >= _FIRST_ENLARGED else None
        window = "" if view is None else f"-{zlib.crc32(repr(view).encode()):08x}"
        if view is None:
            _, height, width = layers.shape
            view = random_view(rng, "chest" if sided else "", width / height)

        def encode() -> ImageEmbedding:
            pixels = sample_image(image.read(), view, self._model.image_size)
            looked = (random_look(pixels, rng) * 255).round().to(torch.uint8)
            return self._encoder.encode_image(looked.permute(1, 2, 0).contiguous().numpy())

        key = f"{image.key}-{'sided' if sided else 'free'}-view{number}{window}"
        return view, self._cache.get(self._encoder, key, encode)

    def seen_by(self, model: "MedSAM3", image: TrainingImage) -> ImageEmbedding:
        """The image as it is, for a version of the run's model to be asked about."""
        _, embedding = self.view(image, 0)
        return embedding if self._encoder is self._model else adapted(model, embedding)

    def _small_boxes(self, key: str, layers: _Layers) -> list[NDArray[np.float32]]:
        """Tight boxes of an image's small concepts; found once, for they are drawn at each step."""
        if key not in self._small:
            _, height, width = layers.shape
            boxes = [tight_box(mask) for mask in layers.unpacked() > 0 if mask.any()]
            share = SMALL_PATCHES * 4 / self.mask_size  # of the image's side
            self._small[key] = [
                np.asarray(box, np.float32)
                for box in boxes
                if max((box[2] - box[0]) / width, (box[3] - box[1]) / height) < share
            ]
        return self._small[key]

    def _enlarged(
        self, key: str, layers: _Layers, rng: np.random.Generator, sided: bool
    ) -> View | None:
        """A small object in a square of random size around it, as a second look sees it."""
        _, height, width = layers.shape
        small = self._small_boxes(key, layers)
        if not small:
            return None
        box = small[int(rng.integers(len(small)))]
        # Found by the model, not given: it is a little beside the object, and of another size.
        off = rng.normal(0, _BESIDE * max(box[2] - box[0], box[3] - box[1]), 2)
        room = float(np.exp(rng.uniform(np.log(min(ROOMS) * 0.9), np.log(max(ROOMS) * 1.1))))
        window = enlarged(box + np.tile(off, 2).astype(np.float32), (height, width), room)
        return view_of_window(window, (height, width), rng, sided)

    def labels(self, image: TrainingImage, view: View) -> dict[str, Tensor]:
        """Instance numbers in a view by phrase, int64 (S, S), S twice the masks' side."""
        viewed = self._viewed.get((image.key, view))
        if viewed is None:
            # Sampled once: unpacking a photograph's maps costs more than a prompt's answer.
            layers = self._layers[image.key]
            labels = sample_labels(layers.unpacked(), view, 2 * self.mask_size)
            viewed = _Layers.of(dict(zip(layers.phrases, labels.numpy(), strict=True)))
            self._viewed[image.key, view] = viewed
        unpacked = torch.from_numpy(viewed.unpacked().astype(np.int64))
        return dict(zip(viewed.phrases, unpacked, strict=True))

    def phrases(self, image: TrainingImage) -> tuple[str, ...]:
        """What the image says something about."""
        return self._layers[image.key].phrases

    def truth(self, image: TrainingImage) -> dict[str, NDArray[np.bool_]]:
        """The masks by phrase, bool (H, W)."""
        layers = self._layers[image.key]
        return dict(zip(layers.phrases, layers.unpacked() > 0, strict=True))

    def instances(self, image: TrainingImage) -> dict[str, NDArray[np.uint16]]:
        """The instance numbers by phrase (H, W)."""
        layers = self._layers[image.key]
        return dict(zip(layers.phrases, layers.unpacked(), strict=True))

    def text(self, phrases: Sequence[str]) -> TextEmbedding:
        """The embedding of some of the run's phrases."""
        rows = [self._row[phrase] for phrase in phrases]
        return replace(
            self._text,
            phrases=tuple(phrases),
            features=self._text.features[rows],
            attention_mask=self._text.attention_mask[rows],
        )

    def hidden(self, embeddings: Sequence[ImageEmbedding]) -> Tensor:
        """The vision transformer's output about a batch of images, (B, patches, C)."""
        return torch.cat([embedding.last_hidden_state for embedding in embeddings])

    def prompts(self, drawn: Sequence[tuple[int, DrawnPrompt]]) -> Prompts:
        """A batch of (position of the image, prompt); without a box it gets a padded one."""
        text = self.text([prompt.phrase for _, prompt in drawn])
        longest = int(text.attention_mask.sum(dim=1).max())  # what follows is padding in all
        return Prompts.with_one_box(
            [position for position, _ in drawn],
            text.features[:, :longest],
            text.attention_mask[:, :longest],
            [prompt.box for _, prompt in drawn],
        )


def spare(images: Sequence[TrainingImage]) -> tuple[list[TrainingImage], list[TrainingImage]]:
    """Images to learn from and images to judge by, in the order of their keys.

    Groups are withheld by their names alone, so that what is withheld from one run was withheld
    from all before it, from the first run on that had three groups: a run that was judged by what
    the one before it had learned would seem to get worse. The groups that drew the lowest lots
    always are among them, as many as it takes to judge at all, but for such as would leave too
    little to learn from. Few images are too few to judge by; what is withheld of them still waits
    for a later run.
    """
    ordered = sorted(images, key=lambda image: image.key)
    by_group: dict[str, list[TrainingImage]] = {}
    for image in ordered:
        by_group.setdefault(image.group or image.key, []).append(image)
    if len(by_group) < _LEAST_GROUPS:
        by_group = {image.key: [image] for image in ordered}
    most = _MOST_WITHHELD * len(ordered) if len(ordered) >= _LEAST_TO_WITHHOLD else 0
    withheld: list[TrainingImage] = []
    for lot, group in sorted((lot_of_group(group, _SPARED_LOT), group) for group in by_group):
        is_drawn = lot < _SPARED or len(withheld) < _LEAST_JUDGED
        if is_drawn and len(withheld) + len(by_group[group]) <= most:
            withheld += by_group[group]
    keys = {image.key for image in withheld}
    learned = [image for image in ordered if image.key not in keys]
    judged = sorted(withheld, key=lambda image: lot_of_group(image.key, _SPARED_LOT))[:_MOST_JUDGED]
    judged.sort(key=lambda image: image.key)
    enough = len(ordered) >= _LEAST_FOR_STOPPING and len(judged) >= _LEAST_JUDGED
    return learned, judged if enough else []
