"""Made-up chest X-rays, frontal: lungs, heart, ribs, clavicles, diaphragm, gas below it."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import interpolate, ndimage

import medsam3_model.pretraining.phantoms.brushes as brush
from medsam3_model.pretraining.phantoms.brushes import Float, Phantom

# The outline of a lung from its apex outwards and back along the mediastinum: distance from the
# midline and height, in half sides of the image. The left one makes room for the heart.
_RIGHT = (
    (0.16, -0.60), (0.30, -0.73), (0.46, -0.62), (0.61, -0.32), (0.70, 0.02), (0.75, 0.32),
    (0.76, 0.54), (0.62, 0.40), (0.44, 0.33), (0.24, 0.38), (0.15, 0.26), (0.14, 0.02),
    (0.17, -0.20), (0.12, -0.40),
)  # fmt: skip
_LEFT = (
    (0.16, -0.60), (0.30, -0.73), (0.46, -0.62), (0.60, -0.32), (0.68, 0.02), (0.73, 0.32),
    (0.75, 0.58), (0.66, 0.46), (0.53, 0.41), (0.44, 0.42), (0.38, 0.26), (0.28, 0.08),
    (0.17, -0.12), (0.18, -0.36),
)  # fmt: skip


def chest_xray(rng: np.random.Generator, size: int) -> Phantom:
    """Two dark lungs with ribs across them, a heart to the image's right, the diaphragm below."""
    x, y = brush.grid(size)
    shift = rng.normal(0, 0.05)
    turn = rng.normal(0, 0.04)
    x, y = (
        (x - shift) * np.cos(turn) + y * np.sin(turn),
        y * np.cos(turn) - (x - shift) * np.sin(turn),
    )
    scale = np.array([rng.uniform(0.85, 1.15), rng.uniform(0.8, 1.15)])
    height = rng.normal(0.02, 0.06)
    x, y = x / scale[0], (y - height) / scale[1]
    to_pixels = (shift, turn, scale, height)
    right = _inside(_outline(_RIGHT, -1, rng), to_pixels, size)
    left = _inside(_outline(_LEFT, 1, rng), to_pixels, size)
    lungs = right | left
    tall = rng.uniform(0.26, 0.34)
    heart = np.hypot((x - rng.uniform(0.08, 0.14)) / rng.uniform(0.26, 0.36), (y - 0.17) / tall) < 1
    heart &= ~lungs

    image = _body(x, y, rng, size)
    middle = np.exp(-((x / rng.uniform(0.13, 0.2)) ** 4))
    image = image + middle * rng.uniform(0.08, 0.25)
    image = brush.paint(image, _blurred(heart, size, rng) * 0.8, rng.uniform(0.75, 0.98))
    belly = brush.soft(((0.45 - y) / 0.35 + 1).astype(np.float32), 0.6)
    image = image + belly * rng.uniform(0.0, 0.2)
    if rng.random() < 0.6:  # gas in the stomach or colon is dark and no lung
        gas = brush.blob(rng, size, (rng.uniform(0.25, 0.6), rng.uniform(0.55, 0.8)),
                         (rng.uniform(0.06, 0.2), rng.uniform(0.04, 0.14)), 0, 0.15)  # fmt: skip
        image = brush.paint(image, brush.soft(gas, 0.2) * rng.uniform(0.2, 0.7), 0.35)
    image = _air(image, lungs, x, y, rng, size)
    image = image + _bones(x, y, rng) * (np.abs(x) < 0.85)
    image = image + rng.normal(0, rng.uniform(0.003, 0.03), image.shape).astype(np.float32)
    image = _marks(image, rng, size)
    return Phantom(
        brush.picture(ndimage.gaussian_filter(image, rng.uniform(0.3, 0.9))),
        {
            "lungs": brush.layer(right, left),
            "right lung": brush.layer(right),  # the patient's right is on the image's left
            "left lung": brush.layer(left),
            "heart": brush.layer(heart),
        },
    )


def _outline(points: tuple[tuple[float, float], ...], side: int, rng: np.random.Generator) -> Float:
    """A smooth closed curve through the points, each moved a little; (200, 2) x and y."""
    moved = np.array(points) + rng.normal(0, 0.02, (len(points), 2))
    low = rng.normal(0, 0.07)  # how deeply the patient breathed in
    moved[:, 1] += low * np.clip((moved[:, 1] + 0.3) / 0.8, 0, 1)
    moved[:, 0] = moved[:, 0] + rng.normal(0, 0.05) * np.clip((moved[:, 0] - 0.2) / 0.5, 0, 1)
    closed = np.concatenate([moved, moved[:1]])
    spline, _ = interpolate.splprep(closed.T, s=0.0015, per=True)
    curve = np.stack(interpolate.splev(np.linspace(0, 1, 200), spline), axis=1)
    curve[:, 0] = np.maximum(curve[:, 0], 0.05) * side
    return curve


def _inside(
    curve: Float, placed: tuple[float, float, NDArray[np.float64], float], size: int
) -> NDArray[np.bool_]:
    """The pixels inside of a curve that is scaled, turned and moved to its place."""
    shift, turn, scale, height = placed
    at_x, at_y = curve[:, 0] * scale[0], curve[:, 1] * scale[1] + height
    back_x = at_x * np.cos(turn) - at_y * np.sin(turn) + shift
    back_y = at_x * np.sin(turn) + at_y * np.cos(turn)
    picture = Image.new("1", (size, size))
    pixels = (np.stack([back_x, back_y], 1) + 1) / 2 * (size - 1)
    ImageDraw.Draw(picture).polygon([tuple(point) for point in pixels.tolist()], fill=1)
    return np.array(picture)


def _body(x: Float, y: Float, rng: np.random.Generator, size: int) -> Float:
    """Soft tissue with neck and shoulders before a dark ground."""
    image: Float = np.full((size, size), rng.uniform(0.5, 0.75), np.float32)
    image += 0.05 * brush.noise(rng, size, size / 5)
    wide, slope = rng.uniform(0.82, 1.15), rng.uniform(0.25, 0.5)
    shoulder = rng.uniform(-0.95, -0.72)
    top = shoulder + slope * np.clip(np.abs(x) - 0.25, 0, 2) ** 1.3
    inside = (np.abs(x) < 0.25) | (y > top)
    arms = rng.uniform(-0.3, 0.3)
    inside &= (np.abs(x) < wide) | ((y < arms) & (rng.random() < 0.8))
    outside = ndimage.gaussian_filter((~inside).astype(np.float32), rng.uniform(1, 4))
    return brush.paint(image, outside, rng.uniform(0.0, 0.15))


def _air(
    image: Float,
    lungs: NDArray[np.bool_],
    x: Float,
    y: Float,
    rng: np.random.Generator,
    size: int,
) -> Float:
    """Lungs with vessels that fan out from the hila."""
    dark = rng.uniform(0.15, 0.5)
    hila = np.exp(-(((np.abs(x) - 0.2) / 0.14) ** 2) - ((y + 0.05) / 0.22) ** 2)
    air = dark + rng.uniform(0.02, 0.06) * brush.noise(rng, size, size / 40)
    air = air + rng.uniform(0.0, 0.04) * brush.noise(rng, size, 2)
    air = air + hila * rng.uniform(0.05, 0.3) * (1 + 0.4 * brush.noise(rng, size, 4))
    air = air + rng.uniform(-0.1, 0.2) * np.clip((y + 0.7) / 1.2, 0, 1)
    # Lungs let through a share of what lies before and behind them.
    return brush.paint(image, _blurred(lungs, size, rng) * rng.uniform(0.6, 0.95), air)


def _bones(x: Float, y: Float, rng: np.random.Generator) -> Float:
    """Ribs, clavicles and spine: what they add to the brightness."""
    count, phase = rng.uniform(3.2, 5.5), rng.uniform(0, 6)
    bend, fall = rng.uniform(0.3, 0.9), rng.uniform(0.1, 0.5)
    behind = y + bend * (np.abs(x) - 0.35) ** 2 - fall * (np.abs(x) - 0.35)
    before = y - rng.uniform(0.3, 0.7) * np.abs(x)
    bones = rng.uniform(0.03, 0.16) * _bands(behind * count * np.pi * 2 + phase)
    bones = bones + rng.uniform(0.0, 0.1) * _bands(before * count * np.pi * 1.7 + phase)
    bones = bones * np.clip((0.75 - y) / 0.3, 0, 1) * np.clip((np.abs(x) - 0.05) / 0.1, 0, 1)
    rise = rng.uniform(0.05, 0.35)
    collar = np.abs(y + rng.uniform(0.5, 0.68) + rise * (np.abs(x) - 0.1))
    collar = np.exp(-((collar / rng.uniform(0.025, 0.045)) ** 4)) * (np.abs(x) > 0.06)
    bones = bones + rng.uniform(0.03, 0.18) * collar
    spine = np.exp(-((x / 0.09) ** 4)) * (1 + 0.3 * np.sin(y * rng.uniform(25, 40)))
    return bones + rng.uniform(0.0, 0.12) * spine


def _bands(angle: Float) -> Float:
    return np.clip(np.sin(angle), 0.2, 0.8) / 0.6 - 1 / 3


def _blurred(mask: NDArray[np.bool_], size: int, rng: np.random.Generator) -> Float:
    width = size / 256 * rng.uniform(0.8, 3.5)
    return ndimage.gaussian_filter(mask.astype(np.float32), width)


def _marks(image: Float, rng: np.random.Generator, size: int) -> Float:
    """The letter that says which side is which, more or less."""
    if rng.random() < 0.5:
        top, left = (int(size * rng.uniform(0.02, 0.15)), int(size * rng.uniform(0.02, 0.94)))
        tall, wide = max(size // 40, 2), max(size // 90, 1)
        image[top : top + tall, left : left + wide] = 0.95
        image[top + tall - wide : top + tall, left : left + 3 * wide] = 0.95
    return image
