"""Fine-tuning of the detector on corrected images; both encoders stay frozen, as in MedSAM-3.

Since the encoders never change, a step costs the detector alone (see `training_data`). Every choice
(images, views, prompts) follows from seed and step, so a run that was killed goes on from its last
saved state and ends with the weights that it would have had; and several processes
(`processes.join`) that share a step's images learn what one would.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medsam3_model import device as devices
from medsam3_model.checkpoints import hashes
from medsam3_model.checkpoints.detectors import DetectorCheckpoint, detector_state
from medsam3_model.detector import detect
from medsam3_model.errors import MedSAM3Error
from medsam3_model.evaluation.metrics import dice
from medsam3_model.training.correction_prompts import draw_prompt
from medsam3_model.training.data import TrainingData, TrainingImage, spare
from medsam3_model.training.losses import PromptTarget, detector_loss
from medsam3_model.training.processes import joined
from medsam3_model.training.prompts import DrawnPrompt
from medsam3_model.training.settings import TrainingSettings
from medsam3_model.training.state import TrainingState, load_state, save_state
from medsam3_model.types import ImageEmbedding

if TYPE_CHECKING:
    from medsam3_model.embedding_cache import EmbeddingCache
    from medsam3_model.predictor import MedSAM3

__all__ = ["FineTuned", "TrainingImage", "TrainingProgress", "TrainingSettings", "fine_tune"]

_WAY = 0.7  # from the weights at the start to the tuned ones, see `fine_tune`
_MEAN_OVER = 50  # steps that the reported loss is averaged over


@dataclass(frozen=True)
class TrainingProgress:
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
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
) -> FineTuned:
    """Train a copy of a model's detector.

    Of twelve images or more, and of as many to replay, every sixth (24 at most) is spared. The
    weights with the best Dice by text on the spared ones, less what was lost on the replayed ones,
    are returned: the tuned ones, or ones 70 % of the way from the start to them, which keep more of
    what was known (Wortsman et al. 2022, arXiv 2109.01903).
    Called by every process of a group that was joined with `processes.join`, it trains once,
    together, and returns the same to all.

    Args:
        model: where it starts; it stays as it is.
        images: to learn from.
        name: first part of the new version.
        base: the checkpoint that holds the encoders, see `DetectorCheckpoint.base`.
        cache: embeddings, shared with whoever else uses the same encoders.
        replay: images of concepts that are to be kept in mind.
        settings: how.
        state: file from which a killed run goes on, and which it keeps; None keeps nothing. A
            state of other data, settings or another start is not used.
        on_progress: called after every step by the first process; it may wait, and what it raises
            ends the run after its state is saved.

    Raises:
        ValueError: no images.
        MedSAM3Error: another process of the group ended the run.
    """
    if not images:
        raise ValueError("there are no images to learn from")
    devices.keep_freed_memory()
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
        self.settings, self.name, self.base = settings, name, base
        self.start, self.processes = model, joined()
        self.model = model.with_detector(self._checkpoint(detector_state(model.model)))
        self.images, self.spared = spare(images)
        self.replay, self.spared_replay = spare(replay)
        self.data = TrainingData(model, (*images, *replay), cache)
        self.parameters = [
            parameter.requires_grad_(True)
            for key, parameter in self.model.model.named_parameters()
            if hashes.is_detector(key)
        ]
        plain = [one for one in self.parameters if one.ndim < 2]
        decayed = [one for one in self.parameters if one.ndim >= 2]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            fused=True,
        )
        self.state = TrainingState()
        self.known_before: float | None = None

    def go(self, file: Path | None, on_progress: Callable[[TrainingProgress], None]) -> FineTuned:
        self._resume(file)
        settings, state = self.settings, self.state
        stopped = self._stopped()
        while stopped is None:
            started = time.monotonic()
            state.losses = [*state.losses[1 - _MEAN_OVER :], self._one_step()]
            state.step += 1
            last = state.step == settings.steps
            if self.spared and (state.step % settings.validate_every == 0 or last):
                self._validate()
            state.seconds += time.monotonic() - started
            if state.step % settings.save_every == 0 or last:
                self._save(file)
            self._report(file, on_progress)
            stopped = self._stopped()
        if not state.history or state.history[-1][0] != state.step:
            state.history.append((state.step, _mean(state.losses), None))
        weights = state.best[1] if state.best else detector_state(self.model.model)
        return FineTuned(
            self.start.with_detector(self._checkpoint(weights)),
            state.step,
            tuple(state.history),
            stopped,
        )

    def _stopped(self) -> str | None:
        if self.state.step >= self.settings.steps:
            return "steps"
        if self.state.bad >= self.settings.patience:
            return "patience"
        late = self.state.seconds > 60 * self.settings.minutes
        return "minutes" if self.processes.any(late, self.model.device) else None

    def _report(self, file: Path | None, on_progress: Callable[[TrainingProgress], None]) -> None:
        state, steps = self.state, self.settings.steps
        progress = TrainingProgress(
            step=state.step,
            steps=steps,
            loss=_mean(state.losses),
            validation_dice=state.history[-1][2] if state.history else None,
            eta_s=state.seconds / state.step * (steps - state.step),
        )
        ended: BaseException | None = None
        if self.processes.first:
            try:
                on_progress(progress)
            except BaseException as error:  # noqa: BLE001 - raised below, once all know
                ended = error
        if self.processes.any(ended is not None, self.model.device):
            self._save(file)
            raise ended or MedSAM3Error("the first process of the group ended the training run")

    # -- one step ---------------------------------------------------------------------------

    def _one_step(self) -> float:
        """Learn from the step's images; the loss over all of them."""
        settings, device = self.settings, self.model.device
        embeddings: list[ImageEmbedding] = []
        drawn: list[tuple[int, DrawnPrompt]] = []
        for _, slot in self.processes.mine(range(settings.images_per_step)):
            rng = np.random.default_rng([settings.seed, self.state.step, slot])
            pool = self.images
            if self.replay and rng.random() < settings.replay_share:
                pool = self.replay
            image = pool[int(rng.integers(len(pool)))]
            # There are many images to replay, and each is seen a few times: no views of them.
            views = 0 if pool is self.replay else settings.views
            view, embedding = self.data.view(image, int(rng.integers(views + 1)))
            labels = self.data.labels(image, view)
            drawn.append((len(embeddings), draw_prompt(labels, self.data.mask_size, rng)))
            embeddings.append(embedding)
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate(self.state.step)
        self.optimiser.zero_grad(set_to_none=True)
        counts = self._counts([one for _, one in drawn])
        everybodys = self.processes.sum(counts.clone())
        loss = torch.zeros((), device=device)
        if drawn:
            wanted = [n for n, (_, one) in enumerate(drawn) if one.wants_masks]
            rows = torch.tensor(wanted, dtype=torch.long, device=device)
            with devices.autocast(device, self.model.dtype):
                output = detect(
                    self.model.model,
                    self.data.features(embeddings),
                    self.data.prompts(drawn),
                    rows,
                )
            targets = [_to(one.target, device) for _, one in drawn]
            terms = detector_loss(output, targets, settings.loss)
            shares = counts.clamp(min=1) / everybodys.clamp(min=1)
            parts = [terms[n] * shares[i] for n, i in _COUNTED_BY.items() if n in terms]
            loss = torch.stack(parts).sum()
            loss.backward()
        self.processes.add_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip_norm)
        if torch.isfinite(norm):
            self.optimiser.step()
        return float(self.processes.sum(loss.detach()))

    def _counts(self, drawn: Sequence[DrawnPrompt]) -> Tensor:
        """What the terms of the loss are averaged over, see `_COUNTED_BY`; float (4,)."""
        queries = int(self.model.config.detr_decoder_config.num_queries)
        masked = [one for one in drawn if one.wants_masks]
        counts = (
            sum(len(one.target.boxes) for one in drawn),
            len(drawn),
            sum(min(len(one.target.boxes), queries) for one in masked),
            len(masked),
        )
        return torch.tensor(counts, dtype=torch.float32, device=self.model.device)

    # -- when to stop -----------------------------------------------------------------------

    def _validate(self) -> None:
        """Remember the best weights: what they learned, less what they forgot.

        Where there is something to forget, weights on the way back to the start are tried too.
        """
        start, tuned = detector_state(self.start.model), detector_state(self.model.model)
        learned = self._dice(self.model, self.spared)
        candidates = [(learned - self._forgotten(self.model), tuned)]
        if self.spared_replay:
            between = {key: start[key].lerp(tuned[key], _WAY) for key in tuned}
            model = self.start.with_detector(self._checkpoint(between))
            score = self._dice(model, self.spared) - self._forgotten(model)
            candidates.append((score, between))
        score, weights = max(candidates, key=lambda candidate: candidate[0])
        state = self.state
        state.history.append((state.step, _mean(state.losses), learned))
        if state.best is None or score > state.best[0]:
            state.best, state.bad = (score, weights), 0
        else:
            state.bad += 1

    def _forgotten(self, model: "MedSAM3") -> float:
        """By how much the Dice on what is replayed has fallen, at least 0."""
        if not self.spared_replay:
            return 0.0
        if self.known_before is None:
            self.known_before = self._dice(self.start, self.spared_replay)
        return max(0.0, self.known_before - self._dice(model, self.spared_replay))

    def _dice(self, model: "MedSAM3", images: Sequence[TrainingImage]) -> float:
        """Mean over phrases of the mean Dice by text."""
        scores: list[tuple[str, float]] = []
        for _, image in self.processes.mine(images):
            truth = self.data.truth(image)
            _, embedding = self.data.view(image, 0)
            found = model.detect_all(embedding, self.data.text(tuple(truth)))
            scores += [
                (detections.phrase, dice(detections.concept_mask()[0], mask))
                for detections, mask in zip(found, truth.values(), strict=True)
            ]
        by_phrase: dict[str, list[float]] = {}
        everybodys = (score for part in self.processes.gather(scores) for score in part)
        for phrase, value in sorted(everybodys):
            by_phrase.setdefault(phrase, []).append(value)
        return _mean([_mean(values) for values in by_phrase.values()])

    # -- state ------------------------------------------------------------------------------

    def _save(self, file: Path | None) -> None:
        if file is not None and self.processes.first:
            weights = detector_state(self.model.model)
            save_state(file, self._identity(), self.state, weights, self.optimiser.state_dict())

    def _resume(self, file: Path | None) -> None:
        if file is None:
            return
        found = load_state(file, self._identity())
        # All have read it before the first one writes the next.
        self.processes.any(False, self.model.device)
        if found is None:
            return
        self.state, detector, optimiser = found
        own = self.model.model.state_dict()
        for key, value in detector.items():
            own[key].copy_(value)
        self.optimiser.load_state_dict(dict(optimiser))

    def _identity(self) -> str:
        """The same for the same start, data and settings."""
        keys = [[one.key for one in images] for images in (self.images, self.replay)]
        text = repr((self.start.encoder_hash, self.start.detector_hash, self.settings, keys))
        return hashlib.sha256(text.encode()).hexdigest()

    def _checkpoint(self, state: Mapping[str, Tensor]) -> DetectorCheckpoint:
        hashed = hashes.of_state(state).detector
        return DetectorCheckpoint(state, self.start.encoder_hash, hashed, self.base, self.name)


_OBJECTS, _PROMPTS, _MASKS, _MASKED_PROMPTS = range(4)
_COUNTED_BY = {
    "classification": _OBJECTS,
    "box_l1": _OBJECTS,
    "giou": _OBJECTS,
    "presence": _PROMPTS,
    "mask_focal": _MASKS,
    "mask_dice": _MASKS,
    "semantic_focal": _MASKED_PROMPTS,
    "semantic_dice": _MASKED_PROMPTS,
}
"""What each term of `losses.detector_loss` is a mean over: processes hold different numbers."""


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _to(target: PromptTarget, device: torch.device) -> PromptTarget:
    return PromptTarget(
        target.boxes.to(device), target.masks.to(device), target.semantic.to(device)
    )
