"""What a step asks of the bundled model's tracker: objects, first prompts, rounds of correction.

A step asks for several objects of several images and then corrects the answers for some rounds, as
an annotator would; every round counts (SAM, Kirillov et al. 2023, appendix A; SAM 2, Ravi et al.
2024, appendix D).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsam3_model.boxes import tight_box
from medsam3_model.click_answers import STROKE_LOGIT, STROKE_POINTS, spread_points
from medsam3_model.evaluation.clicks import Click, next_click
from medsam3_model.tracker import Tracker
from medsam3_model.training.augmentation import disturb_box
from medsam3_model.training.losses import dice_loss

# The fewest cells of the mask that an object has to fill to be asked for.
_SMALLEST = 16
# Objects of an image that a step asks for, at most.
_OBJECTS = 4
# A mask's entropy is divided by so many times the object's cells, and so many cells more.
_SURROUNDINGS, _LEAST_CELLS = 3.0, 30.0
# Share of the steps that begin with a neighbouring slice's masks, and of these with endings.
_NEIGHBOURS, _ENDINGS = 0.2, 0.5


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


@dataclass(frozen=True)
class ClickRounds:
    """Steps of a tracker that is trained on images of `side` pixels and masks of `cells` cells."""

    tracker: Tracker
    side: int
    cells: int

    def loss(
        self,
        tokens: Tensor,
        owners: Tensor,
        truth: Tensor,
        rng: np.random.Generator,
        *,
        corrects: bool = True,
    ) -> tuple[Tensor, dict[str, float]]:
        """The mean loss of all rounds, with gradients, and the mean Dice after each.

        Args:
            tokens: (B, T, C), the vision transformer's output for B images.
            owners: int64 (N,), the image of each object.
            truth: (N, h, w), the objects' masks in 0..1.
            rng: draws prompts and their number.
            corrects: two to five rounds, else one.
        """
        levels = [level[owners] for level in self.tracker.levels(tokens)]
        prompt = self._first_prompt(truth, rng)
        rounds = int(rng.integers(2, 6)) if corrects else 1
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
        return total, terms

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


def objects_in_view(layers: Mapping[str, Tensor], rng: np.random.Generator) -> list[Tensor]:
    """Masks (h, w) of some of the instances in labels (2h, 2w) of several concepts."""
    found = [
        (labels, int(number))
        for labels in layers.values()
        for number in labels.unique()
        if number > 0
    ]
    rng.shuffle(found)
    masks = []
    for labels, number in found[: 3 * _OBJECTS]:
        mask = F.avg_pool2d((labels == number).float()[None, None], 2)[0, 0]
        if float((mask > 0.5).sum()) >= _SMALLEST:
            masks.append(mask)
        if len(masks) == _OBJECTS:
            break
    return masks


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
