"""Pre-training of the bundled model's tracker: `python -m medsam3_model.pretraining.clicks`.

The encoder of the bundled weights stays frozen; the tracker (its neck, prompt encoder and mask
decoder) learns to answer clicks, boxes, strokes, its own earlier masks and the mask of a
neighbouring slice. A step asks for several objects of several images and then corrects the answers
for some rounds, as an annotator would; every round counts (SAM, Kirillov et al. 2023, appendix A;
SAM 2, Ravi et al. 2024, appendix D). Processes share the weights (`shared_training`), and a stopped
run goes on. A run begins with nothing, or with the bundled tracker (`--go-on`).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from medsam3_model.boxes import tight_box
from medsam3_model.checkpoints import tracker_keys
from medsam3_model.checkpoints.bundle import write_bundle
from medsam3_model.checkpoints.presets import bundled_weights, tiny_tracker_config
from medsam3_model.checkpoints.pretrained import tracker_sizes
from medsam3_model.checkpoints.tokenizer import load_tokenizer
from medsam3_model.click_answers import (
    STROKE_LOGIT,
    STROKE_POINTS,
    ObjectPrompt,
    answer_object,
    spread_points,
)
from medsam3_model.detector import vision_hidden
from medsam3_model.evaluation.clicks import Click, next_click
from medsam3_model.evaluation.metrics import dice
from medsam3_model.predictor import MedSAM3
from medsam3_model.pretraining.data import SourceImage, load_sources, read_folder
from medsam3_model.pretraining.shared_training import (
    SharedTraining,
    copy_of,
    prepare,
    run_parser,
)
from medsam3_model.pretraining.validation import normalise
from medsam3_model.tracker import Tracker, TrackerTraits, empty_tracker
from medsam3_model.training.augmentation import (
    disturb_box,
    random_look,
    random_view,
    sample_image,
    sample_labels,
)
from medsam3_model.training.losses import dice_loss

# The fewest cells of the mask that an object has to fill to be asked for.
_SMALLEST = 16
# Standard deviation of the positions' random frequencies: higher ones tell nearer places apart.
_FREQUENCIES = 1.5
# A mask's entropy is divided by so many times the object's cells, and so many cells more.
_SURROUNDINGS, _LEAST_CELLS = 3.0, 30.0
# Heads of the decoder's attention, and the gain of its first weights between clicks and image.
_HEADS, _LIKENESS = 4, 1.5
# Views that a process keeps, and how many it begins with.
_KEPT_VIEWS, _FIRST_VIEWS = 1200, 200
# Share of the steps that begin with a neighbouring slice's masks, and of these with endings.
_NEIGHBOURS, _ENDINGS = 0.2, 0.5
# How often an image comes from each source: in the steps without corrections, and after them.
_SHARES = {
    "isic2017": (0.04, 0.14), "kvasir_seg": (0.01, 0.04), "kvasir_seg_more": (0.06, 0.22),
    "bus_uclm": (0.04, 0.17), "dsb2018_nuclei": (0.02, 0.02), "dsb2018_nuclei_more": (0.05, 0.04),
    "idrid": (0.01, 0.02), "hvsmr": (0.12, 0.06), "sunnybrook_ed": (0.08, 0.04),
    "sunnybrook_es": (0.02, 0.02), "template": (0.08, 0.04), "breast_ultrasound": (0.02, 0.04),
    "dermoscopy": (0.02, 0.02), "fundus": (0.02, 0.01), "chest_xray": (0.1, 0.03),
    "cardiac_mri": (0.08, 0.02), "microscopy": (0.05, 0.01), "shapes": (0.25, 0.06),
}  # fmt: skip


@dataclass(frozen=True)
class ClickTraining:
    """Settings of a run.

    single_steps: so many steps come first without corrections, on pictures that hold several
    objects: only these teach that a click's place decides.
    go_on: begin with the bundled tracker's weights.
    """

    images_per_step: int = 6
    objects_per_image: int = 4
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


@dataclass
class Prompt:
    """What N objects were asked with so far, in pixels of the model's square image.

    points: (N, P, 2), labels: (N, P), boxes: (N, 4), masks: (N, 1, h, w) logits; None: not given.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None

    @property
    def multimask(self) -> bool:
        """A single click may mean a part or the whole: three masks compete."""
        return (
            self.boxes is None
            and self.masks is None
            and self.points is not None
            and self.points.shape[1] == 1
        )

    def ask(self, tracker: Tracker, levels: list[Tensor]) -> dict[str, Tensor]:
        """The tracker's tensors, with gradients."""
        masks = self.masks
        if self.points is not None and self.labels is not None:
            masks = tracker.painted(masks, self.points, self.labels)
        return tracker.decode(
            levels,
            points=self.points,
            point_labels=self.labels,
            boxes=self.boxes,
            masks=masks,
            multimask=self.multimask,
        )

    def add(self, clicks: Sequence[Click], pixel: float) -> None:
        """One more click on each object; `pixel` is the size of a mask's cell in pixels."""
        where = torch.tensor([[[click.x * pixel, click.y * pixel]] for click in clicks])
        label = torch.tensor([[int(click.inside)] for click in clicks])
        self.points = where if self.points is None else torch.cat([self.points, where], 1)
        self.labels = label if self.labels is None else torch.cat([self.labels, label], 1)


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
        """Train to the end, then write the bundle: the bundled weights with this tracker."""
        self.take_steps(self.config.steps)
        self.log({"validation": self.validate()})
        self.write(self.out / "bundle")

    def write(self, folder: Path) -> None:
        """Write the bundled weights with the averaged tracker beside them."""
        model, neck = (
            {
                key.removeprefix(part): value
                for key, value in self.average.items()
                if key.startswith(part)
            }
            for part in ("model.", "neck.")
        )
        base, weights = self.base, bundled_weights("tiny")
        info = write_bundle(
            folder,
            "tiny",
            base.config,
            base.model.state_dict(),
            load_tokenizer(weights),
            tracker_keys.in_bundle(model, neck),
        )
        self.log({"version": info.version})

    def one_step(self) -> dict[str, float]:
        """Update the shared weights once; the loss, and the mean Dice after each round."""
        rate = self.config.rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng([self.seed, self.step])
        tokens, owners, truth = self._draw(rng)
        levels = [level[owners] for level in self.tracker.levels(tokens)]
        prompt = self._first_prompt(truth, rng)
        rounds = int(rng.integers(2, 6)) if self.step >= self.config.single_steps else 1
        present = torch.ones(len(truth), dtype=torch.bool)
        if rounds > 1 and rng.random() < _NEIGHBOURS:
            prompt, present = neighbour_prompt(truth, owners, rng)
            rounds = rounds if bool(present.all()) else 1
        total = torch.zeros(())
        terms: dict[str, float] = {}
        for turn in range(rounds):
            answer = prompt.ask(self.tracker, levels)
            loss, best, score = answer_loss(answer, truth, present)
            total = total + loss / rounds
            terms[f"dice{turn}"] = score
            if turn + 1 < rounds:
                self._correct(prompt, best.detach(), truth, rng)
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
            sample = source[int(rng.integers(len(source)))]
            view = random_view(rng, sample.family, sample.aspect)
            labels = sample_labels(np.stack(list(sample.layers.values())), view, 2 * self.cells)
            if not (objects := self._objects(labels, rng)):
                continue
            looked = random_look(sample_image(sample.image, view, self.side), rng)
            tokens = vision_hidden(self.base.model, normalise(looked)[None])
            views.append((tokens, torch.stack(objects)))
        return views

    def _objects(self, labels: Tensor, rng: np.random.Generator) -> list[Tensor]:
        """Masks of some of the instances in view, at the decoder's resolution."""
        found = [
            (layer, int(number))
            for layer in range(len(labels))
            for number in labels[layer].unique()
            if number > 0
        ]
        rng.shuffle(found)
        masks = []
        for layer, number in found[: 3 * self.config.objects_per_image]:
            mask = F.avg_pool2d((labels[layer] == number).float()[None, None], 2)[0, 0]
            if float((mask > 0.5).sum()) >= _SMALLEST:
                masks.append(mask)
            if len(masks) == self.config.objects_per_image:
                break
        return masks

    def _first_prompt(self, truth: Tensor, rng: np.random.Generator) -> Prompt:
        """A click, a disturbed box, both, or a stroke: the same for all objects of a step."""
        prompt, kind = Prompt(), rng.random()
        objects = (truth > 0.5).numpy()
        pixel = self.side / self.cells
        if kind >= 0.6:
            error = float(rng.choice([0.0, 0.04, 0.08, 0.12]))
            unit = [tight_box(mask) / self.cells for mask in objects]
            boxes = [disturb_box(box, error, rng) for box in unit]
            prompt.boxes = torch.from_numpy(np.stack(boxes)) * self.side
        if kind < 0.6 or kind >= 0.93:
            middle = rng.random() < 0.6
            clicks = [next_click(mask, None, None if middle else rng) for mask in objects]
            prompt.add([click for click in clicks if click is not None], pixel)
        if 0.5 <= kind < 0.6:
            strokes = np.stack([stroke(mask, rng) for mask in objects])
            prompt.points, prompt.labels = stroke_points(strokes, pixel)
            prompt.masks = torch.from_numpy(
                np.where(strokes, STROKE_LOGIT, 0.0).astype(np.float32)
            )[:, None]
        return prompt

    def _correct(
        self, prompt: Prompt, answer: Tensor, truth: Tensor, rng: np.random.Generator
    ) -> None:
        """Add a click where each answer (N, h, w logits) is wrong, and the answers themselves."""
        middle = rng.random() < 0.6
        clicks: list[Click] = []
        for logits, mask in zip(answer, truth, strict=True):
            right = (mask > 0.5).numpy()
            click = next_click(right, (logits > 0).numpy(), None if middle else rng)
            # A perfect answer is clicked on once more.
            clicks.append(click or next_click(right) or Click(0.5, 0.5, False))
        prompt.add(clicks, self.side / self.cells)
        prompt.masks = answer[:, None].clamp(-32, 32) if rng.random() < 0.9 else None

    def validate(self) -> dict[str, list[float]]:
        """By source, mean Dice after each click with the averaged weights."""
        current = copy_of(self.parts)
        self.parts.load_state_dict(self.average)
        self.parts.eval()
        figures = {
            source: score_clicks(self.base, self.tracker, samples)
            for source, samples in self.validation.items()
        }
        self.parts.train()
        self.parts.load_state_dict(current)
        return figures

    def weights(self) -> dict[str, Tensor]:
        """Tracker and neck, without copies."""
        return self.parts.state_dict()

    def state(self) -> dict[str, Any]:
        """Weights and moments."""
        return {"parts": self.parts.state_dict(), "optimiser": self.optimiser.state_dict()}


def answer_loss(
    answer: dict[str, Tensor], truth: Tensor, present: Tensor
) -> tuple[Tensor, Tensor, float]:
    """The loss of N answers, the best mask's logits (N, h, w) of each, and their mean Dice.

    Where several masks compete only the best is taught, but each has to know how good it is.
    Objects that are not there, `present` (N,), are only to be denied.
    """
    masks = answer["masks"]
    count, rivals = masks.shape[:2]
    aims = truth[:, None].expand_as(masks)
    flat, flat_aims = masks.flatten(0, 1), aims.flatten(0, 1)
    # Pixels count by the object's size, not by the image's: a mean over the image would let small
    # objects vanish, and where a mask has vanished Dice has no gradient either.
    entropy = F.binary_cross_entropy_with_logits(flat, flat_aims, reduction="none").sum((1, 2))
    entropy = entropy / (_SURROUNDINGS * flat_aims.sum((1, 2)) + _LEAST_CELLS)
    losses = (entropy + dice_loss(flat, flat_aims)).view(count, rivals)
    with torch.no_grad():
        found, right = masks > 0, aims > 0.5
        shared = (found & right).sum((2, 3)).float()
        either = (found | right).sum((2, 3)).float()
        iou = shared / either.clamp(min=1)
        best = losses.argmin(1)
    rows = torch.arange(count)
    of_iou = F.mse_loss(answer["iou"][present], iou[present])
    of_presence = F.binary_cross_entropy_with_logits(
        answer["object_logits"], present.float()[:, None]
    )
    loss = losses[rows, best][present].mean() + of_iou + 0.1 * of_presence
    kept = iou[rows, best][present]
    return loss, masks[rows, best], float((2 * kept / (1 + kept)).mean())


def neighbour_prompt(
    truth: Tensor, owners: Tensor, rng: np.random.Generator
) -> tuple[Prompt, Tensor]:
    """The masks (N, h, w) as they may look a slice away, as mask prompts; which are there (N,).

    Of some steps every third mask is another image's: what it shows has ended before this slice.
    """
    masks = truth
    present = torch.ones(len(truth), dtype=torch.bool)
    if rng.random() < _ENDINGS:
        other = torch.from_numpy(rng.permutation(len(truth)))
        both = torch.minimum(truth[other], truth).sum((1, 2))
        apart = (owners[other] != owners) & (both < 0.1 * truth[other].sum((1, 2)))
        ended = apart & (torch.from_numpy(rng.random(len(truth))) < 1 / 3)
        if not bool(ended.all()):
            masks, present = torch.where(ended[:, None, None], truth[other], truth), ~ended
    warped = torch.stack([neighbour(mask, rng) for mask in masks])
    steep = float(rng.choice([4.0, 10.0, 20.0]))
    return Prompt(masks=((warped - 0.5) * 2 * steep)[:, None]), present


def neighbour(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """A soft mask (h, w) bent, scaled, turned and moved by random amounts of the object's size."""
    rows, columns = (mask > 0.5).nonzero(as_tuple=True)
    if not len(rows):
        return mask
    height, width = mask.shape
    middle = torch.stack([columns.float().mean(), rows.float().mean()])
    size = float(max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) + 1)
    amount = float(rng.choice([0.3, 1.0, 1.6]))
    angle, scale = rng.normal(0, 0.08 * amount), np.exp(rng.normal(0, 0.1 * amount, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = torch.from_numpy((turn * scale).astype(np.float32))
    shift = torch.from_numpy(rng.normal(0, 0.04 * amount * size, 2).astype(np.float32))
    bends = torch.from_numpy(rng.normal(0, 0.05 * amount * size, (1, 2, 5, 5)).astype(np.float32))
    bend = F.interpolate(bends, (height, width), mode="bicubic", align_corners=True)[0]
    grid = torch.stack(
        torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    ).float()
    from_middle = (grid - middle[:, None, None]).flatten(1)
    source = (linear @ from_middle).view_as(grid) + (middle + shift)[:, None, None] + bend
    span = torch.tensor([width, height])[:, None, None]
    where = ((source + 0.5) / span * 2 - 1).permute(1, 2, 0)[None]
    return F.grid_sample(mask[None, None], where, align_corners=False)[0, 0]


def stroke(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """A line between two pixels of an object, one to three pixels wide, where it is inside."""
    rows, columns = np.nonzero(mask)
    (a, b) = rng.integers(len(rows), size=2)
    steps = np.linspace(0, 1, 2 * max(mask.shape))
    drawn = np.zeros_like(mask)
    width = int(rng.integers(0, 2))
    bend = rng.normal(0, 3, 2)
    for share in steps:
        sway = np.sin(np.pi * share)
        row = round(rows[a] + share * (rows[b] - rows[a]) + sway * bend[0])
        column = round(columns[a] + share * (columns[b] - columns[a]) + sway * bend[1])
        top, left = max(row - width, 0), max(column - width, 0)
        drawn[top : row + width + 1, left : column + width + 1] = True
    drawn &= mask
    drawn[rows[a], columns[a]] = True
    return drawn


def stroke_points(strokes: NDArray[np.bool_], pixel: float) -> tuple[Tensor, Tensor]:
    """Points spread over each of N strokes (N, h, w), and their labels, all inside."""
    points = [spread_points(drawn, STROKE_POINTS) for drawn in strokes]
    where = torch.from_numpy(np.stack(points)) * pixel
    return where, torch.ones(where.shape[:2], dtype=torch.int64)


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
        if source in ("isic2017", "kvasir_seg", "bus_uclm")
    }
    TrackerPretraining(config, sources, validation, options.seed, options.out).run()


if __name__ == "__main__":
    main()
