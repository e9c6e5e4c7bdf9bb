"""Fine-tuning on cached embeddings: its cost, and what the bundled model forgets by it."""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from medsam3_model import MedSAM3
    from medsam3_model.training.fine_tuning import TrainingImage, TrainingProgress

# A new thing under a name that the bundled model was only ever asked for in vain.
NEW = "implant"
NEW_IMAGES = 20
STEPS_TIMED = 8
PHANTOMS_PER_KIND = 4
_UNSEEN = 1_000_000  # seeds of phantoms that are used nowhere else


def measure() -> dict[str, float]:
    """Ratios of wall-clock time, steps per second, and Dice that known concepts lose (0..1)."""
    from medsam3_model import MedSAM3

    model = MedSAM3.from_pretrained("tiny", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        return _speed(model, Path(folder)) | _forgetting(model, Path(folder))


def _speed(model: "MedSAM3", folder: Path) -> dict[str, float]:
    """The same steps with embeddings from the cache and with every view encoded each time."""
    from medsam3_model.embeddings.embedding_cache import EmbeddingCache

    def run(cache: EmbeddingCache) -> tuple[float, list[float]]:
        from medsam3_model.training.fine_tuning import fine_tune
        from medsam3_model.training.settings import TrainingSettings

        losses: list[float] = []
        ends: list[float] = []

        def note(progress: "TrainingProgress") -> None:
            losses.append(progress.loss)
            ends.append(time.perf_counter())

        settings = TrainingSettings(steps=STEPS_TIMED)
        images = [_file_image(folder / f"{seed}.png", seed) for seed in range(11)]
        fine_tune(
            model, images, name="b", base="tiny", cache=cache, settings=settings, on_progress=note
        )
        return float(np.median(np.diff(ends))), losses

    kept = EmbeddingCache(folder / "speed", memory_bytes=2**30, disk_bytes=2**31)
    run(kept)
    cached_s, cached = run(kept)
    encoded_s, encoded = run(EmbeddingCache(None, memory_bytes=0, disk_bytes=0))
    difference = np.abs(np.array(cached) / np.array(encoded) - 1).max()
    return {
        "finetune_cached_speedup": round(encoded_s / cached_s, 2),
        "finetune_cached_loss_difference": float(f"{difference:.2e}"),
        "tiny_train_steps_per_s": round(1 / cached_s, 2),
    }


def _forgetting(model: "MedSAM3", folder: Path) -> dict[str, float]:
    """A run as a project has it, of one new concept, with and without replay; how the mean Dice of
    the known ones falls."""
    from medsam3_model.embeddings.embedding_cache import EmbeddingCache
    from medsam3_model.training.fine_tuning import fine_tune
    from medsam3_model.training.replay import bundled_replay

    cache = EmbeddingCache(folder / "embeddings", memory_bytes=2**30, disk_bytes=2**33)
    known = _known_images()
    new = [_new_image(seed) for seed in range(_UNSEEN, _UNSEEN + 8)]
    before = _mean_dice(model, known)
    images = [_new_image(seed) for seed in range(NEW_IMAGES)]
    figures = {"forgetting_known_dice": before, "forgetting_new_before": _mean_dice(model, new)}
    for name, replay in (("with", bundled_replay()), ("without", ())):
        outcome = fine_tune(model, images, name="b", base="tiny", cache=cache, replay=replay)
        tuned = outcome.model
        figures[f"forgetting_steps_{name}_replay"] = outcome.steps
        figures[f"forgetting_{name}_replay"] = before - _mean_dice(tuned, known)
        figures[f"forgetting_new_{name}_replay"] = _mean_dice(tuned, new)
    return {name: round(value, 4) for name, value in figures.items()}


def _file_image(path: Path, seed: int) -> "TrainingImage":
    """A new image as annotators have them: a PNG file of 640×512 pixels."""
    from PIL import Image

    from medsam3_model.images.reading import read_image
    from medsam3_model.training.fine_tuning import TrainingImage

    image, mask = (Image.fromarray(one).resize((640, 512)) for one in _draw(seed))
    image.save(path)
    layer = np.asarray(mask).astype(np.int32)
    return TrainingImage(f"file-{seed}", partial(read_image, path), lambda: {NEW: layer})


def _new_image(seed: int) -> "TrainingImage":
    from medsam3_model.training.fine_tuning import TrainingImage

    return TrainingImage(
        f"{NEW}-{seed}",
        partial(_new_picture, seed),
        partial(_new_layers, seed),
    )


def _new_picture(seed: int) -> NDArray[np.uint8]:
    return _draw(seed)[0]


def _new_layers(seed: int) -> dict[str, NDArray[np.int32]]:
    return {NEW: _draw(seed)[1].astype(np.int32)}


def _draw(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A bright cross, somewhere, turned somehow, on grainy tissue; and its mask, (256, 256)."""
    from scipy import ndimage

    random = np.random.default_rng([seed, 7])
    rows, columns = np.mgrid[:256, :256].astype(np.float32)
    middle = random.uniform(70, 186, 2)
    angle, length = random.uniform(0, np.pi), random.uniform(30, 60)
    along = (columns - middle[0]) * np.cos(angle) + (rows - middle[1]) * np.sin(angle)
    across = (rows - middle[1]) * np.cos(angle) - (columns - middle[0]) * np.sin(angle)
    wide, far = length / 3, length
    cross = ((abs(along) < far) & (abs(across) < wide)) | (
        (abs(across) < far) & (abs(along) < wide)
    )
    tissue = ndimage.gaussian_filter(random.normal(0, 1, (256, 256)), 4) * 160 + 90
    grey = np.clip(np.where(cross, 215, tissue) + random.normal(0, 12, (256, 256)), 0, 255)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2), cross


def _known_images() -> list["TrainingImage"]:
    """Template slices that were never trained on, and phantoms of seeds that are not trained on."""
    from medsam3_model.data.template import demo_slices
    from medsam3_model.pretraining.phantoms.phantoms import PHANTOMS, phantom
    from medsam3_model.training.fine_tuning import TrainingImage
    from medsam3_model.training.replay import phantom_layers

    images = [
        TrainingImage(
            one.name,
            lambda one=one: one.image,  # type: ignore[misc]
            lambda one=one: {n: m.astype(np.int32) for n, m in one.masks.items()},  # type: ignore[misc]
        )
        for one in demo_slices(8)
    ]
    for kind in PHANTOMS:
        for seed in range(_UNSEEN, _UNSEEN + PHANTOMS_PER_KIND):
            if kind != "shapes":
                images.append(
                    TrainingImage(
                        f"{kind}-{seed}",
                        lambda kind=kind, seed=seed: phantom(kind, seed).image,  # type: ignore[misc]
                        partial(phantom_layers, kind, seed),
                    )
                )
    return images


def _mean_dice(model: "MedSAM3", images: list["TrainingImage"]) -> float:
    """Mean over concepts of the mean Dice by text, where the concept is in the image."""
    from medsam3_model.evaluation.metrics import dice

    scores: dict[str, list[float]] = {}
    for image in images:
        layers = {name: layer > 0 for name, layer in image.layers().items() if layer.any()}
        if not layers:
            continue
        found = model.detect_all(model.encode_image(image.read()), model.encode_text(list(layers)))
        for detections, (name, mask) in zip(found, layers.items(), strict=True):
            scores.setdefault(name, []).append(dice(detections.concept_mask()[0], mask))
    return float(np.mean([np.mean(values) for values in scores.values()]))
