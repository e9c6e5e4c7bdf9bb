"""Pre-training of the whole bundled model: `python -m medsam3_model.pretraining.whole`.

Encoder, detector and tracker of the bundled weights learn further, together: each step asks for
names and boxes (`pretrain`) and for objects with rounds of clicks (`click_rounds`) on the same
views, so the vision transformer learns what both need. Beside that it may imitate what a larger
encoder sees in the same images (`teacher`). What embeddings keep changes with it.
Processes share the weights (`shared_training`), and a stopped run goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsam3_model.checkpoints.bundle import write_bundle
from medsam3_model.checkpoints.presets import bundled_weights, tiny_config
from medsam3_model.checkpoints.tokenizer import load_tokenizer
from medsam3_model.checkpoints.tracker_keys import in_bundle
from medsam3_model.detector import vision_hidden
from medsam3_model.errors import CheckpointError
from medsam3_model.predictor import MedSAM3
from medsam3_model.pretraining.click_rounds import ClickRounds, objects_in_view
from medsam3_model.pretraining.clicks import CLICKED, score_tracker
from medsam3_model.pretraining.data import SourceImage
from medsam3_model.pretraining.derived import all_sources
from medsam3_model.pretraining.detector import DetectorTraining, add_settings, settings_of
from medsam3_model.pretraining.initialisation import deepened
from medsam3_model.pretraining.pretrain import parameter_groups, prompts_loss
from medsam3_model.pretraining.shared_training import (
    RunLength,
    SharedTraining,
    copy_of,
    part_of,
    prepare,
    run_parser,
)
from medsam3_model.pretraining.teacher import TeacherFeatures
from medsam3_model.pretraining.validation import Validation, load_validation, normalise
from medsam3_model.pretraining.views import DrawnView, Mixture
from medsam3_model.training.prompts import SOUGHT, DrawnPrompt, pretraining_prompts

# How often an image comes from each source.
_SHARES = {
    "kvasir_seg": 0.08, "kvasir_seg_more": 0.26, "healthy_colon": 0.13, "isic2017": 0.06,
    "dsb2018_nuclei": 0.03, "dsb2018_nuclei_more": 0.06, "bus_uclm": 0.1, "normal_breast": 0.1,
    "idrid": 0.03, "painted_cups": 0.03, "hvsmr": 0.03, "sunnybrook_ed": 0.05,
    "sunnybrook_es": 0.04, "template": 0.04, "breast_ultrasound": 0.02, "dermoscopy": 0.01,
    "fundus": 0.03, "chest_xray": 0.05, "cardiac_mri": 0.03, "microscopy": 0.02, "shapes": 0.03,
}  # fmt: skip


@dataclass(frozen=True)
class WholeTraining(DetectorTraining):
    """Settings of a run; see `DetectorTraining`.

    clicks: weight of the tracker's loss beside the detector's. layers: of the vision transformer;
    more than the base has begin by adding nothing; None: as many as the base has. teacher: file of
    `pretraining.teacher`; None: nothing is imitated. imitation: weight of the mean squared error.
    """

    learning_rate: float = 4e-4
    weight_decay: float = 0.05
    clicks: float = 30.0
    layers: int | None = None
    teacher: Path | None = None
    imitation: float = 50.0


@dataclass(frozen=True)
class _Drawn:
    """What a step asks: of B views (image, prompt) pairs; the image of each of N objects and their
    masks (N, h, w) in 0..1.
    """

    views: list[DrawnView]
    prompts: list[tuple[int, DrawnPrompt]]
    owners: Tensor
    objects: Tensor

    def pixels(self) -> Tensor:
        """(B, 3, S, S), as the model reads them."""
        return normalise(torch.stack([view.pixels for view in self.views]))


class WholePretraining(SharedTraining):
    """The state of a run: master weights, optimiser, averaged weights, position."""

    def __init__(
        self,
        config: WholeTraining,
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
        if self.base.tracker is None:
            raise CheckpointError(f"{config.base} has no tracker to train; begin with another.")
        self.tracker = self.base.tracker
        layers = config.layers or len(self.base.model.vision_encoder.backbone.layers)
        self.model = deepened(self.base.model, tiny_config(layers=layers))
        self.parts = nn.ModuleDict(
            {"detector": self.model, "tracker": self.tracker.model, "neck": self.tracker.neck}
        )
        self.teacher = TeacherFeatures.read(config.teacher) if config.teacher else None
        if self.teacher is not None:
            if not any(self.teacher.knows(sample) for of in sources.values() for sample in of):
                raise CheckpointError(
                    f"{config.teacher} knows none of the training images. Write it from the same "
                    "folders with `python -m medsam3_model.pretraining.teacher`."
                )
            vision: Any = self.model.config.vision_config
            width = vision.backbone_config.hidden_size
            self.parts["imitation"] = nn.Linear(width, self.teacher.width)
        self.parts.requires_grad_(True).train()
        self.tokenizer = load_tokenizer(bundled_weights("tiny"))
        groups = parameter_groups(self.parts, config.weight_decay)
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
        self.average = copy_of(self.parts)
        self.mixture = Mixture(sources, _SHARES)
        self.side = self.base.image_size
        self.cells = self.side // 3  # four mask cells for each token of 12 pixels
        self.rounds = ClickRounds(self.tracker, self.side, self.cells)
        self.length = RunLength(config.steps, config.minutes)
        if (state := self.saved()) is not None:
            self.parts.load_state_dict(state["parts"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.length.go_on(state["seconds"])
        self.parts.share_memory()

    def run(self) -> None:
        """Train to the end; the bundle is written with each validation."""
        self.take_steps(self.config.steps)
        self.log({"validation": self.validate()})

    def one_step(self) -> dict[str, float]:
        """Update the shared weights once; the terms of the loss, and the Dice after each round."""
        share = self.length.share(self.step)
        if share >= 1:
            self.end()
        config = self.config
        rate = config.rate(share, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng([self.seed, self.step])
        drawn = self._draw(rng)
        hidden = self._hidden(drawn)
        losses = prompts_loss(
            self.model,
            self.tokenizer,
            hidden,
            drawn.prompts,
            weights=config.loss,
            loudness_weight=config.loudness,
        )
        scores: dict[str, float] = {}
        if len(drawn.objects):
            clicks, scores = self.rounds.loss(hidden, drawn.owners, drawn.objects, rng)
            losses["clicks"] = config.clicks * clicks
            losses["total"] = losses["total"] + losses["clicks"]
        if (error := self._imitation(hidden, drawn.views)) is not None:
            losses["imitation"] = config.imitation * error
            losses["total"] = losses["total"] + losses["imitation"]
        self.optimiser.zero_grad()
        losses["total"].backward()
        norm = nn.utils.clip_grad_norm_(self.parts.parameters(), config.clip_norm)
        if torch.isfinite(norm):
            self.optimiser.step()
        terms = {name: float(value.detach()) for name, value in losses.items()}
        return {**terms, **scores, "norm": float(norm), "rate": rate}

    def _hidden(self, drawn: _Drawn) -> Tensor:
        """The vision transformer's output (B, patches, C); painted views teach it nothing."""
        hidden = vision_hidden(self.model, drawn.pixels())
        real = torch.tensor([not view.sample.painted for view in drawn.views])
        return torch.where(real[:, None, None], hidden, hidden.detach())

    def _imitation(self, hidden: Tensor, views: list[DrawnView]) -> Tensor | None:
        """The mean squared error of what it says of the teacher's features, where there are any."""
        if self.teacher is None:
            return None
        grid = round(hidden.shape[1] ** 0.5)
        known = {
            number: tokens
            for number, view in enumerate(views)
            if (tokens := self.teacher.tokens(view, grid)) is not None
        }
        if not known:
            return None
        said = self.parts["imitation"](hidden[list(known)])
        return F.mse_loss(said, torch.stack(list(known.values())))

    def _draw(self, rng: np.random.Generator) -> _Drawn:
        views: list[DrawnView] = []
        prompts: list[tuple[int, DrawnPrompt]] = []
        owners: list[int] = []
        objects: list[Tensor] = []
        for number in range(self.config.images_per_step):
            view = self.mixture.view(self.side, rng)
            views.append(view)
            made = pretraining_prompts(
                view.layers,
                view.sample.family,
                self.cells,
                rng,
                asked=self.mixture.asked,
                sought=self.config.sought if view.healthy else SOUGHT,
            )
            prompts += [(number, prompt) for prompt in made]
            found = objects_in_view(view.layers, rng)
            objects += found
            owners += [number] * len(found)
        return _Drawn(
            views,
            prompts,
            torch.tensor(owners).long(),
            torch.stack(objects) if objects else torch.zeros(0, self.cells, self.cells),
        )

    def validate(self) -> Mapping[str, object]:
        """Write the averaged weights; their `Validation.score`, and their Dice after each click."""
        parts = {name: part_of(self.average, name) for name in self.parts}
        info = write_bundle(
            self.out / "bundle",
            "tiny",
            self.model.config,
            parts["detector"],
            self.tokenizer,
            in_bundle(parts["tracker"], parts["neck"]),
        )
        written = MedSAM3.from_pretrained(self.out / "bundle", device="cpu")
        clicked = {name: of for name, of in self.validation.samples.items() if name in CLICKED}
        return {
            "version": info.version,
            "clicks": score_tracker(written, clicked),
            **self.validation.score(written.model, self.tokenizer),
        }

    def weights(self) -> dict[str, Tensor]:
        """The weights of all parts, without copies."""
        return dict(self.parts.state_dict())

    def state(self) -> dict[str, Any]:
        """Weights, moments and time."""
        return {
            "parts": self.parts.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "seconds": self.length.seconds,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train encoder, detector and tracker of the bundled model further, on the CPU."""
    parser = run_parser("medsam3_model.pretraining.whole", main.__doc__)
    add_settings(parser, WholeTraining())
    parser.add_argument(
        "--layers", type=int, help="of the vision transformer; default as the base has"
    )
    parser.add_argument(
        "--teacher", type=Path, help="features to imitate, a file of pretraining.teacher"
    )
    options = parser.parse_args(arguments)
    folders = prepare(options)
    config = replace(
        WholeTraining(), layers=options.layers, teacher=options.teacher, **settings_of(options)
    )
    sources = all_sources(folders, config.phantoms_per_kind, options.seed)
    validation = load_validation(folders)
    WholePretraining(config, sources, validation, options.seed, options.out).run()


if __name__ == "__main__":
    main()
