"""Pre-training of the bundled model's detector: `python -m medsam3_model.pretraining.detector`.

The vision transformer of the bundled weights stays frozen, so the tracker stays valid; text
encoder, neck and detector learn names, boxes and, from images in which a concept was looked for in
vain, absence. Views are encoded once and kept for a while. Processes share the weights
(`shared_training`), and a stopped run goes on.
"""

from argparse import ArgumentParser, Namespace
from collections import deque
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsam3_model.checkpoints.bundle import write_bundle
from medsam3_model.checkpoints.presets import bundled_weights
from medsam3_model.checkpoints.tokenizer import load_tokenizer
from medsam3_model.checkpoints.tracker_keys import in_bundle
from medsam3_model.detector import vision_hidden
from medsam3_model.predictor import MedSAM3
from medsam3_model.pretraining.data import SourceImage
from medsam3_model.pretraining.derived import all_sources
from medsam3_model.pretraining.pretrain import detector_step, parameter_groups
from medsam3_model.pretraining.shared_training import (
    RunLength,
    SharedTraining,
    copy_of,
    prepare,
    run_parser,
)
from medsam3_model.pretraining.validation import Validation, load_validation, normalise
from medsam3_model.pretraining.views import Mixture
from medsam3_model.training.losses import LossWeights
from medsam3_model.training.prompts import SOUGHT, DrawnPrompt, pretraining_prompts

_BACKBONE = "vision_encoder.backbone."
# Views that a process keeps, how many it begins with, and how many are new in each step.
_KEPT_VIEWS, _FIRST_VIEWS, _FRESH = 2500, 300, 2
# How often an image comes from each source.
_SHARES = {
    "kvasir_seg": 0.05, "kvasir_seg_more": 0.2, "healthy_colon": 0.14, "isic2017": 0.06,
    "dsb2018_nuclei": 0.04, "dsb2018_nuclei_more": 0.06, "bus_uclm": 0.1, "normal_breast": 0.12,
    "idrid": 0.03, "painted_cups": 0.03, "hvsmr": 0.04, "sunnybrook_ed": 0.06,
    "sunnybrook_es": 0.05, "template": 0.05, "breast_ultrasound": 0.03, "dermoscopy": 0.01,
    "fundus": 0.02, "chest_xray": 0.05, "cardiac_mri": 0.04, "microscopy": 0.02, "shapes": 0.03,
}  # fmt: skip


@dataclass(frozen=True)
class DetectorTraining:
    """Settings of a run.

    steps, minutes: whichever ends first ends the run, and the rate falls with it. sought: where
    nothing of what was looked for is in an image, the share of the absent concepts that are asked
    about and are among these. base: the weights to begin with, whose transformer stays.
    """

    base: str = "tiny"
    images_per_step: int = 5
    steps: int = 20000
    minutes: float = 180.0
    warm_up: int = 200
    learning_rate: float = 6e-4
    weight_decay: float = 0.1
    clip_norm: float = 5.0
    average: float = 0.998
    loudness: float = 2.0
    sought: float = 0.8
    phantoms_per_kind: int = 150
    validate_every: int = 1500
    workers: int = 2
    loss: LossWeights = field(
        default_factory=lambda: LossWeights(
            classification=0.5, presence=6.0, mask_focal=10.0, semantic_dice=20.0
        )
    )

    def rate(self, share: float, step: int) -> float:
        """The learning rate where `share` of the run is over: a cosine to a hundredth."""
        fall = 0.01 + 0.99 * (1 + np.cos(np.pi * min(share, 1.0))) / 2
        return float(self.learning_rate * fall * min(1.0, (step + 1) / self.warm_up))


@dataclass(frozen=True)
class _View:
    """Tokens float16 (1, T, C) of a view, labels int16 (S, S) by concept, the image's family.

    healthy: nothing of what was looked for is in the image.
    """

    tokens: Tensor
    layers: dict[str, Tensor]
    family: str
    healthy: bool


class DetectorPretraining(SharedTraining):
    """The state of a run: master weights, optimiser, averaged weights, position."""

    def __init__(
        self,
        config: DetectorTraining,
        sources: dict[str, list[SourceImage]],
        validation: Validation,
        seed: int,
        out: Path,
    ) -> None:
        super().__init__(
            out, workers=config.workers, validate_every=config.validate_every, decay=config.average
        )
        self.config, self.validation = config, validation
        self.seed = seed
        self.base = MedSAM3.from_pretrained(config.base, device="cpu")
        self.model = self.base.model.train()
        self.tokenizer = load_tokenizer(bundled_weights("tiny"))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(_BACKBONE))
        groups = parameter_groups(self.model, config.weight_decay)
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
        self.average = copy_of(self.model)
        self.mixture = Mixture(sources, _SHARES)
        self.side = self.base.image_size
        self.cells = self.side // 3  # four mask cells for each token of 12 pixels
        self.views: deque[_View] = deque(maxlen=_KEPT_VIEWS)
        self.length = RunLength(config.steps, config.minutes)
        if (state := self.saved()) is not None:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.length.go_on(state["seconds"])
        self.model.share_memory()

    def run(self) -> None:
        """Train to the end, then write the bundle: these weights with the bundled tracker."""
        self.take_steps(self.config.steps)
        self.log({"validation": self.validate()})
        tracker, kept = self.base.tracker, None
        if tracker is not None:
            kept = in_bundle(tracker.model.state_dict(), tracker.neck.state_dict())
        info = write_bundle(
            self.out / "bundle",
            "tiny",
            self.base.config,
            self.average,
            self.tokenizer,
            kept,
        )
        self.log({"version": info.version})

    def one_step(self) -> dict[str, float]:
        """Update the shared weights once; the terms of the loss."""
        share = self.length.share(self.step)
        if share >= 1:
            self.end()
        hidden, prompts = self._draw(np.random.default_rng([self.seed, self.step]))
        return detector_step(
            self.model,
            self.tokenizer,
            self.optimiser,
            hidden,
            prompts,
            rate=self.config.rate(share, self.step),
            weights=self.config.loss,
            loudness_weight=self.config.loudness,
            clip_norm=self.config.clip_norm,
        )

    def _draw(self, rng: np.random.Generator) -> tuple[Tensor, list[tuple[int, DrawnPrompt]]]:
        """Tokens (B, T, C) and (image, prompt) pairs."""
        fresh = _FRESH if self.views else _FIRST_VIEWS
        for _ in range(fresh):
            self.views.append(self._new_view(rng))
        drawn = [
            self.views[int(n)]
            for n in rng.integers(len(self.views), size=self.config.images_per_step)
        ]
        prompts: list[tuple[int, DrawnPrompt]] = []
        for number, view in enumerate(drawn):
            made = pretraining_prompts(
                {concept: layer.long() for concept, layer in view.layers.items()},
                view.family,
                self.cells,
                rng,
                asked=self.mixture.asked,
                sought=self.config.sought if view.healthy else SOUGHT,
            )
            prompts += [(number, prompt) for prompt in made]
        return torch.cat([view.tokens for view in drawn]).float(), prompts

    @torch.no_grad()
    def _new_view(self, rng: np.random.Generator) -> _View:
        view = self.mixture.view(self.side, rng)
        return _View(
            vision_hidden(self.model, normalise(view.pixels)[None]).half(),
            {concept: layer.to(torch.int16) for concept, layer in view.layers.items()},
            view.sample.family,
            view.healthy,
        )

    def validate(self) -> dict[str, dict[str, float]]:
        """Figures of the averaged weights; see `Validation.score`."""
        averaged = deepcopy(self.model).eval()  # the other processes go on with theirs
        averaged.load_state_dict(self.average)
        return self.validation.score(averaged, self.tokenizer)

    def weights(self) -> dict[str, Tensor]:
        """The model's state dict, without copies."""
        return dict(self.model.state_dict())

    def state(self) -> dict[str, Any]:
        """Weights, moments and time."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "seconds": self.length.seconds,
        }


def add_settings(parser: ArgumentParser, defaults: DetectorTraining) -> None:
    """The settings of a run that its command line has."""
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--minutes", type=float, default=defaults.minutes)
    parser.add_argument("--workers", type=int, default=defaults.workers)
    parser.add_argument("--base", default=defaults.base, help="a bundle to begin with")
    parser.add_argument("--rate", type=float, default=defaults.learning_rate)


def settings_of(options: Namespace) -> dict[str, Any]:
    """What of these was chosen, by the names of `DetectorTraining`."""
    return {
        "base": options.base,
        "steps": options.steps,
        "minutes": options.minutes,
        "workers": options.workers,
        "learning_rate": options.rate,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the bundled model's detector on the CPU."""
    parser = run_parser("medsam3_model.pretraining.detector", main.__doc__)
    add_settings(parser, DetectorTraining())
    options = parser.parse_args(arguments)
    folders = prepare(options)
    config = replace(DetectorTraining(), **settings_of(options))
    sources = all_sources(folders, config.phantoms_per_kind, options.seed)
    validation = load_validation(folders)
    DetectorPretraining(config, sources, validation, options.seed, options.out).run()


if __name__ == "__main__":
    main()
