"""`MedSAM3`, the model: an image is encoded once, then prompted with text and boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Sam3Model

from medsam3_model import detector as forward
from medsam3_model import device as devices
from medsam3_model import preprocessing
from medsam3_model.checkpoints import detectors, loading, pretrained
from medsam3_model.checkpoints.detectors import DetectorCheckpoint
from medsam3_model.checkpoints.hashes import (
    WeightsHash,
    is_detector,
    is_neck,
    of_adapted,
    of_detector,
    of_state,
)
from medsam3_model.errors import CheckpointError, PromptError
from medsam3_model.postprocessing import SAM3_SETTINGS, DetectionSettings, to_detections
from medsam3_model.preprocessing import tells_sides
from medsam3_model.tracker import Tracker
from medsam3_model.types import Detections, ImageEmbedding, TextEmbedding, stored_form

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Reading = TypeVar("Reading", default=Detections)

# As many phrases in a pass as have copies of the finest level within half a gigabyte.
_FINEST_LEVEL_BYTES_PER_PASS = 512 * 2**20


class MedSAM3:
    """Promptable concept segmentation: an image and a phrase in, every instance's mask out.

    ```python
    model = MedSAM3.from_pretrained("tiny")
    image = model.encode_image(rgb)  # once per image: the expensive part
    text = model.encode_text(["brain"])
    detections = model.detect(image, text)  # once per prompt: cheap
    detections = model.detect(image, text, boxes=[[40, 30, 160, 120]])
    ```

    The architecture is SAM 3 (transformers' `Sam3Model`); MedSAM-3 (arXiv 2511.19046) keeps the
    image and text encoders frozen and trains the detector only.

    Attributes:
        version: name and 8 hexadecimal digits of a hash of the weights, "tiny-1a2b3c4d".
        base_hash: SHA-256 of the frozen encoders' weights; text embeddings are valid as long as
            this stays the same.
        encoder_hash: the same, unless the version has an adapter (`checkpoints.encoder_adapter`):
            then of the encoders with it. It tells whether image embeddings are valid.
        detector_hash: SHA-256 of the detector's weights, and of its neck's and its adapter's where
            it has its own.
        neck_hash: tells whose neck made an embedding's levels: `encoder_hash` where it is the
            base's, else `detector_hash`.
        settings: thresholds that hold unless it is given others.
        device, dtype: where and in which precision the model computes.
        tracker: answers clicks, where the checkpoint holds SAM 3's tracker; else None.
        takes_exemplars: a box shows the detector what is meant all over the image; else it asks
            for the object in the box.
        mirrors: phrases that do not tell left from right, and clicks, are answered by the mean of
            what is seen in the image and in its mirror image.
    """

    def __init__(
        self,
        model: Sam3Model,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "custom",
        version: str | None = None,
        settings: DetectionSettings = SAM3_SETTINGS,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        hashes: WeightsHash | None = None,
        tracker: Tracker | None = None,
        takes_exemplars: bool = True,
        thresholds: Mapping[str, float] | None = None,
        second_looks: Mapping[str, float] | None = None,
        neck_hash: str | None = None,
        mirrors: bool = False,
        unadapted: MedSAM3 | None = None,
    ) -> None:
        """Wrap a ready `Sam3Model`; most callers want `from_pretrained`.

        Args:
            model: a float32 model; it is moved and put into evaluation mode.
            tokenizer: turns phrases into token ids, in the manner of transformers.
            name: first part of the version.
            version: the whole of it, where the weights came with one.
            settings: default thresholds.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            dtype: "auto", "float32" or "bfloat16". In bfloat16 the frozen encoders hold bfloat16
                weights; the detector keeps float32 weights and computes with autocast, so that
                boxes keep sub-pixel precision.
            hashes: of the weights, where the caller knows them already.
            tracker: of the same checkpoint.
            takes_exemplars: see the class.
            thresholds: lowest score of a shown instance by phrase, before that of `settings`.
            second_looks: by phrase, see `second_look_of`.
            neck_hash: where the neck is not the base's.
            mirrors: see the class.
            unadapted: where the model has an adapter, one with the same base and none.
        """
        self.device = devices.resolve_device(device)
        self.dtype = devices.resolve_dtype(dtype, self.device)
        self.settings = settings
        self.thresholds = dict(thresholds or {})
        self.second_looks = {k.casefold(): room for k, room in (second_looks or {}).items()}
        self.name = name
        self.tracker = tracker
        self.takes_exemplars = takes_exemplars
        self.mirrors = mirrors
        self.tokenizer = tokenizer
        hashes = hashes or of_state(model.state_dict())
        self.base_hash, self.detector_hash = hashes.encoder, hashes.detector
        self.encoder_hash = of_adapted(self.base_hash, detectors.adapter_of(model))
        self._unadapted = unadapted
        self.neck_hash = neck_hash or self.encoder_hash
        self.version = version or f"{name}-{hashes.combined[:8]}"

        self.model = model
        model.eval().requires_grad_(False)
        nn.Module.to(model, self.device)
        for encoder in (model.vision_encoder, model.text_encoder, model.text_projection):
            nn.Module.to(encoder, self.dtype)
        if self.device.type == "cpu":
            devices.limit_threads()

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        adapter: str | Path | None = None,
        config: Any = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        *,
        detector: str | Path | None = None,
        settings: DetectionSettings | None = None,
    ) -> MedSAM3:
        """Load a model from what researchers publish.

        Args:
            checkpoint: "tiny" (bundled), facebook's `sam3.pt`, a Hugging Face folder or
                safetensors file (image or video layout), a hub id ("facebook/sam3"), or a
                detector of this project, which names its base itself.
            adapter: a LoRA file in facebook's key space (MedSAM3-v1), added to the weights.
            config: sizes of the architecture where they do not come with the file and are not
                the full model's: a `Sam3Config`, its dict, or the path of a config.json.
            device: "auto" (CUDA, else MPS, else CPU) or torch's name of one.
            dtype: "auto" (bfloat16 on CUDA, else float32), "float32" or "bfloat16".
            detector: a detector of this project to use instead of the checkpoint's own.
            settings: thresholds; default those that come with the checkpoint, else the published
                ones of its kind.

        Raises:
            CheckpointError: the file is missing, damaged, unsafe, or of another model; strict:
                every tensor must be used.
            AdapterError: the adapter does not fit the checkpoint.
        """
        where = devices.resolve_device(device)
        precision = devices.resolve_dtype(dtype, where)
        adapter = None if adapter is None else Path(adapter).expanduser()
        weights = pretrained.locate(checkpoint)
        if detector is None and loading.is_detector_file(weights):
            loaded_detector = detectors.load_detector(weights)
            base = cls.from_pretrained(loaded_detector.base, adapter, config, where, precision)
            return base.with_detector(loaded_detector, settings=settings)

        loaded = loading.load_model(
            weights,
            adapter=adapter,
            config=pretrained.parse_config(config),
            device=where,
            dtype=precision,
        )
        preset = pretrained.preset_of(weights, loaded.file.metadata, adapter)
        model = cls(
            loaded.model,
            pretrained.tokenizer_of(weights, loaded.model.config),
            name=preset.name,
            version=preset.version,
            settings=settings or preset.settings,
            device=where,
            dtype=precision,
            hashes=loaded.hashes,
            tracker=pretrained.tracker_of(weights, loaded, config, where, precision),
            takes_exemplars=preset.exemplars,
            second_looks=preset.second_looks,
            mirrors=preset.mirrors,
        )
        return model if detector is None else model.with_detector(detectors.load_detector(detector))

    def with_detector(
        self, detector: DetectorCheckpoint, *, settings: DetectionSettings | None = None
    ) -> MedSAM3:
        """Another version on the same frozen encoders, which are shared, not copied.

        Embeddings of this model stay valid for the other one, unless one of them has an adapter.

        Args:
            detector: its parameters, thresholds and second looks of phrases.
            settings: thresholds for all phrases instead; default this model's.

        Raises:
            CheckpointError: the detector was trained on another encoder, or it reads through the
                base's neck, and this model has another one.
        """
        if not detector.has_neck and self.neck_hash != self.encoder_hash:
            raise CheckpointError(
                f"the detector {detector.name!r} reads through the neck of {detector.base!r}, "
                f"which {self.version} has replaced: load it with its own base"
            )
        base = self.unadapted
        model = detectors.with_detector(base.model, detector, self.base_hash)
        tracker = base.tracker
        if detector.adapter and tracker is not None:
            tracker = Tracker(
                tracker.model,
                tracker.neck,
                partial(forward.vision_hidden, model),
                tracker.dtype,
                of_adapted(self.base_hash, detector.adapter),
                tracker.traits,
            )
        return type(self)(
            model,
            self.tokenizer,
            name=detector.name,
            settings=settings or self.settings,
            device=self.device,
            dtype=self.dtype,
            hashes=WeightsHash(self.base_hash, detector.detector_hash),
            tracker=tracker,
            takes_exemplars=self.takes_exemplars,
            thresholds=detector.thresholds if settings is None else {},
            second_looks=detector.second_looks,
            neck_hash=detector.detector_hash if detector.has_neck else None,
            mirrors=self.mirrors,
            unadapted=base if detector.adapter else None,
        )

    def with_weights(
        self,
        state: Mapping[str, torch.Tensor],
        *,
        base: str,
        name: str,
        thresholds: Mapping[str, float],
        second_looks: Mapping[str, float],
    ) -> MedSAM3:
        """As `with_detector`, from weights that no file holds yet.

        Args:
            state: as `detectors.detector_state` has them.
            base: the checkpoint that holds the encoders, see `DetectorCheckpoint.base`.
            name: first part of the version.
            thresholds, second_looks: by phrase, see `DetectorCheckpoint`.
        """
        # Neck and adapter compute in the encoders' precision: rounded before their hash is taken,
        # the version is the same when it comes back from a file.
        state = {
            key: tensor if is_detector(key) else tensor.to(self.dtype).float()
            for key, tensor in state.items()
        }
        if self.neck_hash == self.encoder_hash:
            neck = {k: v for k, v in detectors.detector_state(self.model).items() if is_neck(k)}
            if all(torch.equal(state[key], tensor) for key, tensor in neck.items()):
                # The base's: the same weights as the base's are the same version.
                state = {key: tensor for key, tensor in state.items() if key not in neck}
        hash_ = of_detector(state)
        return self.with_detector(
            DetectorCheckpoint(
                state,
                self.base_hash,
                hash_,
                base,
                name,
                thresholds=thresholds,
                second_looks=second_looks,
            )
        )

    @property
    def unadapted(self) -> MedSAM3:
        """A model on the same base whose encoder has no adapter; itself where it has none."""
        return self._unadapted or self

    def threshold_of(self, phrase: str) -> float:
        """Lowest score at which an instance of a phrase is shown: as calibrated, else the same."""
        return self.thresholds.get(phrase, self.settings.score_threshold)

    def second_look_of(self, phrase: str) -> float | None:
        """Side of the square in which a phrase's object is looked at again, see `second_look`."""
        return self.second_looks.get(phrase.casefold())

    def save_detector(
        self, path: str | Path, *, base: str, name: str, notes: Mapping[str, Any] | None = None
    ) -> DetectorCheckpoint:
        """Write this model's detector; see `checkpoints.detectors.save_detector`."""
        state = detectors.detector_state(self.model)
        if self.neck_hash == self.encoder_hash:  # the base's, which is not this version's own
            state = {key: tensor for key, tensor in state.items() if not is_neck(key)}
        return detectors.save_detector(
            path,
            state,
            encoder_hash=self.base_hash,
            base=base,
            name=name,
            notes=notes,
            thresholds=self.thresholds,
            second_looks=self.second_looks,
        )

    @property
    def config(self) -> Any:
        """The architecture's sizes, a `Sam3Config`."""
        return self.model.config

    @property
    def image_size(self) -> int:
        """Side of the square that images are resized to, in pixels."""
        return int(self.config.image_size)

    # -- encoders ---------------------------------------------------------------------------

    def encode_image(self, rgb: npt.NDArray[np.uint8], *, rounded: bool = False) -> ImageEmbedding:
        """Run the frozen vision encoder, the expensive part, on one image.

        Args:
            rgb: uint8 (H, W, 3), as `images.reading.read_image` returns.
            rounded: to 16 bit, as caches keep it: a cache that gets it so need not run the neck
                once more for the same answer as later.

        Raises:
            PromptError: another type or shape.
            ModelMemoryError: memory ran out.
        """
        return self.encode_images([rgb], rounded=rounded)[0]

    def encode_images(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        *,
        batch_size: int = 8,
        rounded: bool = False,
    ) -> list[ImageEmbedding]:
        """`encode_image` for several images; a batch that does not fit in memory is halved."""
        encode = partial(self._encode_batch, rounded=rounded)
        embeddings = devices.in_batches(encode, images, batch_size)
        if not self.mirrors:
            return embeddings
        return [
            replace(embedding, mirrored=cache(partial(self.encode_mirrored, rgb, rounded=rounded)))
            for embedding, rgb in zip(embeddings, images, strict=True)
        ]

    def encode_mirrored(
        self, rgb: npt.NDArray[np.uint8], *, rounded: bool = False
    ) -> ImageEmbedding:
        """As `encode_image`, of the image mirrored left to right."""
        encode = partial(self._encode_batch, rounded=rounded)
        return devices.in_batches(encode, [np.ascontiguousarray(rgb[:, ::-1])], 1)[0]

    @torch.no_grad()
    def _encode_batch(
        self, images: Sequence[npt.NDArray[np.uint8]], *, rounded: bool
    ) -> list[ImageEmbedding]:
        pixels = torch.cat([preprocessing.to_pixel_values(rgb, self.image_size) for rgb in images])
        hidden = forward.vision_hidden(self.model, pixels.to(self.device))
        if rounded:
            hidden = stored_form(hidden).to(hidden.dtype)
        levels = forward.feature_levels(self.model, hidden)

        sizes = [(rgb.shape[0], rgb.shape[1]) for rgb in images]
        return ImageEmbedding.of_batch(levels, hidden, sizes, self.encoder_hash, self.neck_hash)

    def restore_embedding(
        self, last_hidden_state: torch.Tensor, original_size: tuple[int, int]
    ) -> ImageEmbedding:
        """The embedding that `encode_image` made, from its `last_hidden_state` alone.

        Runs the neck only: under a second on a CPU at full size, where the whole encoder takes
        thirteen to thirty.
        """
        with torch.no_grad():
            hidden = last_hidden_state.to(self.device, self.dtype)
            levels = forward.feature_levels(self.model, hidden)
            return ImageEmbedding(levels, hidden, original_size, self.encoder_hash, self.neck_hash)

    @torch.no_grad()
    def levels(self, image_embedding: ImageEmbedding) -> tuple[torch.Tensor, ...]:
        """An image's feature levels as this model's neck makes them, each (1, D, h, w)."""
        if image_embedding.neck_hash == self.neck_hash:
            return image_embedding.fpn_hidden_states
        hidden = image_embedding.last_hidden_state.to(self.device, self.dtype)
        return forward.feature_levels(self.model, hidden)

    def encode_text(self, phrases: Sequence[str]) -> TextEmbedding:
        """Run the frozen text encoder on phrases of a few words ("breast tumor").

        Raises PromptError where there is no phrase, or an empty one.
        """
        ids, mask = preprocessing.phrase_tokens(
            self.tokenizer, phrases, self.config.text_config.max_position_embeddings
        )
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.no_grad():
            features = forward.text_features(self.model, ids, mask)
        return TextEmbedding(tuple(phrases), features, mask, self.base_hash)

    # -- detector ---------------------------------------------------------------------------

    def detect(
        self,
        image_embedding: ImageEmbedding,
        text_embedding: TextEmbedding,
        boxes: Any = None,
        box_labels: Any = None,
        *,
        settings: DetectionSettings | None = None,
    ) -> Detections | list[Detections]:
        """As `detect_all`, but for a single phrase its `Detections` without a list around it."""
        answers = self.detect_all(
            image_embedding, text_embedding, boxes, box_labels, settings=settings
        )
        return answers[0] if len(answers) == 1 else answers

    def detect_all(
        self,
        image_embedding: ImageEmbedding,
        text_embedding: TextEmbedding,
        boxes: Any = None,
        box_labels: Any = None,
        *,
        settings: DetectionSettings | None = None,
        read: Callable[[Mapping[str, torch.Tensor], int, int], Reading] | None = None,
    ) -> list[Reading]:
        """Find every instance of the phrases in the image.

        Args:
            image_embedding: from `encode_image` of a model with the same encoder.
            text_embedding: from `encode_text`; all K phrases are answered in one pass. One phrase
                may stand there several times, with other boxes.
            boxes: exemplars, x0, y0, x1, y1 in pixels of the original image: (M, 4) for all
                phrases, or a list of K such arrays. They show what is meant, they do not crop.
            box_labels: 1 "such things", 0 "not such things", (M,) or K of them; default all 1.
            settings: thresholds; default the model's own, as calibrated for each phrase.
            read: what to make of the tensors instead of `Detections`. It is called with the
                tensors of `detector.detector_outputs` for some of the phrases, the row in them
                that belongs to a phrase, and which of the K phrases it is.

        Returns:
            `Detections`, or what `read` returns, of each phrase in their order.

        Raises:
            PromptError: malformed boxes, or embeddings of another encoder.
            ModelMemoryError: memory ran out on a single phrase.
        """
        self._check_encoders(image_embedding, text_embedding)
        size, levels = image_embedding.original_size, self.levels(image_embedding)

        def detections(outputs: Mapping[str, torch.Tensor], row: int, index: int) -> Any:
            phrase = text_embedding.phrases[index]
            chosen = settings or replace(self.settings, score_threshold=self.threshold_of(phrase))
            return to_detections(outputs, row, size, chosen, phrase)

        read = read or detections
        rows, labels = preprocessing.per_phrase_boxes(boxes, box_labels, len(text_embedding))
        mirrored, mirrored_levels = image_embedding.mirrored, None
        # A box asks about a place, a sided name about one half: neither is the same in a mirror.
        looked_twice = [
            not len(row) and not tells_sides(phrase)
            for row, phrase in zip(rows, text_embedding.phrases, strict=True)
        ]
        if mirrored is not None and any(looked_twice):
            mirrored_levels = self.levels(mirrored())

        def ask(seen: Sequence[torch.Tensor], indices: Sequence[int]) -> dict[str, torch.Tensor]:
            return forward.detector_outputs(
                self.model,
                seen,
                text_embedding.features[list(indices)],
                text_embedding.attention_mask[list(indices)],
                *preprocessing.model_boxes(
                    [rows[i] for i in indices], [labels[i] for i in indices], size
                ),
                self.dtype,
            )

        @torch.no_grad()
        def run(indices: Sequence[int]) -> list[Reading]:
            outputs = ask(levels, indices)
            twice = [row for row, index in enumerate(indices) if looked_twice[index]]
            if mirrored_levels is not None and twice:
                again = ask(mirrored_levels, [indices[row] for row in twice])
                outputs = forward.with_mirrored(outputs, again, twice)
            # Read within the pass: the masks of all phrases at once may not fit in memory.
            return [read(outputs, row, index) for row, index in enumerate(indices)]

        finest = levels[0]
        per_pass = _FINEST_LEVEL_BYTES_PER_PASS // (finest.numel() * finest.element_size())
        return devices.in_batches(run, range(len(text_embedding)), max(1, per_pass))

    def _check_encoders(self, image: ImageEmbedding, text: TextEmbedding) -> None:
        """Raises PromptError for embeddings of another encoder."""
        for embedding, own in ((image, self.encoder_hash), (text, self.base_hash)):
            if embedding.encoder_hash != own:
                raise PromptError(
                    f"a {type(embedding).__name__} of another encoder was given to {self.version}: "
                    "encode again with this model"
                )

    @torch.no_grad()
    def raw(
        self, pixel_values: Any, input_ids: Any, boxes: Any = None, box_labels: Any = None
    ) -> dict[str, torch.Tensor]:
        """The detector's tensors of image-phrase pairs, to compare with other implementations.

        Args:
            pixel_values: float (B, 3, S, S), scaled to -1..1, S the model's image size.
            input_ids: int (B, tokens), padded with 0 or the end-of-text token.
            boxes: float (B, M, 4), cx, cy, w, h as fractions of the image.
            box_labels: int (B, M), 1 positive, 0 negative, -10 padding; default all positive.

        Returns:
            As `detector.detector_outputs`, K = B.
        """
        pixels = torch.as_tensor(pixel_values, dtype=torch.float32).to(self.device)
        ids = torch.as_tensor(input_ids, dtype=torch.long).to(self.device)
        mask = preprocessing.text_mask(ids, self.config.text_config.eos_token_id)
        return forward.detector_outputs(
            self.model,
            forward.feature_levels(self.model, forward.vision_hidden(self.model, pixels)),
            forward.text_features(self.model, ids, mask),
            mask,
            *preprocessing.raw_boxes(boxes, box_labels, len(ids)),
            self.dtype,
        )
