"""Small pictures and masks for data sets, and how tests save them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

H, W = 40, 60


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def picture(height: int = H, width: int = W) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def spots(height: int = H, width: int = W) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[5:15, 10:20] = mask[20:30, 30:50] = True
    return mask
