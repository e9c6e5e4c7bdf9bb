"""Random views of an image and random changes of its look, for training.

Geometry is one affine map, applied to image and labels alike; the look is changed so strongly
(inversion, gamma, colour casts, speckle, blur) that a model cannot rely on a modality's usual
appearance. Everything follows from a numpy generator.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsam3_model.types import Window

# Families whose pictures have an up and a down (and, where flipping would swap left and right
# organs, a left and a right).
_UPRIGHT = frozenset({"chest", "cardiac", "brain", "breast"})
_SIDED = frozenset({"chest", "cardiac"})


@dataclass(frozen=True)
class View:
    """Where the model looks: an affine map from the output square to the image.

    matrix: (2, 3), takes output x, y in −1..1 to image x, y in −1..1 (corners, as `grid_sample`
    has them with align_corners=False). mirrored_outside: what lies beyond the image's edge is its
    reflection instead of black.
    """

    matrix: tuple[tuple[float, float, float], tuple[float, float, float]]
    mirrored_outside: bool = False

    @property
    def pixels_per_pixel(self) -> float:
        """Share of the image's side that one side of the output covers."""
        (a, b, _), (c, d, _) = self.matrix
        return float(np.sqrt(abs(a * d - b * c)))


WHOLE = View(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))


def random_view(rng: np.random.Generator, family: str, aspect: float) -> View:
    """A zoomed, turned, mirrored, slightly stretched view; half of them show the whole image.

    aspect: width over height, so that turning does not shear.
    """
    upright, sided = family in _UPRIGHT, family in _SIDED
    # Below 1 a part of the image fills the view, above 1 there is a margin around it.
    zoom = float(np.exp(rng.normal(0, 0.12)))
    if rng.random() < 0.45:
        zoom = float(np.exp(rng.uniform(np.log(0.35), np.log(1.4))))
    stretch = float(np.exp(rng.normal(0, 0.1)))
    turn = rng.normal(0, np.radians(8)) if upright else rng.normal(0, np.radians(25))
    if not upright and rng.random() < 0.5:
        turn += rng.integers(1, 4) * np.pi / 2
    if upright and rng.random() < 0.05:
        turn = rng.uniform(-np.pi, np.pi)
    flip = -1.0 if not sided and rng.random() < 0.5 else 1.0
    # A part may be anywhere in the image; the whole moves a little, too.
    room = max(1 - zoom, 0.12)
    shift = rng.uniform(-room, room, 2)
    out_x, out_y = zoom * aspect * stretch * flip, zoom / stretch
    cosine, sine = np.cos(turn), np.sin(turn)
    # Turned where pixels are square: x is stretched by the aspect before and pressed back after.
    matrix = (
        (float(cosine * out_x / aspect), float(-sine * out_y / aspect), float(shift[0])),
        (float(sine * out_x), float(cosine * out_y), float(shift[1])),
    )
    return View(matrix, mirrored_outside=rng.random() < 0.5)


def view_of_window(
    window: Window, size: tuple[int, int], rng: np.random.Generator, sided: bool
) -> View:
    """A part of an image of (height, width), turned a little, and mirrored half of the time.

    sided: mirroring it would name left what is right.
    """
    (x0, y0, x1, y1), (height, width) = window, size
    flip = 1.0 if sided or rng.random() < 0.5 else -1.0
    turn = rng.normal(0, np.radians(8))
    cosine, sine, aspect = np.cos(turn), np.sin(turn), width / height
    across, down = flip * (x1 - x0) / width, (y1 - y0) / height
    matrix = (
        (float(cosine * across), float(-sine * down / aspect), float((x0 + x1) / width - 1)),
        (float(sine * across * aspect), float(cosine * down), float((y0 + y1) / height - 1)),
    )
    return View(matrix, mirrored_outside=rng.random() < 0.5)


def sample_image(image: NDArray[np.uint8], view: View, size: int) -> Tensor:
    """The view of a uint8 (H, W, 3) image as float32 (3, size, size) in 0..1.

    The image is averaged down first where the view would skip pixels.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    if view is WHOLE:
        return F.interpolate(
            pixels, (size, size), mode="bilinear", align_corners=False, antialias=True
        )[0]
    # Sampling reads four pixels for each of the view: where it covers more, it would skip some.
    step = int(min(image.shape[:2]) * view.pixels_per_pixel / size + 0.35)
    if step > 1:
        pixels = F.avg_pool2d(pixels, step, ceil_mode=True, count_include_pad=False)
    return F.grid_sample(
        pixels, _grid(view, size), mode="bilinear", padding_mode=_padding(view), align_corners=False
    )[0]


def sample_labels(labels: NDArray[np.uint16], view: View, size: int) -> Tensor:
    """The view of uint16 (L, H, W) instance numbers as int64 (L, size, size)."""
    numbers = torch.from_numpy(labels.astype(np.float32))[None]
    return F.grid_sample(
        numbers, _grid(view, size), mode="nearest", padding_mode=_padding(view), align_corners=False
    )[0].long()


def sample_features(features: Tensor, view: View, size: int) -> Tensor:
    """The view of float32 (C, h, w), cells of the whole image squeezed square, (C, size, size)."""
    return F.grid_sample(
        features[None],
        _grid(view, size),
        mode="bilinear",
        padding_mode=_padding(view),
        align_corners=False,
    )[0]


def _grid(view: View, size: int) -> Tensor:
    return F.affine_grid(torch.tensor([view.matrix]), [1, 1, size, size], align_corners=False)


def _padding(view: View) -> str:
    return "reflection" if view.mirrored_outside else "zeros"


def random_look(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast, colours, sharpness and noise; (3, S, S) in 0..1 before, after.

    One image in six is left as it is.
    """
    if rng.random() < 1 / 6:
        return pixels
    # The fields of noise are torch's, with a seed from the same draws.
    noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
    size = pixels.shape[-1]
    if rng.random() < 0.15:
        pixels = pixels.mean(dim=0, keepdim=True).expand(3, -1, -1)
    if rng.random() < 0.06:
        pixels = 1 - pixels
    if rng.random() < 0.5:
        cast = np.exp(rng.normal(0, 0.12, (3, 1, 1))).astype(np.float32)
        pixels = pixels * torch.from_numpy(cast)
    if rng.random() < 0.6:
        pixels = pixels.clamp(min=0) ** float(np.exp(rng.normal(0, 0.3)))
    if rng.random() < 0.6:
        middle = pixels.mean()
        pixels = (pixels - middle) * float(np.exp(rng.normal(0, 0.25))) + middle
        pixels = pixels + rng.normal(0, 0.08)
    if rng.random() < 0.25:  # uneven light
        field = torch.randn(1, 1, 3, 3, generator=noise) * rng.uniform(0.05, 0.3)
        light = F.interpolate(field, (size, size), mode="bicubic", align_corners=True)[0]
        pixels = pixels * (1 + light)
    if rng.random() < 0.25:
        small = int(size * rng.uniform(0.3, 0.8))
        down = F.interpolate(pixels[None], (small, small), mode="bilinear", antialias=True)
        pixels = F.interpolate(down, (size, size), mode="bilinear")[0]
    if rng.random() < 0.2:  # speckle
        grain = int(rng.integers(1, 4))
        spots = torch.randn(1, 1, size // grain + 1, size // grain + 1, generator=noise)
        spots = F.interpolate(spots, (size, size), mode="bilinear")[0]
        pixels = pixels * (1 + rng.uniform(0.05, 0.5) * spots)
    if rng.random() < 0.35:
        grey = 1 if rng.random() < 0.5 else 3
        dust = torch.randn(grey, size, size, generator=noise)
        pixels = pixels + rng.uniform(0.005, 0.08) * dust
    return pixels.clamp(0, 1)


def disturb_box(
    box: NDArray[np.floating], deviation: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Move each side of an xyxy box (0..1) by a normal error of `deviation` times the box's size.

    The result stays inside the image and keeps at least a quarter of each side.
    """
    errors = rng.normal(0, deviation, 4)
    moved = np.asarray(box, dtype=np.float64).copy()
    for low, high in ((0, 2), (1, 3)):
        side = float(box[high] - box[low])
        start = float(np.clip(box[low] + errors[low] * side, 0, 1))
        end = float(np.clip(box[high] + errors[high] * side, 0, 1))
        # At the image's edge a box may be cut to nothing; then these two sides stay as they are.
        if end - start >= side / 4:
            moved[low], moved[high] = start, end
    return moved.astype(np.float32)
