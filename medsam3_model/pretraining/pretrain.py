"""Pre-training, which makes the bundled weights: `python -m medsam3_model.pretraining.pretrain`.

Everything that is drawn (views, looks, prompts) follows from the seed and the step; with more than
one worker (`shared_training`) the order of the updates differs between runs, with one worker a run
repeats exactly. A run that was stopped goes on from its last checkpoint.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from medsam3_model.checkpoints.bundle import write_bundle
from medsam3_model.checkpoints.presets import PRESETS
from medsam3_model.checkpoints.tokenizer import build_tokenizer
from medsam3_model.detector import answer_prompts, feature_levels, vision_hidden
from medsam3_model.pretraining.data import SourceImage, load_sources
from medsam3_model.pretraining.initialisation import POSITIONS, initialise, resize_positions
from medsam3_model.pretraining.phrases import all_phrases
from medsam3_model.pretraining.shared_training import (
    SharedTraining,
    copy_of,
    prepare,
    run_parser,
)
from medsam3_model.pretraining.validation import (
    Validation,
    encode_prompts,
    load_validation,
    normalise,
)
from medsam3_model.pretraining.views import Mixture
from medsam3_model.training.losses import LossWeights, detector_loss
from medsam3_model.training.prompts import DrawnPrompt, pretraining_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Sam3Model


@dataclass(frozen=True)
class Phase:
    """Steps at one resolution; the learning rate runs linearly between two values."""

    input_size: int
    steps: int
    warm_up: int
    learning_rate: tuple[float, float]

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        start, end = self.learning_rate
        rate = start + (end - start) * step / max(self.steps - 1, 1)
        return rate * min(1.0, (step + 1) / max(self.warm_up, 1))


@dataclass(frozen=True)
class PretrainConfig:
    """The settings of a run, from a TOML file; see `pretrain.toml` for what each value means."""

    preset: str
    images_per_step: int
    workers: int
    weight_decay: float
    clip_norm: float
    loudness: float
    average: float
    phantoms_per_kind: int
    validate_every: int
    shares: dict[str, float]
    loss: LossWeights
    phases: tuple[Phase, ...]


def read_config(path: Path) -> PretrainConfig:
    """Read a TOML file like `pretrain.toml`. Raises TypeError for a missing or unknown value."""
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    phases = tuple(
        Phase(**{**phase, "learning_rate": tuple(phase["learning_rate"])})
        for phase in values.pop("phases")
    )
    return PretrainConfig(**values | {"phases": phases, "loss": LossWeights(**values["loss"])})


class Pretraining(SharedTraining):
    """The state of a run: master weights, optimiser, averaged weights, position."""

    def __init__(
        self,
        config: PretrainConfig,
        sources: dict[str, list[SourceImage]],
        validation: Validation,
        seed: int,
        out: Path,
    ) -> None:
        super().__init__(
            out,
            workers=config.workers,
            validate_every=config.validate_every,
            decay=config.average,
        )
        self.config, self.validation = config, validation
        self.seed = seed
        self.mixture = Mixture(sources, config.shares)
        self.tokenizer = build_tokenizer(all_phrases())
        self.phase = 0
        torch.manual_seed(seed)
        self._enter_phase(None, None)
        initialise(self.model)
        self.average = copy_of(self.model)
        self._resume()

    def _enter_phase(self, state: dict[str, Tensor] | None, moments: dict[str, Any] | None) -> None:
        """Build model and optimiser for the current phase, with earlier weights and moments."""
        from transformers import Sam3Model

        phase = self.config.phases[self.phase]
        self.model_config = PRESETS[self.config.preset](phase.input_size)
        self.model = Sam3Model(self.model_config).train()
        tokens = round(self.model.state_dict()[POSITIONS].shape[1] ** 0.5)
        groups = parameter_groups(self.model, self.config.weight_decay)
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
        if state is not None and moments is not None:
            if state[POSITIONS].shape[1] != tokens**2:  # their moments have another shape
                decayed, plain = _parameter_names(self.model)
                moments["state"].pop((decayed + plain).index(POSITIONS), None)
            self.model.load_state_dict(resize_positions(state, tokens))
            self.optimiser.load_state_dict(moments)
        # Forks write to these very tensors; each has an optimiser of its own.
        self.model.share_memory()

    def run(self) -> None:
        """Train to the end of the last phase, then write the bundle."""
        while True:
            self.take_steps(self.config.phases[self.phase].steps)
            if self.phase + 1 == len(self.config.phases):
                break
            self._next_phase()
        self.log({"validation": self.validate()})
        info = write_bundle(
            self.out / "bundle", self.config.preset, self.model_config, self.average, self.tokenizer
        )
        self.log({"version": info.version})

    def one_step(self) -> dict[str, float]:
        """Update the shared weights once; the terms of the loss."""
        phase = self.config.phases[self.phase]
        rng = np.random.default_rng([self.seed, self.phase, self.step])
        pixels, prompts = self._draw(phase, rng)
        return detector_step(
            self.model,
            self.tokenizer,
            self.optimiser,
            vision_hidden(self.model, pixels),
            prompts,
            rate=phase.rate(self.step),
            weights=self.config.loss,
            loudness_weight=self.config.loudness,
            clip_norm=self.config.clip_norm,
        )

    def _draw(
        self, phase: Phase, rng: np.random.Generator
    ) -> tuple[Tensor, list[tuple[int, DrawnPrompt]]]:
        """Normalised pixels (B, 3, S, S) and (image, prompt) pairs."""
        pictures, prompts = [], []
        for number in range(self.config.images_per_step):
            view = self.mixture.view(phase.input_size, rng)
            pictures.append(view.pixels)
            cells = phase.input_size // 3
            drawn = pretraining_prompts(
                view.layers, view.sample.family, cells, rng, asked=self.mixture.asked
            )
            prompts += [(number, prompt) for prompt in drawn]
        return normalise(torch.stack(pictures)), prompts

    def _next_phase(self) -> None:
        weights, moments = copy_of(self.model), self.optimiser.state_dict()
        self.phase, self.step = self.phase + 1, 0
        self._enter_phase(weights, moments)
        tokens = round(self.model.state_dict()[POSITIONS].shape[1] ** 0.5)
        self.average = resize_positions(self.average, tokens)

    def validate(self) -> dict[str, dict[str, float]]:
        """Figures of the averaged weights; see `Validation.score`."""
        from transformers import Sam3Model

        averaged = Sam3Model(self.model_config).eval()
        averaged.load_state_dict(self.average)
        return self.validation.score(averaged, self.tokenizer)

    def weights(self) -> dict[str, Tensor]:
        """The model's state dict, without copies."""
        return dict(self.model.state_dict())

    def place(self) -> dict[str, object]:
        """Phase and step."""
        return {"phase": self.phase, "step": self.step}

    def state(self) -> dict[str, Any]:
        """Phase, weights and moments."""
        return {
            "phase": self.phase,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def _resume(self) -> None:
        state = self.saved()
        if state is not None:
            self.phase = state["phase"]
            self._enter_phase(state["model"], state["optimiser"])


def detector_step(
    model: "Sam3Model",
    tokenizer: "PreTrainedTokenizerFast",
    optimiser: torch.optim.Optimizer,
    hidden: Tensor,
    prompts: Sequence[tuple[int, DrawnPrompt]],
    *,
    rate: float,
    weights: LossWeights,
    loudness_weight: float,
    clip_norm: float,
) -> dict[str, float]:
    """Update what is trained of a model once; the terms of the loss, its gradient's norm, the rate.

    Args:
        model: in training.
        tokenizer: of the phrases.
        optimiser: of the parameters that are trained.
        hidden: (B, patches, C), the vision transformer's output for B images.
        prompts: (image, prompt) pairs.
        rate: the learning rate.
        weights: of the loss's terms.
        loudness_weight: of `loudness`.
        clip_norm: longest gradient, over all parameters.
    """
    for group in optimiser.param_groups:
        group["lr"] = rate
    losses = prompts_loss(
        model, tokenizer, hidden, prompts, weights=weights, loudness_weight=loudness_weight
    )
    optimiser.zero_grad()
    losses["total"].backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    if torch.isfinite(norm):
        optimiser.step()
    terms = {name: float(value.detach()) for name, value in losses.items()}
    return {**terms, "norm": float(norm), "rate": rate}


def prompts_loss(
    model: "Sam3Model",
    tokenizer: "PreTrainedTokenizerFast",
    hidden: Tensor,
    prompts: Sequence[tuple[int, DrawnPrompt]],
    *,
    weights: LossWeights,
    loudness_weight: float,
) -> dict[str, Tensor]:
    """The terms of the loss with gradients, and their sum, `total`; see `detector_step`."""
    levels = feature_levels(model, hidden)
    asked = [(image, prompt.phrase, prompt.box) for image, prompt in prompts]
    masked = [number for number, (_, prompt) in enumerate(prompts) if prompt.wants_masks]
    output = answer_prompts(
        model, levels, encode_prompts(model, tokenizer, asked), torch.tensor(masked).long()
    )
    losses = detector_loss(output, [prompt.target for _, prompt in prompts], weights)
    losses["loudness"] = loudness_weight * loudness(levels)
    losses["total"] = losses["total"] + losses["loudness"]
    return losses


def loudness(levels: Sequence[Tensor]) -> Tensor:
    """How far the vision features' root mean square exceeds 1, squared and summed over levels.

    Nothing after the ViT normalises them, and the group norms behind hide their size from the loss:
    without this they grow until the prompts' share of the sum can no longer be seen.
    """
    sizes = torch.stack([level.float().square().mean().sqrt() for level in levels])
    return (sizes - 1).clamp(min=0).square().sum()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What is trained of a model, as AdamW reads it; see `_parameter_names`."""
    named = dict(model.named_parameters())
    decayed, plain = _parameter_names(model)
    return [
        {"params": [named[name] for name in decayed], "weight_decay": weight_decay},
        {"params": [named[name] for name in plain], "weight_decay": 0.0},
    ]


def _parameter_names(model: nn.Module) -> tuple[list[str], list[str]]:
    """Trained parameters with weight decay, and those without: biases, norms and embeddings."""
    decayed: list[str] = []
    plain: list[str] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_table = "embed" in name and name.endswith(("weight", "embeddings"))
        (plain if parameter.ndim < 2 or is_table else decayed).append(name)
    return decayed, plain


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the bundled model from nothing, on the CPU, and write its bundle."""
    parser = run_parser("medsam3_model.pretraining.pretrain", main.__doc__)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("pretrain.toml"))
    options = parser.parse_args(arguments)
    folders = prepare(options)
    config = read_config(options.config)
    sources = load_sources(folders, config.phantoms_per_kind)
    validation = load_validation(folders)
    Pretraining(config, sources, validation, options.seed, options.out).run()


if __name__ == "__main__":
    main()
