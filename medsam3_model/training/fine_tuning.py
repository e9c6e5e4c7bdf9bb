"""Fine-tuning of the detector on corrected images; both encoders stay frozen, as in MedSAM-3.

The neck learns with the detector, which alone reads the vision transformer through it: there is
decided what a frozen encoder's features are worth for a new concept. Since the encoders never
change, a step costs the detector and its neck alone (see `training.data`); an adapter of the last
blocks, where one is asked for, costs these as well (`adapting`). Every choice (images, views,
prompts) follows from seed and step, so a run that was killed goes on from its last saved state and
ends with the weights that it would have had; and several processes (`processes.join`) that share a
step's images learn what one would.
"""

import copy
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from medsam3_model import device as devices
from medsam3_model.checkpoints import hashes
from medsam3_model.checkpoints.detectors import detector_state
from medsam3_model.checkpoints.encoder_adapter import (
    AdaptedLinear,
    adapted_backbone,
    adapter_part,
    untrained_adapter,
)
from medsam3_model.detector import answer_prompts, feature_levels_for_masks
from medsam3_model.errors import DatasetError, MedSAM3Error
from medsam3_model.evaluation.metrics import dice
from medsam3_model.training.adapting import last_blocks
from medsam3_model.training.calibration import Calibration
from medsam3_model.training.data import TrainingData, TrainingImage, spare
from medsam3_model.training.interpolation import between
from medsam3_model.training.losses import detector_loss
from medsam3_model.training.making_way import between_layers
from medsam3_model.training.processes import joined
from medsam3_model.training.prompts import DrawnPrompt, correction_prompt
from medsam3_model.training.settings import TrainingSettings
from medsam3_model.training.state import TrainingState, load_state, save_state
from medsam3_model.types import ImageEmbedding

if TYPE_CHECKING:
    from medsam3_model.embeddings.embedding_cache import EmbeddingCache
    from medsam3_model.predictor import MedSAM3

_WAY = 0.7  # from the weights at the start to the tuned ones, see `fine_tune`
_KNOWN = 0.5  # Dice from which on the start knows what it is taught, see `_Run.unjudged`
_FORGIVEN = 0.02  # Dice on what was known before that may be lost without counting
# Adam walks as far with rounding errors as with any gradient; below this it does not.
_LEAST_GRADIENT = 1e-6
_MEAN_OVER = 50  # steps that the reported loss is averaged over

# After these is a step interrupted.
_LAYERS = (torch.nn.Linear, torch.nn.Conv2d)

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
        stopped: why: "patience" (nothing better came), "minutes" or "steps" (a ceiling), or
            "unjudged" (too few images to spare any, so a fixed number of steps).
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
    make_way: Callable[[], object] = lambda: None,
    make_way_within_step: Callable[[], object] | None = None,
) -> FineTuned:
    """Train a copy of a model's detector.

    A sixth of the groups (24 images at most) is spared, see `data.spare`, and with twelve images or
    more the run takes `unjudged_steps`, and goes on as long as its averaged weights get better on
    them. The weights with the best Dice by text on the spared ones, less what was lost beyond .02
    on replayed phrases that are not taught now, in the mean over three validations, are returned:
    the tuned ones, or ones 70 % of the way from the start to them, which keep more of what was
    known (Wortsman et al. 2022, arXiv 2109.01903). With fewer images the latest ones are returned,
    or 70 % of the way to them where the start answers with a Dice of .5 and more already.
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
        on_progress: called after every step by the first process; what it raises ends the run
            after its state is saved.
        make_way: called by the first process before every step and every image that is judged; it
            waits while the device is to be somebody else's.
        make_way_within_step: the same between the layers of a step, for a moment only.

    Raises:
        DatasetError: no images.
        MedSAM3Error: another process of the group ended the run.
    """
    if not images:
        raise DatasetError("there are no images to train on: annotate some, or name another folder")
    devices.keep_freed_memory()
    run = _Run(model, images, replay, cache, settings or TrainingSettings(), name, base)
    run.wait, run.wait_within_step = make_way, make_way_within_step
    run.resume(state)
    return run.train(state, on_progress)


@dataclass
class _Batch:
    """This process's share of a step: images, and a prompt about each with its position."""

    embeddings: list[ImageEmbedding] = field(default_factory=list)
    prompts: list[tuple[int, DrawnPrompt]] = field(default_factory=list)


class _Run:
    """One training run: model, data, optimiser, and where it stands."""

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
        self.origin = detector_state(model.model)
        if settings.adapter and not adapter_part(self.origin):
            self.origin |= untrained_adapter(model.model)
        self.model = self._version(copy.deepcopy(self.origin))
        # A neck of its own, in full precision: what learns must not round its steps.
        vision = self.model.model.vision_encoder
        vision.neck = copy.deepcopy(vision.neck).float()
        if settings.adapter:
            frozen = model.unadapted.model.vision_encoder.backbone
            vision.backbone = adapted_backbone(frozen, adapter_part(self.origin), learns=True)
        self.images, self.spared = spare(images)
        self.replay, spared_replay = spare(replay)
        self.data = TrainingData(model, (*images, *replay), cache, adapts=settings.adapter)
        # What annotators teach now is what they mean by it, whatever it looked like elsewhere.
        self.taught = frozenset(name for image in images for name in self.data.phrases(image))
        self.spared_replay = [
            image for image in spared_replay if not self.taught.issuperset(self.data.phrases(image))
        ]
        self.parameters = [
            parameter.requires_grad_(True)
            for key, parameter in self.model.model.named_parameters()
            if hashes.is_tuned(key)
        ]
        plain = [parameter for parameter in self.parameters if parameter.ndim < 2]
        decayed = [parameter for parameter in self.parameters if parameter.ndim >= 2]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            eps=_LEAST_GRADIENT,
            fused=True,
        )
        self.width = int(model.config.detr_decoder_config.hidden_size)
        self.steps = settings.steps
        if not self.spared:
            self.steps = min(settings.steps, settings.unjudged_steps)
        self.current = {
            key: tensor
            for key, tensor in self.model.model.state_dict().items()
            if hashes.is_tuned(key)
        }
        self.state = TrainingState(average=self._on_device(self.origin))
        self.known_before: float | None = None
        self.wait: Callable[[], object] = lambda: None
        self.wait_within_step: Callable[[], object] | None = None
        self.waited = 0.0

    def train(
        self, file: Path | None, on_progress: Callable[[TrainingProgress], None]
    ) -> FineTuned:
        """Take steps until one of the reasons to stop holds."""
        settings, state = self.settings, self.state
        while (stopped := self.stopped()) is None:
            started, self.waited = time.monotonic(), 0.0
            self.make_way()
            for group in self.optimiser.param_groups:
                group["lr"] = settings.rate(state.step, self.width)
            self.optimiser.zero_grad(set_to_none=True)

            batch = self.draw_batch()
            with self.interruptible():
                loss = self.loss(batch)
                if batch.prompts:
                    loss.backward()
            self.processes.add_gradients(self.parameters)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip_norm)
            if torch.isfinite(norm):  # a step that overflowed in mixed precision is left out
                self.optimiser.step()
            self.add_to_average()

            mean_loss = float(self.processes.sum(loss.detach()))
            state.losses = [*state.losses[1 - _MEAN_OVER :], mean_loss]
            state.step += 1
            last = state.step == self.steps
            if self.spared and (state.step % settings.validate_every == 0 or last):
                # Learning first unsettles what was known, and a few images would take its first
                # step for the best one.
                self.validate(counts=last or state.step >= settings.unjudged_steps)
            state.seconds += time.monotonic() - started - self.waited
            if state.step % settings.save_every == 0 or last:
                self.save(file)
            self.report(file, on_progress)
        if self.spared and state.best is None:  # the ceiling of minutes came before any counted
            self.validate(counts=True)
            self.report(file, on_progress)
        return self.outcome(stopped)

    def make_way(self) -> None:
        """Wait where somebody else needs the device; the time does not count as training."""
        if self.processes.first:
            self._wait(self.wait)

    def make_way_within_step(self) -> None:
        """As `make_way`, for a moment."""
        if self.wait_within_step is not None and self.processes.first:
            self._wait(self.wait_within_step)

    def interruptible(self) -> AbstractContextManager[None]:
        """In it, way is made between any two layers."""
        if self.wait_within_step is None or not self.processes.first:
            return nullcontext()
        layers = [
            module
            for name, module in self.model.model.named_modules()
            if isinstance(module, AdaptedLinear)
            or (isinstance(module, _LAYERS) and hashes.is_tuned(f"{name}.weight"))
        ]
        return between_layers(layers, self.make_way_within_step)

    def _wait(self, wait: Callable[[], object]) -> None:
        started = time.monotonic()
        wait()
        self.waited += time.monotonic() - started

    def stopped(self) -> str | None:
        """Why the run is over, None while it goes on."""
        if self.state.bad >= self.settings.patience:
            return "patience"
        if self.state.step >= self.steps:
            return "steps" if self.steps == self.settings.steps else "unjudged"
        late = self.state.seconds > 60 * self.settings.minutes
        return "minutes" if self.processes.any(late, self.model.device) else None

    def outcome(self, stopped: str) -> FineTuned:
        """The best weights that a validation has seen; `unjudged` ones where nothing is spared."""
        state = self.state
        if not state.history or state.history[-1][0] != state.step:
            state.history.append((state.step, _mean(state.losses), None))
        weights = state.best[1] if state.best else self.unjudged()
        calibration = Calibration(self.start, self.spared, self.data, self.processes, self.make_way)
        thresholds = calibration.thresholds(self._version(weights))
        second_looks = calibration.second_looks(self._version(weights, thresholds))
        model = self._version(weights, thresholds, second_looks)
        return FineTuned(model, state.step, tuple(state.history), stopped)

    def unjudged(self) -> dict[str, Tensor]:
        """The latest average, or 70 % of the way to it where the start knew the concepts already.

        A handful of images moves a known concept to and fro, and part of the way keeps what they
        gain; a new one is not learned by halves. On two sets that were known (Dice .55 and .75) a
        part was as good with ten images, on two that were not (0 and .29) it lost .2 to .3.
        """
        tuned = self.averaged()
        if self._dice(self.start, self.images) < _KNOWN:
            return tuned
        return between(self.origin, tuned, _WAY)

    def report(self, file: Path | None, on_progress: Callable[[TrainingProgress], None]) -> None:
        """Tell of the step; where that raises, all processes save and end together."""
        state, steps = self.state, self.steps
        progress = TrainingProgress(
            step=state.step,
            steps=steps,
            loss=_mean(state.losses),
            validation_dice=state.history[-1][2] if state.history else None,
            eta_s=min(
                state.seconds / state.step * (steps - state.step),
                max(0.0, 60 * self.settings.minutes - state.seconds),
            ),
        )
        ended: BaseException | None = None
        if self.processes.first:
            try:
                on_progress(progress)
            except BaseException as error:  # noqa: BLE001 - raised below, once all know
                ended = error
        if self.processes.any(ended is not None, self.model.device):
            self.save(file)
            raise ended or MedSAM3Error("the first process of the group ended the training run")

    # -- one step ---------------------------------------------------------------------------

    def draw_batch(self) -> _Batch:
        """This process's images of the step, and a prompt about each."""
        settings, batch = self.settings, _Batch()
        for _, slot in self.processes.mine(range(settings.images_per_step)):
            self.make_way_within_step()  # a view that is seen for the first time is encoded
            # Seed, step and slot decide alone: whichever process draws it, whenever it was killed.
            rng = np.random.default_rng([settings.seed, self.state.step, slot])
            pool = self.images
            if self.replay and rng.random() < settings.replay_share:
                pool = self.replay
            image = pool[int(rng.integers(len(pool)))]
            # There are many images to replay, and each is seen a few times: no views of them.
            views = 0 if pool is self.replay else settings.views
            view, embedding = self.data.view(image, int(rng.integers(views + 1)))
            labels = self.data.labels(image, view)
            prompt = correction_prompt(labels, self.data.mask_size, rng)
            if rng.random() >= settings.masked_share:
                prompt = replace(prompt, wants_masks=False)
            batch.prompts.append((len(batch.embeddings), prompt))
            batch.embeddings.append(embedding)
        return batch

    def loss(self, batch: _Batch) -> Tensor:
        """The share of the batch in the step's loss, a scalar; shares add up over processes."""
        device, prompts = self.model.device, [prompt for _, prompt in batch.prompts]
        counts = self._counts(prompts)
        everybodys = self.processes.sum(counts.clone())
        if not prompts:
            return torch.zeros((), device=device)
        masked = torch.tensor(
            [position for position, prompt in enumerate(prompts) if prompt.wants_masks],
            dtype=torch.long,
            device=device,
        )
        model, hidden = self.model.model, self.data.hidden(batch.embeddings)
        with devices.autocast(device, self.model.dtype):
            if self.settings.adapter:
                hidden = last_blocks(model, hidden)
            # Each prompt of a step is about an image of its own.
            levels = feature_levels_for_masks(model, hidden, masked)
            output = answer_prompts(model, levels, self.data.prompts(batch.prompts), masked)
        targets = [prompt.target.to(device) for prompt in prompts]
        terms = detector_loss(output, targets, self.settings.loss)
        # Each term is a mean over what this process holds: weighed by how much that is of all.
        shares = counts.clamp(min=1) / everybodys.clamp(min=1)
        parts = [terms[name] * shares[i] for name, i in _COUNTED_BY.items() if name in terms]
        return torch.stack(parts).sum()

    def _counts(self, prompts: Sequence[DrawnPrompt]) -> Tensor:
        """What the terms of the loss are averaged over, see `_COUNTED_BY`; float (4,)."""
        queries = int(self.model.config.detr_decoder_config.num_queries)
        masked = [prompt for prompt in prompts if prompt.wants_masks]
        counts = (
            sum(len(prompt.target.boxes) for prompt in prompts),
            len(prompts),
            sum(min(len(prompt.target.boxes), queries) for prompt in masked),
            len(masked),
        )
        return torch.tensor(counts, dtype=torch.float32, device=self.model.device)

    def add_to_average(self) -> None:
        """Take the weights of this step into the moving average, on the device."""
        add = get_ema_multi_avg_fn(self.settings.kept(self.state.step))
        average = self.state.average
        add(list(average.values()), [self.current[key] for key in average], None)

    def averaged(self) -> dict[str, Tensor]:
        """A copy of the moving average, on the CPU."""
        return {key: tensor.to("cpu", copy=True) for key, tensor in self.state.average.items()}

    def _on_device(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = self.model.device
        return {key: tensor.to(device, copy=True) for key, tensor in state.items()}

    # -- when to stop -----------------------------------------------------------------------

    def validate(self, *, counts: bool) -> None:
        """Remember the best weights, where it `counts`: what they learned, less what they forgot.

        Where there is something to forget, weights on the way back to the start are tried too.
        """
        state, tuned = self.state, self.averaged()
        candidates = [tuned]
        if self.spared_replay:
            candidates.append(between(self.origin, tuned, _WAY))
        if not state.history or state.history[-1][0] != state.step:
            models = [self._version(weights) for weights in candidates]
            learned = [self._dice(model, self.spared) for model in models]
            forgotten = [self._forgotten(model) for model in models]
            state.history.append((state.step, _mean(state.losses), learned[0]))
            state.scores.append([a - b for a, b in zip(learned, forgotten, strict=True)])
        if not counts:
            return
        means = [
            _mean(column)
            for column in zip(*state.scores[-self.settings.judged_over :], strict=True)
        ]
        score = max(means)
        if state.best is None or score > state.best[0]:
            state.best, state.bad = (score, candidates[means.index(score)]), 0
        else:
            state.bad += 1

    def _forgotten(self, model: "MedSAM3") -> float:
        """By how much more than is forgiven the Dice on what is replayed and not taught fell."""
        if not self.spared_replay:
            return 0.0
        if self.known_before is None:
            self.known_before = self._dice(self.start, self.spared_replay, self.taught)
        fell = self.known_before - self._dice(model, self.spared_replay, self.taught)
        return max(0.0, fell - _FORGIVEN)

    def _dice(
        self,
        model: "MedSAM3",
        images: Sequence[TrainingImage],
        left_out: frozenset[str] = frozenset(),
    ) -> float:
        """Mean over phrases, but for some, of the mean Dice by text."""
        scores: list[tuple[str, float]] = []
        for _, image in self.processes.mine(images):
            self.make_way()
            truth = self.data.truth(image)
            truth = {phrase: mask for phrase, mask in truth.items() if phrase not in left_out}
            embedding = self.data.seen_by(model, image)
            answers = model.detect_all(embedding, self.data.text(tuple(truth)))
            scores += [
                (detections.phrase, dice(detections.concept_mask()[0], mask))
                for detections, mask in zip(answers, truth.values(), strict=True)
            ]
        # Sorted, so that the sums round alike in every process and at every restart.
        by_phrase: dict[str, list[float]] = {}
        everybodys = (score for part in self.processes.gather(scores) for score in part)
        for phrase, value in sorted(everybodys):
            by_phrase.setdefault(phrase, []).append(value)
        return _mean([_mean(values) for values in by_phrase.values()])

    # -- state ------------------------------------------------------------------------------

    def save(self, file: Path | None) -> None:
        """Write the state, in the first process, where there is a file for it."""
        if file is not None and self.processes.first:
            weights = detector_state(self.model.model)
            save_state(file, self._identity(), self.state, weights, self.optimiser.state_dict())

    def resume(self, file: Path | None) -> None:
        """Go on from a saved state, where there is one of this run."""
        if file is None:
            return
        saved = load_state(file, self._identity())
        # All have read it before the first one writes the next.
        self.processes.any(False, self.model.device)
        if saved is None:
            return
        self.state, detector, optimiser = saved
        self.state.average = self._on_device(self.state.average)
        parameters = self.model.model.state_dict()
        for key, value in detector.items():
            parameters[key].copy_(value)
        self.optimiser.load_state_dict(dict(optimiser))

    def _identity(self) -> str:
        """The same for the same start, data and settings."""
        keys = [[image.key for image in images] for images in (self.images, self.replay)]
        learns = sorted(self.current)
        text = repr(
            (self.start.encoder_hash, self.start.detector_hash, self.settings, keys, learns)
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def _version(
        self,
        state: Mapping[str, Tensor],
        thresholds: Mapping[str, float] | None = None,
        second_looks: Mapping[str, float] | None = None,
    ) -> "MedSAM3":
        """The model with these weights of the detector; thresholds and looks, or those before."""
        start = self.start
        return start.with_weights(
            state,
            base=self.base,
            name=self.name,
            thresholds=start.thresholds if thresholds is None else thresholds,
            second_looks=start.second_looks if second_looks is None else second_looks,
        )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
