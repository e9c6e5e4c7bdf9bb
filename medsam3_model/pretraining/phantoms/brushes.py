"""Brushes that the made-up medical images are drawn with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Float = NDArray[Any]
Instances = NDArray[np.uint16]


@dataclass(frozen=True)
class Phantom:
    """One picture.

    image: uint8 (size, size, 3), RGB. layers: concept -> uint16 (size, size), 0 outside and 1, 2, …
    for its instances; a concept that could be here but is not has an empty layer. The concept
    "object" names things that only a box can ask for.
    """

    image: NDArray[np.uint8]
    layers: dict[str, Instances]


def grid(size: int) -> tuple[Float, Float]:
    """x and y of every pixel, −1..1."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def noise(rng: np.random.Generator, size: int, sigma: float) -> Float:
    """Smooth noise of zero mean and unit deviation; `sigma` is its grain in pixels."""
    coarse = max(int(sigma / 3), 1)
    small = rng.standard_normal((size // coarse + 2, size // coarse + 2))
    small = ndimage.gaussian_filter(small, max(sigma / coarse, 0.3))
    field = ndimage.zoom(small, coarse, order=1)[:size, :size] if coarse > 1 else small
    field = field[:size, :size]
    return ((field - field.mean()) / (field.std() + 1e-6)).astype(np.float32)


def blob(
    rng: np.random.Generator,
    size: int,
    centre: tuple[float, float],
    radii: tuple[float, float],
    angle: float = 0.0,
    roughness: float = 0.1,
) -> Float:
    """Distance of every pixel to the middle of a wobbly ellipse: below 1 inside, above outside."""
    x, y = grid(size)
    x, y = x - centre[0], y - centre[1]
    cosine, sine = np.cos(angle), np.sin(angle)
    u, v = (x * cosine + y * sine) / radii[0], (-x * sine + y * cosine) / radii[1]
    theta = np.arctan2(v, u)
    edge = np.ones_like(theta)
    for k in range(2, 9):
        amount = roughness * rng.normal() / (k - 1) ** 0.7
        edge += amount * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
    return (np.hypot(u, v) / np.clip(edge, 0.35, 2)).astype(np.float32)


def soft(distance: Float, width: float) -> Float:
    """1 inside a blob and 0 outside, with an edge `width` wide (in units of its radius)."""
    return 1 / (1 + np.exp(np.clip((distance - 1) / max(width, 1e-3) * 4, -30, 30)))


def paint(image: Float, where: Float, colour: NDArray[np.floating] | float) -> Float:
    """Blend `colour` (a number, a triple or a picture) into `image` by the weight `where`."""
    weight = where[..., None] if image.ndim == 3 else where
    return image * (1 - weight) + np.asarray(colour, dtype=np.float32) * weight


def picture(image: Float) -> NDArray[np.uint8]:
    """0..1, (H, W) or (H, W, 3), to RGB pixels."""
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def layer(*masks: NDArray[np.bool_]) -> Instances:
    """Masks (H, W) to one picture of instance numbers; later ones cover earlier ones."""
    numbers = np.zeros(masks[0].shape, np.uint16)
    for number, mask in enumerate(masks, start=1):
        numbers[mask] = number
    return numbers
