"""Made-up breast ultrasound: layered, streaky tissue with a dark mass, or with none.

Normal breast is full of dark places that are no mass: fat between bright septa, muscle, shadows
behind ribs and at the probe's rim, depths that no echo comes back from. Half of the pictures hold
no mass, and all of them hold such places, so that "there is none" can be learned.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import medsam3_model.pretraining.phantoms.brushes as brush
from medsam3_model.pretraining.phantoms.brushes import Float, Phantom


def breast_ultrasound(rng: np.random.Generator, size: int) -> Phantom:
    """One scan, probe at the top; layer "breast tumor", empty in half of the pictures."""
    x, y = brush.grid(size)
    depth = (y + 1) / 2 + rng.uniform(0, 0.04) * brush.noise(rng, size, size / 5)
    depth += rng.normal(0, 0.06) * x + rng.uniform(-0.12, 0.12) * x**2
    echo = _tissue(rng, size, depth)
    echo = _dark_places(rng, size, echo)
    fading = _fading(rng, size, depth)
    masses: list[NDArray[np.bool_]] = [np.zeros((size, size), bool)]
    if rng.random() < 0.5:
        for _ in range(1 + int(rng.random() < 0.08)):
            echo, mass = _mass(rng, size, echo, fading)
            masses.append(mass)
    image = np.clip(echo * fading, 0, None) * _speckle(rng, size)
    image = np.clip(image * rng.uniform(0.75, 1.6), 0, 1) ** rng.uniform(0.7, 1.2)
    if rng.random() < 0.3:
        image = ndimage.gaussian_filter(image, rng.uniform(0.3, 0.9))
    return Phantom(brush.picture(image), {"breast tumor": brush.layer(*masses[1:] or masses)})


def _streaks(rng: np.random.Generator, size: int, along: float, across: float) -> Float:
    """Noise of unit deviation that is drawn out to the sides and bent up and down."""
    field = ndimage.gaussian_filter(rng.standard_normal((size, size)), (across, along))
    rows, columns = np.indices((size, size)).astype(np.float32)
    bend = size * rng.uniform(0.01, 0.05) * brush.noise(rng, size, size / rng.uniform(5, 14))
    tilt = rng.normal(0, 0.12) * (columns - size / 2)
    bent = ndimage.map_coordinates(field, [rows + bend + tilt, columns], order=1, mode="reflect")
    return ((bent - bent.mean()) / (bent.std() + 1e-6)).astype(np.float32)


def _tissue(rng: np.random.Generator, size: int, depth: Float) -> Float:
    """Skin, fat with septa, gland with fibres, muscle; `depth` is 0 at the probe and 1 below."""
    fat_from = rng.uniform(0.02, 0.08)
    gland_from = fat_from + rng.uniform(0.02, 0.35)
    muscle_from = gland_from + rng.uniform(0.15, 0.7)
    fat_level, gland_level = rng.uniform(0.15, 0.4), rng.uniform(0.3, 0.6)
    fine = _streaks(rng, size, size / rng.uniform(10, 40), rng.uniform(0.7, 1.8))
    coarse = _streaks(rng, size, size / rng.uniform(10, 30), size / rng.uniform(35, 80))
    mottled = brush.noise(rng, size, size / rng.uniform(12, 45))
    gland = gland_level * np.exp(
        rng.uniform(0.1, 0.45) * fine
        + rng.uniform(0.05, 0.4) * coarse
        + rng.uniform(0.05, 0.35) * mottled
    )
    septa = np.abs(_streaks(rng, size, size / rng.uniform(8, 20), size / rng.uniform(15, 40)))
    bright = np.exp(-((septa / rng.uniform(0.04, 0.12)) ** 2))
    fat = fat_level * (1 + 0.12 * mottled) + rng.uniform(0.1, 0.5) * bright
    muscle = fat_level * rng.uniform(0.5, 1.2) * np.exp(rng.uniform(0.2, 0.5) * fine)
    muscle += rng.uniform(0, 0.4) * np.exp(-((coarse / 0.12) ** 2))
    edge = rng.uniform(0.005, 0.03)
    wavy = depth + rng.uniform(0, 0.03) * brush.noise(rng, size, size / 12)
    echo = brush.paint(fat, brush.soft(2 - wavy / gland_from, edge / gland_from), gland)
    echo = brush.paint(echo, brush.soft(2 - wavy / muscle_from, edge / muscle_from), muscle)
    for start in (gland_from, muscle_from):
        line = np.exp(-(((wavy - start) / rng.uniform(0.004, 0.015)) ** 2))
        echo = echo + rng.uniform(0, 0.35) * line * (1 + 0.5 * fine)
    skin = np.exp(-(((depth - fat_from / 2) / (fat_from / 2)) ** 2))
    return np.asarray(echo + rng.uniform(0.2, 0.7) * skin, np.float32)


def _dark_places(rng: np.random.Generator, size: int, echo: Float) -> Float:
    """Fuzzy lobules, shadows from top to bottom, black sides and corners: none is a mass."""
    x, y = brush.grid(size)
    for _ in range(rng.integers(0, 7)):
        centre = (rng.uniform(-1, 1), rng.uniform(-0.8, 1))
        wide = rng.uniform(0.08, 0.5)
        radii = (wide, wide * rng.uniform(0.2, 0.7))
        lobule = brush.blob(rng, size, centre, radii, rng.normal(0, 0.3), 0.25)
        weight = brush.soft(lobule, rng.uniform(0.7, 2.0)) * rng.uniform(0.15, 0.7)
        echo = echo * (1 - weight)
    for _ in range(rng.integers(0, 4)):  # a shadow fans out from where it starts
        middle, wide, top = rng.uniform(-1, 1), rng.uniform(0.03, 0.3), rng.uniform(-1, 0.5)
        across = (x - middle) / (wide * (1 + 0.4 * np.clip(y - top, 0, None)))
        shadow = np.exp(-(across**4)) / (1 + np.exp(-(y - top) * rng.uniform(5, 30)))
        echo = echo * (1 - rng.uniform(0.1, 0.8) * shadow)
    if rng.random() < 0.35:  # no contact with the skin, or nothing behind a rib
        side = rng.choice([-1, 1])
        centre = (float(side * rng.uniform(0.7, 1.3)), rng.uniform(0.2, 1.1))
        radii = (rng.uniform(0.3, 0.9), rng.uniform(0.3, 1.2))
        corner = brush.blob(rng, size, centre, radii, 0.0, 0.12)
        weight = brush.soft(corner, rng.uniform(0.1, 1.0))
        echo = echo * (1 - rng.uniform(0.5, 1) * weight)
    return echo


def _mass(
    rng: np.random.Generator, size: int, echo: Float, fading: Float
) -> tuple[Float, NDArray[np.bool_]]:
    """Paint a mass: darker than around it, with a rim, and a shadow or enhancement below it.

    Of a few places the brightest is taken, since in the dark nobody could see it.
    """
    x, y = brush.grid(size)
    radius = float(np.exp(rng.uniform(np.log(0.09), np.log(0.55))))
    places = rng.uniform((-0.65, -0.65), (0.65, 0.4), (4, 2))
    lit = ndimage.uniform_filter(echo * fading, int(radius * size))
    rows, columns = ((places[:, ::-1] + 1) / 2 * (size - 1)).astype(int).T
    best = places[int(lit[rows, columns].argmax())]
    centre = (float(best[0]), float(best[1]))
    radii = (radius, radius * rng.uniform(0.45, 1.0))
    malignant = rng.random() < 0.4
    roughness = float(rng.uniform(0.08, 0.18) if malignant else rng.uniform(0.01, 0.06))
    distance = brush.blob(rng, size, centre, radii, rng.normal(0, 0.35), roughness)
    mass = distance < 1
    around = float(echo[(distance > 1) & (distance < 1.5)].mean() if mass.any() else echo.mean())
    spread = 1 + 0.25 * np.clip(y - centre[1], 0, None)
    beam = np.exp(-(((x - centre[0]) / (radii[0] * 0.85 * spread)) ** 6)) * (y > centre[1])
    tail = ndimage.gaussian_filter(beam, size / 50)
    echo = echo * (1 + (rng.uniform(-0.6, 0.1) if malignant else rng.uniform(-0.2, 0.7)) * tail)
    level = around * rng.uniform(0.02, 0.5)
    inside = level * (1 + rng.uniform(0, 0.4) * brush.noise(rng, size, size / rng.uniform(15, 60)))
    if rng.random() < 0.3:  # debris, or brighter towards the bottom
        inside = inside + around * rng.uniform(0, 0.3) * np.clip((y - centre[1]) / radii[1], -1, 1)
    softness = float(rng.uniform(0.15, 0.5) if malignant else rng.uniform(0.04, 0.2))
    echo = brush.paint(echo, brush.soft(distance, softness), np.clip(inside, 0, 1))
    if rng.random() < 0.4:
        rim = np.exp(-(((distance - 1.06) / 0.07) ** 2))
        echo = echo + around * rng.uniform(0.1, 0.8) * rim
    return echo, mass


def _fading(rng: np.random.Generator, size: int, depth: Float) -> Float:
    """How much of the echo comes back from each depth and from the probe's sides, 0..1."""
    x, _ = brush.grid(size)
    fade = np.exp(-rng.uniform(0, 2.2) * np.clip(depth, 0, 1) ** rng.uniform(1, 4))
    if rng.random() < 0.6:  # nothing at all below some depth
        end = rng.uniform(0.5, 1.1) + 0.1 * brush.noise(rng, size, size / rng.uniform(4, 9))
        fade = fade * (1 - rng.uniform(0.6, 1) / (1 + np.exp(-(depth - end) * rng.uniform(6, 25))))
    sides = rng.uniform(0.85, 1.5)
    return np.asarray(fade / (1 + np.exp((np.abs(x) - sides) * 12)), np.float32)


def _speckle(rng: np.random.Generator, size: int) -> Float:
    """Multiplicative grain of mean 1, wider than high."""
    grain = rng.uniform(0.35, 1.1)
    waves = ndimage.gaussian_filter(rng.rayleigh(1.0, (size, size)), (grain * 0.7, grain * 1.6))
    speckle = 1 + (waves / waves.mean() - 1) * rng.uniform(0.4, 1.1)
    return np.clip(speckle, 0, 3).astype(np.float32)
