"""Training images that are made from others: healthy parts, scans without a finding, painted cups.

Presence is learned from images in which the concept was looked for in vain, and most collections
have none: whoever photographs a colon keeps the polyps.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam3_model.pretraining.data import SourceImage, load_sources
from medsam3_model.pretraining.phantoms import brushes

# A healthy part has at least this share of the image's shorter side, and this mean grey value:
# the corners of an endoscope's picture are black.
_LEAST_SIDE, _LEAST_LIGHT = 0.3, 45.0
# Of the image's longer side: what lies so close to a finding is no healthy part.
_MARGIN = 0.04
# Pictures of each optic disc: the first shows the whole photograph.
_CUPS = 4


def all_sources(
    folders: dict[str, Path], phantoms_per_kind: int, seed: int
) -> dict[str, list[SourceImage]]:
    """Training images by source, with those that are made from others."""
    rng = np.random.default_rng(seed)
    sources = load_sources(folders, phantoms_per_kind)
    if "bus_uclm" in sources:
        sources["normal_breast"] = without_findings(sources["bus_uclm"])
        sources["bus_uclm"] = with_findings(sources["bus_uclm"])
    colons = [s for name in ("kvasir_seg", "kvasir_seg_more") for s in sources.get(name, [])]
    sources["healthy_colon"] = healthy_parts(colons, rng)
    sources["painted_cups"] = painted_cups(sources.get("idrid", []), rng)
    return sources


def without_findings(samples: Iterable[SourceImage]) -> list[SourceImage]:
    """The images in which nothing was found of what was looked for."""
    return [sample for sample in samples if not _findings(sample).any()]


def with_findings(samples: Iterable[SourceImage]) -> list[SourceImage]:
    """The other images."""
    return [sample for sample in samples if _findings(sample).any()]


def healthy_parts(samples: Sequence[SourceImage], rng: np.random.Generator) -> list[SourceImage]:
    """For each image the largest rectangle beside its findings, and a random part of that."""
    parts: list[SourceImage] = []
    for sample in samples:
        for number, (top, bottom, left, right) in enumerate(_beside(_findings(sample), rng)):
            image = sample.image[top:bottom, left:right]
            if image.mean() < _LEAST_LIGHT:
                continue
            height, width = sample.image.shape[:2]
            shape = (right - left) / (bottom - top) * height / width
            layers = {c: layer[top:bottom, left:right] for c, layer in sample.layers.items()}
            name = f"{sample.name}_healthy{number}"
            parts.append(
                replace(
                    sample,
                    name=name,
                    image=image.copy(),
                    aspect=sample.aspect * shape,
                    layers=layers,
                )
            )
    return parts


def _beside(
    findings: NDArray[np.bool_], rng: np.random.Generator
) -> Iterator[tuple[int, int, int, int]]:
    """Top, bottom, left and right of the largest strip beside the findings, and of a part of it."""
    height, width = findings.shape
    rows, columns = np.flatnonzero(findings.any(1)), np.flatnonzero(findings.any(0))
    margin = round(_MARGIN * max(height, width))
    least = round(_LEAST_SIDE * min(height, width))
    if not len(rows):
        strips = [(0, height, 0, width)]
    else:
        top, bottom = int(rows[0]) - margin, int(rows[-1]) + 1 + margin
        left, right = int(columns[0]) - margin, int(columns[-1]) + 1 + margin
        strips = [
            (0, top, 0, width),
            (bottom, height, 0, width),
            (0, height, 0, left),
            (0, height, right, width),
        ]
    strips = [s for s in strips if s[1] - s[0] >= least and s[3] - s[2] >= least]
    if not strips:
        return
    strip = max(strips, key=lambda s: (s[1] - s[0]) * (s[3] - s[2]))
    yield strip
    tall, wide = strip[1] - strip[0], strip[3] - strip[2]
    most = min(tall, wide)
    side = int(rng.integers(least, most + 1))
    top, left = (
        strip[0] + int(rng.integers(tall - side + 1)),
        strip[2] + int(rng.integers(wide - side + 1)),
    )
    yield top, top + side, left, left + side


def painted_cups(samples: Sequence[SourceImage], rng: np.random.Generator) -> list[SourceImage]:
    """Photographs of a retina, whole or cut out around the disc, with a paler cup in the disc.

    No free set has cups. The painted one lies about where a cup lies and hides the real one only
    partly; the vessels stay visible.
    """
    painted: list[SourceImage] = []
    for sample in samples:
        disc = sample.layers["optic disc"] > 0
        if disc.any():
            painted += [_painted_cup(sample, disc, number, rng) for number in range(_CUPS)]
    return painted


def _painted_cup(
    sample: SourceImage, disc: NDArray[np.bool_], number: int, rng: np.random.Generator
) -> SourceImage:
    """Picture `number` of a disc (H, W)."""
    height, width = disc.shape
    rows, columns = np.nonzero(disc)
    middle = np.array([rows.mean(), columns.mean()])
    radii = np.array([np.ptp(rows) + 1, np.ptp(columns) + 1]) / 2
    cup = _cup(disc, middle, radii, rng)
    image = _with_cup(sample.image, disc, cup, middle, radii, rng)
    half = float(max(height, width))
    if number > 0:
        half = float(max(radii) * np.exp(rng.uniform(np.log(1.3), np.log(4.0))))
    centre = middle + rng.normal(0, 0.075, 2) * half
    top, left = (max(int(at - half), 0) for at in centre)
    part = slice(top, int(centre[0] + half)), slice(left, int(centre[1] + half))
    layers = {"optic disc": sample.layers["optic disc"], "optic cup": (cup < 1).astype(np.uint16)}
    cut = image[part]
    return SourceImage(
        f"{sample.name}_cup{number}",
        "fundus",
        cut,
        sample.aspect * cut.shape[1] / cut.shape[0] * height / width,
        {concept: layer[part].copy() for concept, layer in layers.items()},
        painted=True,
    )


def _cup(
    disc: NDArray[np.bool_],
    middle: NDArray[np.float64],
    radii: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.floating]:
    """Distance (H, W) of every pixel to the middle of a cup: below 1 inside, within the disc."""
    ratio = float(np.clip(rng.normal(0.52, 0.13), 0.25, 0.85))
    size = ratio * radii * np.array([rng.uniform(0.9, 1.1), rng.uniform(0.85, 1.05)])
    where = middle + rng.normal(0, 0.06, 2) * radii
    y, x = np.mgrid[: disc.shape[0], : disc.shape[1]].astype(np.float32)
    angle = np.arctan2(y - where[0], x - where[1])
    edge = np.ones_like(angle)
    for k in range(2, 5):
        edge += rng.normal(0, 0.04) / k * np.cos(k * angle + rng.uniform(0, 6))
    distance = np.hypot((y - where[0]) / size[0], (x - where[1]) / size[1]) / edge
    return np.where(disc, distance, np.maximum(distance, 1.05))


def _with_cup(
    image: NDArray[np.uint8],
    disc: NDArray[np.bool_],
    cup: NDArray[np.floating],
    middle: NDArray[np.float64],
    radii: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """The picture (H, W, 3) in which the real cup is paled down and the new one lit."""
    y, x = np.mgrid[: disc.shape[0], : disc.shape[1]].astype(np.float32)
    rim = np.median(image[disc], axis=0)
    whole = np.hypot((y - middle[0]) / radii[0], (x - middle[1]) / radii[1])
    flat = (brushes.soft(whole, 0.3) * rng.uniform(0.2, 0.7))[..., None]
    pixels = image * (1 - flat) + np.minimum(image, rim * 1.05) * flat
    light = (brushes.soft(cup, rng.uniform(0.15, 0.5)) * rng.uniform(0.5, 1.0))[..., None]
    lit = pixels * rng.uniform(1.05, 1.3) + np.array([20, 35, 30]) * rng.uniform(0.3, 1.4)
    return np.clip(pixels * (1 - light) + lit * light, 0, 255).astype(np.uint8)


def _findings(sample: SourceImage) -> NDArray[np.bool_]:
    return np.any([layer > 0 for layer in sample.layers.values()], axis=0)
