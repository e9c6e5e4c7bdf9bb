"""Made-up medical images with exact masks: the bundled model's free training data.

Each generator draws one picture in the manner of a modality (not a simulation of its physics) from
a numpy random generator, so the same seed gives the same picture. They teach three things that the
few real images cannot: words for structures that no licensed data shows, boxes around objects of
every kind and size, and indifference to a modality's look.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import medsam3_model.pretraining.phantoms.brushes as brush
from medsam3_model.pretraining.phantoms.brushes import Float, Phantom
from medsam3_model.pretraining.phantoms.cardiac import cardiac_mri
from medsam3_model.pretraining.phantoms.chest import chest_xray
from medsam3_model.pretraining.phantoms.ultrasound import breast_ultrasound

Draw = Callable[[np.random.Generator, int], Phantom]


def phantom(kind: str, seed: int, size: int = 224) -> Phantom:
    """The picture number `seed` of a kind in `PHANTOMS`, `size` pixels square."""
    return PHANTOMS[kind](np.random.default_rng([seed, *kind.encode()]), size)


def dermoscopy(rng: np.random.Generator, size: int) -> Phantom:
    """Skin of any tone, a brown mottled spot, hairs, a dark frame, gel bubbles."""
    x, y = brush.grid(size)
    tone = rng.uniform(0.35, 1.0)
    skin = np.array([0.9, 0.68, 0.58]) * tone + rng.normal(0, 0.05, 3)
    image: Float = np.ones((size, size, 3), np.float32) * skin.astype(np.float32)
    image += (
        0.04 * brush.noise(rng, size, size / 5)[..., None]
        + 0.02 * brush.noise(rng, size, 3)[..., None]
    )
    mask: NDArray[np.bool_] = np.zeros((size, size), bool)
    if rng.random() < 0.9:
        radius = float(np.exp(rng.uniform(np.log(0.12), np.log(0.8))))
        radii = (radius, radius * rng.uniform(0.6, 1))
        centre = (rng.normal(0, 0.2), rng.normal(0, 0.2))
        distance = brush.blob(rng, size, centre, radii, rng.uniform(0, 3), rng.uniform(0.03, 0.2))
        mask = distance < 1
        dark = skin * np.array([0.55, 0.42, 0.38]) * rng.uniform(0.5, 1.55)
        spots = rng.uniform(0.05, 0.3) * brush.noise(rng, size, rng.uniform(2, 20))
        colour = dark * (1 + spots[..., None]) + rng.normal(0, 0.03, 3)
        weight = brush.soft(distance, rng.uniform(0.1, 0.6)) * rng.uniform(0.6, 1)
        image = brush.paint(image, weight, colour)
    for _ in range(rng.integers(0, 14) if rng.random() < 0.5 else 0):
        start, way = rng.uniform(-1, 1, 2), rng.uniform(0, np.pi)
        along = (x - start[0]) * np.cos(way) + (y - start[1]) * np.sin(way)
        across = (y - start[1]) * np.cos(way) - (x - start[0]) * np.sin(way)
        hair = np.abs(across - rng.normal(0, 0.3) * along**2) < rng.uniform(0.004, 0.015)
        image = brush.paint(image, (hair & (np.abs(along) < 1)).astype(np.float32) * 0.8, 0.12)
    if rng.random() < 0.3:
        frame = np.hypot(x, y) > rng.uniform(1.0, 1.3)
        image = brush.paint(image, frame.astype(np.float32), 0.02)
    image += rng.normal(0, 0.015, image.shape).astype(np.float32)
    return Phantom(brush.picture(image), {"skin lesion": brush.layer(mask)})


def fundus(rng: np.random.Generator, size: int) -> Phantom:
    """An orange retina with branching vessels, a bright disc and a paler cup within it."""
    x, y = brush.grid(size)
    base = np.array([0.75, 0.35, 0.15]) * rng.uniform(0.5, 1.2) + rng.normal(0, 0.04, 3)
    image: Float = np.ones((size, size, 3), np.float32) * base.astype(np.float32)
    image *= 1 + 0.08 * brush.noise(rng, size, size / 4)[..., None]
    near = rng.random() < 0.6  # a picture centred on the disc, as in glaucoma data sets
    radius = float(rng.uniform(0.25, 0.6) if near else rng.uniform(0.1, 0.22))
    spread = 0.15 if near else 0.5
    centre = (rng.normal(0, spread), rng.normal(0, 0.15))
    for _ in range(rng.integers(6, 14)):
        way, curve = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.5)
        along = (x - centre[0]) * np.cos(way) + (y - centre[1]) * np.sin(way)
        across = (y - centre[1]) * np.cos(way) - (x - centre[0]) * np.sin(way)
        wide = rng.uniform(0.006, 0.03) * (1.5 if near else 1)
        vessel = (np.abs(across - curve * along**2) < wide) & (along > 0)
        soft = ndimage.gaussian_filter(vessel.astype(np.float32), 0.8)
        image = brush.paint(image, soft * rng.uniform(0.3, 0.8), base * 0.5)
    veins = image.copy()
    angle = rng.uniform(0, 3)
    disc = brush.blob(rng, size, centre, (radius, radius * rng.uniform(0.85, 1)), angle, 0.03)
    ratio = rng.uniform(0.3, 0.75)
    inner = (centre[0] + rng.normal(0, 0.05) * radius, centre[1])
    cup = np.maximum(
        brush.blob(rng, size, inner, (radius * ratio, radius * ratio), angle, 0.05), disc * 1.02
    )
    pale = base + np.array([0.2, 0.25, 0.15]) * rng.uniform(0.6, 1.4)
    image = brush.paint(image, brush.soft(disc, 0.15), pale)
    image = brush.paint(
        image, brush.soft(cup, 0.25) * rng.uniform(0.6, 1), pale + rng.uniform(0.1, 0.25)
    )
    image = 0.7 * image + 0.3 * np.minimum(image, veins + 0.25)
    if not near or rng.random() < 0.3:
        image = brush.paint(image, (np.hypot(x, y) > rng.uniform(0.9, 1.1)).astype(np.float32), 0.0)
    image += rng.normal(0, 0.012, image.shape).astype(np.float32)
    return Phantom(
        brush.picture(image),
        {"optic disc": brush.layer(disc < 1), "optic cup": brush.layer(cup < 1)},
    )


def microscopy(rng: np.random.Generator, size: int) -> Phantom:
    """Nuclei: bright on black, purple on pink, or dark-rimmed on grey."""
    stain = rng.choice(["fluorescence", "histology", "brightfield"], p=[0.5, 0.3, 0.2])
    radius = float(np.exp(rng.uniform(np.log(0.03), np.log(0.16))))
    layer = np.zeros((size, size), np.uint16)
    if stain == "fluorescence":
        image: Float = np.full((size, size, 3), rng.uniform(0.01, 0.12), np.float32)
        colour = np.ones(3) if rng.random() < 0.7 else rng.dirichlet(np.ones(3)) * 1.5
    elif stain == "histology":
        pink = np.array([0.9, 0.72, 0.85]) + rng.normal(0, 0.05, 3)
        image = np.ones((size, size, 3), np.float32) * pink.astype(np.float32)
        image *= 1 + 0.08 * brush.noise(rng, size, 5)[..., None]
        colour = np.array([0.42, 0.25, 0.55]) + rng.normal(0, 0.06, 3)
    else:
        image = np.full((size, size, 3), rng.uniform(0.5, 0.8), np.float32)
        colour = np.full(3, rng.uniform(0.2, 0.5))
    texture = 1 + rng.uniform(0, 0.3) * brush.noise(rng, size, 2)
    for number in range(1, int(rng.integers(3, 40)) + 1):
        r = radius * rng.uniform(0.6, 1.4)
        centre = (rng.uniform(-1, 1), rng.uniform(-1, 1))
        nucleus = brush.blob(
            rng, size, centre, (r, r * rng.uniform(0.55, 1)), rng.uniform(0, 3), 0.05
        )
        inside = nucleus < 1
        if (layer[inside] > 0).mean() > 0.3 if inside.any() else True:
            continue
        tint = colour * rng.uniform(0.4, 1.0) if stain == "fluorescence" else colour
        shade = tint * texture[..., None]
        image = brush.paint(image, brush.soft(nucleus, 0.2) * rng.uniform(0.7, 1), shade)
        layer[inside & (layer == 0)] = number
    image += rng.normal(0, rng.uniform(0.003, 0.03), image.shape).astype(np.float32)
    return Phantom(brush.picture(image), {"cell nucleus": layer})


def shapes(rng: np.random.Generator, size: int) -> Phantom:
    """Blobs, rings and rods of any texture on any texture: what a box can be drawn around."""
    grey = rng.random() < 0.6
    channels = 1 if grey else 3

    def tint() -> NDArray[np.floating]:
        return np.repeat(rng.uniform(0, 1, 1), 3) if grey else rng.uniform(0, 1, channels)

    def texture(base: NDArray[np.floating]) -> Float:
        grain = np.exp(rng.uniform(np.log(1), np.log(size / 4)))
        noise = rng.uniform(0, 0.2) * brush.noise(rng, size, float(grain))
        return (base + noise[..., None]).astype(np.float32)

    ground = tint()
    image: Float = texture(ground)
    layer = np.zeros((size, size), np.uint16)
    for number in range(1, int(rng.integers(1, 8)) + 1):
        radius = float(np.exp(rng.uniform(np.log(0.05), np.log(0.6))))
        centre = (rng.uniform(-0.9, 0.9), rng.uniform(-0.9, 0.9))
        radii = (radius, radius * rng.uniform(0.3, 1))
        angle, rough = rng.uniform(0, 3), rng.uniform(0, 0.25)
        distance = brush.blob(rng, size, centre, radii, angle, rough)
        inside = distance < 1
        if inside.sum() < 30 or (layer[inside] > 0).mean() > 0.15:
            continue
        if rng.random() < 0.2:  # a ring
            hole = rng.uniform(0.4, 0.75)
            distance = np.where(distance < hole, 2.0, distance).astype(np.float32)
            inside = distance < 1
        colour = tint()
        if np.abs(colour - ground).max() < 0.12:
            colour = np.clip(ground + rng.choice([-1, 1]) * rng.uniform(0.12, 0.4), 0, 1)
        weight = brush.soft(distance, rng.uniform(0.02, 0.4)) * rng.uniform(0.6, 1)
        image = brush.paint(image, weight, texture(colour))
        layer[inside & (layer == 0)] = number
    image *= 1 + 0.2 * rng.normal() * brush.noise(rng, size, size / 3)[..., None]
    image += rng.normal(0, rng.uniform(0, 0.06), image.shape).astype(np.float32)
    return Phantom(brush.picture(image), {"object": layer})


PHANTOMS: dict[str, Draw] = {
    "breast_ultrasound": breast_ultrasound,
    "dermoscopy": dermoscopy,
    "fundus": fundus,
    "chest_xray": chest_xray,
    "cardiac_mri": cardiac_mri,
    "microscopy": microscopy,
    "shapes": shapes,
}
