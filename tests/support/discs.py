"""A small untrained model, and images of bright discs that it can learn."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import Sam3Model

from medsam3_model.checkpoints.presets import tiny_config
from medsam3_model.checkpoints.tokenizer import build_tokenizer
from medsam3_model.embeddings.embedding_cache import EmbeddingCache
from medsam3_model.predictor import MedSAM3
from medsam3_model.pretraining.initialisation import initialise
from medsam3_model.pretraining.phrases import all_phrases
from medsam3_model.training.fine_tuning import TrainingImage

SIDE = 72


def small_network() -> Sam3Model:
    """The tiny architecture, six layers deep, at 72 pixels; the same random weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Sam3Model(tiny_config(input_size=SIDE, layers=6))
        initialise(network)
    return network


def small_model() -> MedSAM3:
    """`small_network` with its tokenizer, ready to be asked."""
    tokenizer = build_tokenizer(all_phrases())
    return MedSAM3(small_network(), tokenizer, name="small", device="cpu", dtype="float32")


def disc(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One bright disc on noise, uint8 (72, 72, 3), and where it is."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    radius = random.uniform(SIDE / 6, SIDE / 4)
    centre = random.uniform(radius, SIDE - radius, 2)
    inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
    grey = random.integers(20, 60, (SIDE, SIDE)) + 150 * inside
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2), inside


def disc_image(seed: int) -> TrainingImage:
    """A disc that answers to "optic disc"; "optic cup" was looked for and is not there."""

    def layers(seed: int) -> dict[str, NDArray[np.int32]]:
        inside = disc(seed)[1].astype(np.int32)
        return {"optic disc": inside, "optic cup": np.zeros_like(inside)}

    return TrainingImage(f"disc-{seed}", partial(lambda s: disc(s)[0], seed), partial(layers, seed))


def folder_of_discs(root: Path, count: int) -> Path:
    """Files of discs and of their masks, which every second image has."""
    for part in ("images", "masks/disc"):
        (root / part).mkdir(parents=True)
    for seed in range(count):
        image, mask = disc(seed)
        Image.fromarray(image).save(root / "images" / f"{seed}.png")
        if seed % 2:
            Image.fromarray(mask).save(root / "masks/disc" / f"{seed}.png")
    return root


def cache_in(folder: Path | None) -> EmbeddingCache:
    """Room for all embeddings of a test; without a folder none is kept between two uses."""
    if folder is None:
        return EmbeddingCache(None, memory_bytes=0, disk_bytes=0)
    return EmbeddingCache(folder, memory_bytes=2**28, disk_bytes=2**30)
