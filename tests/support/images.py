"""Image files that tests and benchmarks send around: noise, and noise with one bright shape."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# What `numpy` does for each EXIF orientation, read from the EXIF 2.32 table.
ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: np.rot90,
}


def png(pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> bytes:
    """A PNG file of a mask (H, W), of grey (H, W) or of RGB (H, W, 3) pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def noise_file(seed: int, height: int, width: int) -> bytes:
    """A grey PNG of noise; different for every seed."""
    return png(np.random.default_rng(seed).integers(0, 255, (height, width), np.uint8))


def ellipse_file(seed: int, height: int, width: int) -> bytes:
    """A grey PNG with one bright ellipse on noise; different for every seed."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    centre = random.uniform(0.35, 0.65, 2) * (height, width)
    distance = ((rows - centre[0]) / (height / 4)) ** 2 + ((columns - centre[1]) / (width / 4)) ** 2
    grey = random.integers(0, 40, (height, width)) + 150 * (distance < 1)
    return png(grey.astype(np.uint8))


def disc_file(seed: int, height: int = 96, width: int = 128) -> bytes:
    """An RGB PNG with one bright disc on noise; different for every seed."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    radius = min(height, width) / 5
    centre = random.uniform(radius, [height - radius, width - radius])
    inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
    grey = random.integers(30, 80, (height, width)) + 140 * inside
    return png(np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2))


def inline_image(seed: int, height: int = 96, width: int = 128) -> str:
    """A `data:` address of `ellipse_file`."""
    content = base64.b64encode(ellipse_file(seed, height, width)).decode()
    return f"data:image/png;base64,{content}"


def inline_tasks(count: int, first_id: int = 1) -> list[dict[str, object]]:
    """Label Studio's tasks with inline images."""
    return [
        {"id": first_id + index, "data": {"image": inline_image(first_id + index)}}
        for index in range(count)
    ]
