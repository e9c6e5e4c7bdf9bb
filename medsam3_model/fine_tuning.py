"""Fine-tuning of the detector on corrected images; both encoders stay frozen, as in MedSAM-3.

Since the encoders never change, what they make of an image is computed once and kept in an
`EmbeddingCache`: of the image as it is, and of a bounded number of augmented views. A step then
costs the detector alone. Every choice (images, views, prompts) follows from seed and step, so a run
that was killed goes on from its last saved state and ends with the weights that it would have had.
"""

import math
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam3_model.augmentation import (
    WHOLE,
    View,
    disturb_box,
    random_look,
    random_view,
    sample_image,
    sample_labels,
)
from medsam3_model.boxes import tight_box
from medsam3_model.detector import PADDED_BOX, Prompts, VisionFeatures, detect
from medsam3_model.detector_checkpoints import DetectorCheckpoint, detector_state
from medsam3_model.evaluation import concept_mask
from medsam3_model.losses import LossWeights, PromptTarget, detector_loss
from medsam3_model.metrics import dice
from medsam3_model.training_prompts import DrawnPrompt, target_of
from medsam3_model.types import ImageEmbedding

if TYPE_CHECKING:
    from medsam3_model.embedding_cache import EmbeddingCache
    from medsam3_model.predictor import MedSAM3

_STATE_FORMAT = 1
# Below this many images none is spared for deciding when to stop.
_LEAST_FOR_STOPPING = 12
_SPARED = 6  # one image in so many


@dataclass(frozen=True)
class TrainingSettings:
    """How a run learns.

    Attributes:
        steps: optimiser steps at most.
        minutes: after which the run stops where it is.
        learning_rate: peak; it rises over `warm_up` steps and falls linearly to a twentieth.
        images_per_step: images in a step, each with several prompts.
        views: augmented views per image that are encoded and kept; 0 trains on the image alone.
        replay_share: of the images of a step, where there are any to replay.
        patience: validations without a better one after which the run stops.
        validate_every, save_every: in steps.
    """

    steps: int = 400
    minutes: float = 120.0
    learning_rate: float = 2e-4
    warm_up: int = 20
    weight_decay: float = 0.05
    clip_norm: float = 5.0
    images_per_step: int = 3
    views: int = 3
    replay_share: float = 0.3
    validate_every: int = 50
    patience: int = 4
    save_every: int = 25
    seed: int = 0
    loss: LossWeights = field(
        default_factory=lambda: LossWeights(
            classification=1.5, presence=4.0, mask_focal=50.0, semantic_dice=20.0
        )
    )

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        rising = min(1.0, (step + 1) / max(self.warm_up, 1))
        return self.learning_rate * rising * (1 - 0.95 * step / max(self.steps - 1, 1))


@dataclass(frozen=True)
class TrainingImage:
    """An image with the truth about it.

    Attributes:
        key: identifies the pixels in the embedding cache.
        read: the image, RGB uint8 (H, W, 3).
        layers: instance numbers by phrase, integers (H, W); all 0: the concept is absent.
    """

    key: str
    read: Callable[[], NDArray[np.uint8]]
    layers: Callable[[], Mapping[str, NDArray[np.int32]]]


@dataclass(frozen=True)
class Progress:
    """How far a run is; `validation_dice` is the last one, None before the first."""

    step: int
    steps: int
    loss: float
    validation_dice: float | None
    eta_s: float


@dataclass(frozen=True)
class FineTuned:
    """What came of a run.

    Attributes:
        model: the trained version, on the same encoders as the one it started from.
        steps: that were done.
        history: `(step, loss, validation Dice or None)` at each validation and at the end.
        stopped: why: "steps", "minutes" or "patience".
    """

    model: "MedSAM3"
    steps: int
    history: tuple[tuple[int, float, float | None], ...]
    stopped: str


def fine_tune(
    model: "MedSAM3",
    images: Sequence[TrainingImage],
    *,
    name: str,
    base: str,
    cache: "EmbeddingCache",
    replay: Sequence[TrainingImage] = (),
    settings: TrainingSettings | None = None,
    state: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> FineTuned:
    """Train a copy of a model's detector.

    Args:
        model: where it starts; it stays as it is.
        images: to learn from.
        name: first part of the new version.
        base: the checkpoint that holds the encoders, see `DetectorCheckpoint.base`.
        cache: embeddings, shared with whoever else uses the same encoders.
        replay: images of concepts that are to be kept in mind.
        settings: how.
        state: file from which a killed run goes on, and which it keeps; None keeps nothing.
        on_progress: called after every step; it may wait, and what it raises ends the run.

    Raises:
        ValueError: no images.
    """
    if not images:
        raise ValueError("there are no images to learn from")
    run = _Run(model, images, replay, cache, settings or TrainingSettings(), name, base)
    return run.go(state, on_progress)


class _Run:
    def __init__(
        self,
        model: "MedSAM3",
        images: Sequence[TrainingImage],
        replay: Sequence[TrainingImage],
        cache: "EmbeddingCache",
        settings: TrainingSettings,
        name: str,
        base: str,
    ) -> None:
        self.settings, self.cache, self.name, self.base = settings, cache, name, base
        self.start = model
        self.model = model.with_detector(self._checkpoint(detector_state(model.model)))
        ordered = sorted(images, key=lambda one: one.key)
        spare = len(ordered) >= _LEAST_FOR_STOPPING
        self.held = ordered[_SPARED - 1 :: _SPARED] if spare else []
        held = {id(one) for one in self.held}
        self.images = [one for one in ordered if id(one) not in held]
        self.replay = sorted(replay, key=lambda one: one.key)
        self.truth: dict[int, dict[str, NDArray[np.int32]]] = {}
        every = sorted({phrase for one in (*ordered, *self.replay) for phrase in self._layers(one)})
        self.text = model.encode_text(every)
        self.row = {phrase: index for index, phrase in enumerate(every)}
        side = model.image_size // int(model.config.vision_config.backbone_config.patch_size)
        self.mask_size = 4 * side
        self.positions = model.model.vision_encoder.neck.position_encoding
        self.parameters = [
            parameter.requires_grad_(True)
            for key, parameter in self.model.model.named_parameters()
            if key in detector_keys(self.model.model)
        ]
        plain = [one for one in self.parameters if one.ndim < 2]
        decayed = [one for one in self.parameters if one.ndim >= 2]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
        )
        self.step = self.bad = 0
        self.seconds = 0.0
        self.history: list[tuple[int, float, float | None]] = []
        self.best: tuple[float, dict[str, Tensor]] | None = None

    def go(self, state: Path | None, on_progress: Callable[[Progress], None]) -> FineTuned:
        self._resume(state)
        settings, losses = self.settings, [row[1] for row in self.history[-1:]]
        stopped = "steps"
        while self.step < settings.steps:
            started = time.monotonic()
            losses = [*losses[-49:], self._one_step()]
            self.step += 1
            last = self.step == settings.steps
            if self.held and (self.step % settings.validate_every == 0 or last):
                self._validate(losses)
            self.seconds += time.monotonic() - started
            if state is not None and (self.step % settings.save_every == 0 or last):
                self._save(state)
            on_progress(
                Progress(
                    self.step,
                    settings.steps,
                    float(np.mean(losses)),
                    self.history[-1][2] if self.history else None,
                    self.seconds / self.step * (settings.steps - self.step),
                )
            )
            if self.bad >= settings.patience:
                stopped = "patience"
                break
            if self.seconds > 60 * settings.minutes:
                stopped = "minutes"
                break
        if not self.history or self.history[-1][0] != self.step:
            self.history.append((self.step, float(np.mean(losses or [math.nan])), None))
        weights = self.best[1] if self.best else detector_state(self.model.model)
        return FineTuned(
            self.start.with_detector(self._checkpoint(weights)),
            self.step,
            tuple(self.history),
            stopped,
        )

    # -- one step ---------------------------------------------------------------------------

    def _one_step(self) -> float:
        settings = self.settings
        rng = np.random.default_rng([settings.seed, self.step])
        embeddings: list[ImageEmbedding] = []
        prompts: list[tuple[int, DrawnPrompt]] = []
        for _ in range(settings.images_per_step):
            pool = self.images
            if self.replay and rng.random() < settings.replay_share:
                pool = self.replay
            image = pool[int(rng.integers(len(pool)))]
            number = int(rng.integers(settings.views + 1))
            view, embedding = self._view(image, number)
            layers = self._layers(image)
            stacked = np.stack([layer.astype(np.uint16) for layer in layers.values()])
            labels = sample_labels(stacked, view, 2 * self.mask_size)
            drawn = draw_prompts(dict(zip(layers, labels, strict=True)), self.mask_size, rng)
            prompts += [(len(embeddings), one) for one in drawn]
            embeddings.append(embedding)
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate(self.step)
        wants = torch.tensor([n for n, (_, one) in enumerate(prompts) if one.wants_masks])
        device = self.model.device
        output = detect(
            self.model.model, self._features(embeddings), self._collate(prompts), wants.to(device)
        )
        targets = [_to(one.target, device) for _, one in prompts]
        loss = detector_loss(output, targets, settings.loss)["total"]
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip_norm)
        if torch.isfinite(norm):
            self.optimiser.step()
        return float(loss.detach())

    def _view(self, image: TrainingImage, number: int) -> tuple[View, ImageEmbedding]:
        """View `number` of an image with its embedding; 0 is the image as it is."""
        if number == 0:
            found = self.cache.get(
                self.start, image.key, lambda: self.start.encode_image(image.read())
            )
            return WHOLE, found
        rng = np.random.default_rng([zlib.crc32(image.key.encode()), number])
        height, width = next(iter(self._layers(image).values())).shape
        view = random_view(rng, "", width / height)

        def encode() -> ImageEmbedding:
            pixels = sample_image(image.read(), view, self.start.image_size)
            looked = (random_look(pixels, rng) * 255).round().to(torch.uint8)
            return self.start.encode_image(looked.permute(1, 2, 0).contiguous().numpy())

        return view, self.cache.get(self.start, f"{image.key}-view{number}", encode)

    def _layers(self, image: TrainingImage) -> dict[str, NDArray[np.int32]]:
        if id(image) not in self.truth:
            self.truth[id(image)] = dict(image.layers())
        return self.truth[id(image)]

    def _features(self, embeddings: Sequence[ImageEmbedding]) -> VisionFeatures:
        # What comes from inference mode cannot be differentiated through; concatenating copies.
        levels = tuple(
            torch.cat([one.fpn_hidden_states[index].float() for one in embeddings])
            for index in range(len(embeddings[0].fpn_hidden_states))
        )
        position = self.positions(
            torch.Size((1, *levels[-1].shape[1:])), self.model.device, torch.float32
        )
        position = position.expand(len(embeddings), -1, -1, -1)
        return VisionFeatures(levels, (position,) * len(levels))

    def _collate(self, prompts: Sequence[tuple[int, DrawnPrompt]]) -> Prompts:
        device = self.model.device
        rows = torch.tensor([self.row[one.phrase] for _, one in prompts], device=device)
        middle = torch.tensor([0.5, 0.5, 1.0, 1.0])
        boxes = [middle if one.box is None else one.box for _, one in prompts]
        labels = [PADDED_BOX if one.box is None else 1 for _, one in prompts]
        return Prompts(
            images=torch.tensor([image for image, _ in prompts], device=device),
            text=self.text.features[rows].float(),
            text_mask=self.text.attention_mask[rows].bool(),
            boxes=torch.stack(boxes)[:, None].to(device),
            box_labels=torch.tensor(labels, device=device)[:, None],
        )

    # -- when to stop -----------------------------------------------------------------------

    def _validate(self, losses: Sequence[float]) -> None:
        """Mean Dice by text on the spared images; remembers the best weights."""
        scores = []
        for image in self.held:
            layers = self._layers(image)
            rows = [self.row[phrase] for phrase in layers]
            text = replace(
                self.text,
                phrases=tuple(layers),
                features=self.text.features[rows],
                attention_mask=self.text.attention_mask[rows],
            )
            _, embedding = self._view(image, 0)
            found = self.model.detect_all(embedding, text)
            for detections, layer in zip(found, layers.values(), strict=True):
                scores.append(dice(concept_mask(detections)[0], layer > 0))
        mean = float(np.mean(scores))
        self.history.append((self.step, float(np.mean(losses)), mean))
        if self.best is None or mean > self.best[0]:
            self.best, self.bad = (mean, detector_state(self.model.model)), 0
        else:
            self.bad += 1

    # -- state ------------------------------------------------------------------------------

    def _save(self, path: Path) -> None:
        """Replace the state in one move: a killed run finds a whole one."""
        content = {
            "format": _STATE_FORMAT,
            "parent": self.start.detector_hash,
            "step": self.step,
            "bad": self.bad,
            "seconds": self.seconds,
            "history": self.history,
            "detector": detector_state(self.model.model),
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
        }
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save(content, unfinished)
        unfinished.replace(path)

    def _resume(self, path: Path | None) -> None:
        if path is None or not path.is_file():
            return
        content = torch.load(path, weights_only=True, map_location="cpu")
        if content["format"] != _STATE_FORMAT or content["parent"] != self.start.detector_hash:
            return  # of another program or of another version: begin anew
        own = self.model.model.state_dict()
        for key, value in content["detector"].items():
            own[key].copy_(value)
        self.optimiser.load_state_dict(content["optimiser"])
        self.step, self.bad = content["step"], content["bad"]
        self.seconds = content["seconds"]
        self.history = [tuple(row) for row in content["history"]]
        self.best = tuple(content["best"]) if content["best"] else None

    def _checkpoint(self, state: Mapping[str, Tensor]) -> DetectorCheckpoint:
        from medsam3_model import weights_hash

        return DetectorCheckpoint(
            state,
            self.start.encoder_hash,
            weights_hash.of_state(state).detector,
            self.base,
            self.name,
        )


def draw_prompts(
    layers: Mapping[str, Tensor], mask_size: int, rng: np.random.Generator
) -> list[DrawnPrompt]:
    """Questions about one view of a corrected image, and their answers.

    Every phrase that the annotator was asked for is asked by text, whether it is there or not (up
    to four of each): presence learns from nothing else. What is there is also asked with a box.

    Args:
        layers: phrase -> int64 (S, S) instance numbers of the view.
        mask_size: side of the model's masks; S is a multiple of it.
        rng: decides.
    """
    present = [phrase for phrase, layer in layers.items() if (layer > 0).any()]
    absent = [phrase for phrase in layers if phrase not in present]
    rng.shuffle(present)
    rng.shuffle(absent)
    prompts = [
        DrawnPrompt(phrase, None, target_of(layers[phrase], None, mask_size))
        for phrase in present[:4]
    ]
    prompts += [_boxed(phrase, layers[phrase], mask_size, rng) for phrase in present[:2]]
    for phrase in absent[:4]:
        nothing = target_of(layers[phrase], None, mask_size)
        prompts.append(DrawnPrompt(phrase, None, nothing, wants_masks=rng.random() < 0.25))
    if not any(one.wants_masks for one in prompts):
        prompts[0] = replace(prompts[0], wants_masks=True)
    return prompts


def detector_keys(model: Any) -> frozenset[str]:
    """Names of the parameters that are trained."""
    from medsam3_model.weights_hash import is_detector

    return frozenset(key for key, _ in model.named_parameters() if is_detector(key))


def _boxed(phrase: str, layer: Tensor, mask_size: int, rng: np.random.Generator) -> DrawnPrompt:
    """A box around one object, as a person draws it: it asks for that object alone."""
    numbers = layer.unique()
    numbers = numbers[numbers > 0]
    number = numbers[int(rng.integers(len(numbers)))][None]
    side = layer.shape[-1]
    drawn = disturb_box(tight_box(torch.isin(layer, number).numpy()) / side, 0.08, rng)
    low, high = torch.from_numpy(drawn[:2]), torch.from_numpy(drawn[2:])
    box = torch.cat([(low + high) / 2, high - low])
    return DrawnPrompt(phrase, box, target_of(layer, number, mask_size))


def _to(target: PromptTarget, device: torch.device) -> PromptTarget:
    return PromptTarget(
        target.boxes.to(device), target.masks.to(device), target.semantic.to(device)
    )
