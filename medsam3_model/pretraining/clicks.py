"""Pre-training of the bundled model's tracker: `python -m medsam3_model.pretraining.clicks`.

The encoder of the bundled weights stays frozen; the tracker (its neck, prompt encoder and mask
decoder) learns to answer clicks, boxes, strokes, its own earlier masks and the mask of a
neighbouring slice (`click_rounds`). Processes share the weights (`shared_training`), and a stopped
run goes on. A run begins with nothing, or with the bundled tracker (`--go-on`).
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medsam3_model.checkpoints import tracker_keys
from medsam3_model.checkpoints.bundle import write_bundle
from medsam3_model.checkpoints.presets import bundled_weights, tiny_tracker_config
from medsam3_model.checkpoints.pretrained import tracker_sizes
from medsam3_model.checkpoints.tokenizer import load_tokenizer
from medsam3_model.click_answers import (
    ObjectPrompt,
    answer_object,
)
from medsam3_model.detector import vision_hidden
from medsam3_model.errors import CheckpointError
from medsam3_model.evaluation.clicks import Click, next_click
from medsam3_model.evaluation.metrics import dice
from medsam3_model.predictor import MedSAM3
from medsam3_model.pretraining.click_rounds import ClickRounds, objects_in_view
from medsam3_model.pretraining.data import SourceImage, load_sources, read_folder
from medsam3_model.pretraining.shared_training import (
    SharedTraining,
    copy_of,
    part_of,
    prepare,
    run_parser,
)
from medsam3_model.pretraining.validation import normalise
from medsam3_model.pretraining.views import draw_view
from medsam3_model.tracker import Tracker, TrackerTraits, empty_tracker

# Standard deviation of the positions' random frequencies: higher ones tell nearer places apart.
_FREQUENCIES = 1.5
# Heads of the decoder's attention, and the gain of its first weights between clicks and image.
_HEADS, _LIKENESS = 4, 1.5
# Views that a process keeps, and how many it begins with.
_KEPT_VIEWS, _FIRST_VIEWS = 1200, 200
# How often an image comes from each source: in the steps without corrections, and after them.
_SHARES = {
    "isic2017": (0.04, 0.14), "kvasir_seg": (0.01, 0.04), "kvasir_seg_more": (0.06, 0.22),
    "bus_uclm": (0.04, 0.17), "dsb2018_nuclei": (0.02, 0.02), "dsb2018_nuclei_more": (0.05, 0.04),
    "idrid": (0.01, 0.02), "hvsmr": (0.12, 0.06), "sunnybrook_ed": (0.08, 0.04),
    "sunnybrook_es": (0.02, 0.02), "template": (0.08, 0.04), "breast_ultrasound": (0.02, 0.04),
    "dermoscopy": (0.02, 0.02), "fundus": (0.02, 0.01), "chest_xray": (0.1, 0.03),
    "cardiac_mri": (0.08, 0.02), "microscopy": (0.05, 0.01), "shapes": (0.25, 0.06),
}  # fmt: skip

# Sources whose validation images are clicked on.
CLICKED = ("isic2017", "kvasir_seg", "bus_uclm")


@dataclass(frozen=True)
class ClickTraining:
    """Settings of a run.

    single_steps: so many steps come first without corrections, on pictures that hold several
    objects: only these teach that a click's place decides.
    go_on: begin with the bundled tracker's weights.
    """

    images_per_step: int = 6
    steps: int = 14000
    warm_up: int = 200
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    average: float = 0.998
    phantoms_per_kind: int = 200
    validate_every: int = 1000
    workers: int = 2
    single_steps: int = 500
    go_on: bool = False

    def rate(self, step: int) -> float:
        """The learning rate of a step: a cosine to a hundredth."""
        share = min(step / self.steps, 1.0)
        fall = 0.01 + 0.99 * (1 + np.cos(np.pi * share)) / 2
        return float(self.learning_rate * fall * min(1.0, (step + 1) / self.warm_up))


class TrackerPretraining(SharedTraining):
    """The state of a run: master weights, optimiser, averaged weights, position."""

    def __init__(
        self,
        config: ClickTraining,
        sources: dict[str, list[SourceImage]],
        validation: dict[str, list[SourceImage]],
        seed: int,
        out: Path,
    ) -> None:
        super().__init__(
            out,
            workers=config.workers,
            validate_every=config.validate_every,
            decay=config.average,
        )
        self.config, self.sources, self.validation = config, sources, validation
        self.seed = seed
        self.base = MedSAM3.from_pretrained("tiny", device="cpu")
        torch.manual_seed(seed)
        self.tracker = empty_tracker(
            tracker_sizes(tiny_tracker_config(), self.base.config),
            self.base.config.vision_config,
            partial(vision_hidden, self.base.model),
            self.base.encoder_hash,
            TrackerTraits(**tiny_tracker_config()["traits"]),
        )
        self.parts = nn.ModuleDict({"model": self.tracker.model, "neck": self.tracker.neck})
        initialise(self.parts)
        self.tracker.neck.load_state_dict(self.base.model.vision_encoder.neck.state_dict())
        if config.go_on and (bundled := self.base.tracker) is not None:
            self.tracker.model.load_state_dict(bundled.model.state_dict())
            self.tracker.neck.load_state_dict(bundled.neck.state_dict())
        self.parts.requires_grad_(True).train()
        self.average = copy_of(self.parts)
        self.names = [name for name in _SHARES if sources.get(name)]
        self.side = self.base.image_size
        self.cells = self.side // 3  # four mask cells for each token of 12 pixels
        self.rounds = ClickRounds(self.tracker, self.side, self.cells)
        self.drawn_at = 0
        self.views: deque[tuple[Tensor, Tensor]] = deque(maxlen=_KEPT_VIEWS)
        self.optimiser = torch.optim.AdamW(
            self.parts.parameters(),
            lr=0.0,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
            fused=True,
        )
        if (state := self.saved()) is not None:
            self.parts.load_state_dict(state["parts"])
            self.optimiser.load_state_dict(state["optimiser"])
        self.parts.share_memory()

    def run(self) -> None:
        """Train to the end; the bundle is written with each validation."""
        self.take_steps(self.config.steps)
        self.log({"validation": self.validate()})

    def one_step(self) -> dict[str, float]:
        """Update the shared weights once; the loss, and the mean Dice after each round."""
        rate = self.config.rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng([self.seed, self.step])
        tokens, owners, truth = self._draw(rng)
        corrects = self.step >= self.config.single_steps
        total, terms = self.rounds.loss(tokens, owners, truth, rng, corrects=corrects)
        self.optimiser.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.parts.parameters(), self.config.clip_norm)
        if torch.isfinite(norm):
            self.optimiser.step()
        return {**terms, "total": float(total.detach()), "norm": float(norm), "rate": rate}

    def _draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, T, C), the image of each of N objects, their masks (N, h, w) in 0..1.

        Encoding is a third of a step, so views are kept and drawn from a few times.
        """
        if self.step >= self.config.single_steps > self.drawn_at:
            self.views.clear()
        self.drawn_at = self.step
        fresh = 2 if len(self.views) >= self.config.images_per_step else _FIRST_VIEWS
        self.views.extend(self._new_views(fresh, rng))
        drawn = [
            self.views[int(n)]
            for n in rng.integers(len(self.views), size=self.config.images_per_step)
        ]
        owners = [number for number, (_, masks) in enumerate(drawn) for _ in masks]
        tokens = torch.cat([tokens for tokens, _ in drawn])
        return tokens, torch.tensor(owners), torch.cat([masks for _, masks in drawn])

    @torch.no_grad()
    def _new_views(self, count: int, rng: np.random.Generator) -> list[tuple[Tensor, Tensor]]:
        """Tokens (1, T, C) and masks (N, h, w) of newly drawn views."""
        views: list[tuple[Tensor, Tensor]] = []
        while len(views) < count:
            single = self.step < self.config.single_steps
            shares = np.array([_SHARES[name][0 if single else 1] for name in self.names])
            source = self.sources[self.names[rng.choice(len(shares), p=shares / shares.sum())]]
            view = draw_view(source, self.side, rng)
            if not (objects := objects_in_view(view.layers, rng)):
                continue
            tokens = vision_hidden(self.base.model, normalise(view.pixels)[None])
            views.append((tokens, torch.stack(objects)))
        return views

    def validate(self) -> Mapping[str, object]:
        """Write the bundled weights with the averaged tracker; by source, Dice after each click."""
        info = write_bundle(
            self.out / "bundle",
            "tiny",
            self.base.config,
            self.base.model.state_dict(),
            load_tokenizer(bundled_weights("tiny")),
            tracker_keys.in_bundle(part_of(self.average, "model"), part_of(self.average, "neck")),
        )
        written = MedSAM3.from_pretrained(self.out / "bundle", device="cpu")
        return {"version": info.version, **score_tracker(written, self.validation)}

    def weights(self) -> dict[str, Tensor]:
        """Tracker and neck, without copies."""
        return self.parts.state_dict()

    def state(self) -> dict[str, Any]:
        """Weights and moments."""
        return {"parts": self.parts.state_dict(), "optimiser": self.optimiser.state_dict()}


@torch.no_grad()
def initialise(parts: nn.Module) -> None:
    """torch's own initial values; transformers' are so small that hardly anything is learned."""
    for module in parts.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        else:
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, std=0.02)
    # One matrix of random frequencies, stored twice.
    frequencies = [
        value for key, value in parts.state_dict().items() if key.endswith(".positional_embedding")
    ]
    nn.init.normal_(frequencies[0], std=_FREQUENCIES)
    for other in frequencies[1:]:
        other.copy_(frequencies[0])
    # Attention between clicks and image begins as likeness of places. With keys and queries drawn
    # apart it begins blind, and thousands of steps pass before a click's place matters at all.
    for name, module in parts.named_modules():
        if name.endswith(
            ("cross_attn_token_to_image", "cross_attn_image_to_token", "final_attn_token_to_image")
        ):
            query, key = module.get_submodule("q_proj"), module.get_submodule("k_proj")
            for head in query.weight.chunk(_HEADS):
                nn.init.orthogonal_(head, gain=_LIKENESS)
            key.weight.copy_(query.weight)
            query.bias.zero_()
            key.bias.zero_()


def score_tracker(
    model: MedSAM3, samples: Mapping[str, Sequence[SourceImage]]
) -> dict[str, list[float]]:
    """By source, mean Dice after each click. Raises CheckpointError without a tracker."""
    if model.tracker is None:
        raise CheckpointError(f"{model.version} has no tracker to score.")
    return {source: score_clicks(model, model.tracker, of) for source, of in samples.items()}


@torch.no_grad()
def score_clicks(
    base: MedSAM3, tracker: Tracker, samples: Sequence[SourceImage], clicks: int = 5
) -> list[float]:
    """Mean Dice after each click, of the largest object of each image, at the image's size."""
    scores: list[list[float]] = []
    for sample in samples:
        numbers = np.concatenate([layer[layer > 0] for layer in sample.layers.values()])
        if not len(numbers):
            continue
        layer = max(sample.layers.values(), key=lambda layer: int((layer > 0).sum()))
        truth = layer == np.bincount(layer[layer > 0]).argmax()
        image = base.encode_image(sample.image)
        mask: NDArray[np.bool_] | None = None
        made: list[Click] = []
        row: list[float] = []
        for _ in range(clicks):
            click = next_click(truth, mask)
            if click is not None:
                made.append(click)
                mask = answer_object(tracker, image, _drawn(made, truth.shape)).union()
            row.append(dice(truth if mask is None else mask, truth))
        scores.append(row)
    return [round(float(value), 4) for value in np.mean(scores, axis=0)]


def _drawn(clicks: Sequence[Click], size: tuple[int, int]) -> ObjectPrompt:
    """Clicks alone as a prompt on an image of `size`, (height, width)."""
    points = np.array([[click.x, click.y] for click in clicks], np.float32)
    labels = [int(click.inside) for click in clicks]
    return ObjectPrompt(points, labels, None, np.zeros((0, *size), np.bool_))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the bundled model's tracker on the CPU."""
    parser = run_parser("medsam3_model.pretraining.clicks", main.__doc__)
    parser.add_argument("--steps", type=int, default=ClickTraining.steps)
    parser.add_argument("--workers", type=int, default=ClickTraining.workers)
    parser.add_argument("--rate", type=float, default=ClickTraining.learning_rate)
    parser.add_argument("--go-on", action="store_true", help="begin with the bundled tracker")
    options = parser.parse_args(arguments)
    folders = prepare(options)
    config = ClickTraining(
        steps=options.steps,
        workers=options.workers,
        learning_rate=options.rate,
        single_steps=0 if options.go_on else ClickTraining.single_steps,
        go_on=options.go_on,
    )
    sources = load_sources(folders, config.phantoms_per_kind)
    validation = {
        source: list(read_folder(source, folder, "val"))[:24]
        for source, folder in folders.items()
        if source in CLICKED
    }
    TrackerPretraining(config, sources, validation, options.seed, options.out).run()


if __name__ == "__main__":
    main()
