"""Made-up short-axis slices of the heart, as cine MRI shows them."""

import numpy as np
from scipy import ndimage

import medsam3_model.pretraining.phantoms.brushes as brush
from medsam3_model.pretraining.phantoms.brushes import Float, Phantom


def cardiac_mri(rng: np.random.Generator, size: int) -> Phantom:
    """Bright blood in a grey ring, a crescent beside it; lungs, liver, fat and a chest around.

    The heart is mostly small in the picture. Notches and islands of muscle in the cavity belong to
    the cavity, as annotators draw it.
    """
    x, y = brush.grid(size)
    scale = float(np.exp(rng.uniform(np.log(0.06), np.log(0.3))))
    centre = (rng.normal(0, 0.2), rng.normal(0, 0.2))
    thickness = float(np.exp(rng.uniform(np.log(1.15), np.log(2.4))))
    tilt = rng.uniform(0, np.pi)
    radii = (scale, scale * rng.uniform(0.75, 1.0))
    cavity = brush.blob(rng, size, centre, radii, tilt, 0.05)
    shift = 0.12 * scale * rng.standard_normal(2)
    outer_centre = (centre[0] + float(shift[0]), centre[1] + float(shift[1]))
    wall = rng.uniform(0.95, 1.1)
    outer = brush.blob(
        rng, size, outer_centre, (radii[0] * thickness * wall, radii[1] * thickness), tilt, 0.02
    )
    outer = np.minimum(outer, cavity / 1.08)  # the wall goes all the way round
    way = rng.normal(np.pi, 0.7)  # the right ventricle lies on the image's left
    reach = scale * thickness * rng.uniform(0.6, 1.1)
    right = brush.blob(
        rng, size, (centre[0] + reach * np.cos(way), centre[1] + reach * np.sin(way)),
        (scale * rng.uniform(0.6, 1.3), scale * rng.uniform(1.0, 2.0)), way, 0.1,
    )  # fmt: skip

    image = _chest(rng, size, centre, scale * thickness)
    muscle_level, blood = rng.uniform(0.08, 0.35), rng.uniform(0.5, 1.0)
    image = brush.paint(
        image, brush.soft(right / 1.12, 0.1) * rng.uniform(0, 1), muscle_level
    )  # the right ventricle's own thin wall
    trabeculae = 1 - rng.uniform(0, 0.5) * (brush.noise(rng, size, scale * size / 9) > 0.8)
    image = brush.paint(image, brush.soft(right, 0.12), blood * rng.uniform(0.5, 1.05) * trabeculae)
    if rng.random() < 0.6:  # fat on the heart, and the dark line where fat meets water
        rim = np.exp(-(((outer - rng.uniform(1.05, 1.2)) / rng.uniform(0.02, 0.08)) ** 2))
        side = np.clip(brush.noise(rng, size, size / 8), 0, 1)
        image = brush.paint(image, rim * side, rng.uniform(0.3, 1.0))
    muscle = muscle_level * (1 + rng.uniform(0, 0.25) * brush.noise(rng, size, scale * size / 6))
    image = brush.paint(image, brush.soft(outer, rng.uniform(0.05, 0.15)), muscle)
    inside = blood * (1 + rng.uniform(0, 0.15) * brush.noise(rng, size, scale * size / 4))
    ragged = cavity + rng.uniform(0, 0.2) * brush.noise(rng, size, scale * size / 7)
    image = brush.paint(image, brush.soft(ragged, rng.uniform(0.08, 0.2)), inside)
    for _ in range(rng.integers(0, 4)):  # papillary muscles
        turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.85)
        spot = (
            centre[0] + float(radii[0] * far * np.cos(turn)),
            centre[1] + float(radii[1] * far * np.sin(turn)),
        )
        thick = scale * rng.uniform(0.08, 0.22)
        pillar = brush.blob(rng, size, spot, (thick, thick * 0.7), float(turn), 0.15)
        image = brush.paint(
            image, brush.soft(pillar, 0.3) * (cavity < 1) * rng.uniform(0.4, 1), muscle_level
        )

    image = image * (1 + 0.3 * (rng.normal() * x + rng.normal() * y))
    image = ndimage.gaussian_filter(image, rng.uniform(0.4, 1.4))
    image += rng.normal(0, rng.uniform(0.003, 0.03), image.shape).astype(np.float32)
    image = np.clip(image, 0, 1) ** rng.uniform(0.7, 1.3)
    return Phantom(
        brush.picture(image),
        {
            "left ventricle cavity": brush.layer(cavity < 1),
            "myocardium": brush.layer((outer < 1) & (cavity >= 1)),
            "right ventricle": brush.layer((right < 1) & (outer >= 1)),
        },
    )


def _chest(rng: np.random.Generator, size: int, heart: tuple[float, float], reach: float) -> Float:
    """A trunk with a bright layer of fat, dark lungs, grey organs; the heart is yet to come."""
    turn = rng.uniform(-0.7, 0.7)
    middle = (rng.normal(0, 0.15), rng.normal(0, 0.15))
    trunk = brush.blob(
        rng, size, middle, (rng.uniform(0.7, 1.5), rng.uniform(0.7, 1.5)), turn, 0.05
    )
    image: Float = np.full((size, size), rng.uniform(0, 0.04), np.float32)
    fat, fat_inside = rng.uniform(0.4, 1.0), rng.uniform(1.04, 1.35)
    image = brush.paint(image, brush.soft(trunk, 0.03), fat)
    soft_tissue = rng.uniform(0.08, 0.4)
    image = brush.paint(image, brush.soft(trunk * fat_inside, 0.06), soft_tissue)
    image += rng.uniform(0, 0.12) * brush.noise(rng, size, size / 14) * (trunk * fat_inside < 1)
    lung_level = rng.uniform(0.01, 0.1)
    for _ in range(rng.integers(1, 4)):  # lungs lie against the heart
        way, far = rng.normal(0, 1.4), reach * rng.uniform(0.8, 2.0)
        wide, high = rng.uniform(0.25, 0.8), rng.uniform(0.25, 0.8)
        place = (
            heart[0] + (far + wide / 2) * np.cos(way),
            heart[1] + (far + wide / 2) * np.sin(way),
        )
        lung = brush.blob(rng, size, place, (wide, high), rng.uniform(0, 3), 0.15)
        vessels = rng.uniform(0.05, 0.5) * (brush.noise(rng, size, size / 60) > 2.0)
        inside = brush.soft(lung, 0.06) * (trunk * fat_inside < 1)
        image = brush.paint(image, inside, lung_level + vessels)
    for _ in range(rng.integers(3, 11)):  # liver, stomach, vessels, spine
        place = (rng.uniform(-0.9, 0.9), rng.uniform(-0.9, 0.9))
        radii = (rng.uniform(0.04, 0.4), rng.uniform(0.04, 0.3))
        organ = brush.blob(rng, size, place, radii, rng.uniform(0, 3), 0.12)
        level = rng.uniform(0.02, 0.7)
        texture = level * (1 + rng.uniform(0, 0.4) * brush.noise(rng, size, size / 30))
        image = brush.paint(
            image, brush.soft(organ, 0.1) * (trunk * fat_inside < 0.97), np.clip(texture, 0, 1)
        )
        if rng.random() < 0.4:  # a sheath of fat, or the dark line around it
            edge = np.exp(-(((organ - 1.0) / 0.06) ** 2)) * (trunk * fat_inside < 1)
            image = brush.paint(image, edge * 0.8, float(rng.choice([0.02, 0.8])))
    return image
