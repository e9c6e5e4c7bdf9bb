"""Prompts to the bundled model: the cost of the first on an image, and of the next on the same."""

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from medsam3_model import ImageEmbedding, MedSAM3
    from medsam3_model.types import Window

PROMPTS = 40
WARM_UP = 5


def measure() -> dict[str, float]:
    """Milliseconds on a 512-pixel image, medians; and how much cheaper the second prompt is.

    As the worker does it: the file is decoded, the image embedded, the phrase (already known)
    looked up, the detector asked; the next prompt, a box, finds the embedding in memory. A small
    box has the image looked at once more, closer.
    """
    from medsam3_model import MedSAM3
    from medsam3_model.embeddings.embedding_cache import EmbeddingCache, TextCache
    from medsam3_model.images.reading import read_image
    from medsam3_model.prompting import SpatialPrompt, segment_prompted
    from tests.support.images import ellipse_file

    model = MedSAM3.from_pretrained("tiny")
    embeddings = EmbeddingCache(None, memory_bytes=2**30, disk_bytes=0)
    texts = TextCache()

    def prompt(index: int, side: float) -> float:
        """Seconds for a square box of `side` pixels, or for text alone where that is 0."""
        content = files[index]
        started = time.perf_counter()
        embedding = embeddings.get(
            model, str(index), lambda: model.encode_image(read_image(content), rounded=True)
        )
        text = texts.get(model, ["brain"])
        if side:
            low = 100.0 + index
            box = np.array([[low, 100.0, low + side, 100.0 + side]], np.float32)
            drawn = SpatialPrompt(box, [1], np.zeros((0, 2), np.float32), [])
            segment_prompted(
                model,
                embedding,
                text,
                drawn,
                lambda part: model.encode_image(
                    read_image(content)[part[1] : part[3], part[0] : part[2]]
                ),
            )
        else:
            model.detect(embedding, text)
        return time.perf_counter() - started

    files = [ellipse_file(index, 512, 512) for index in range(PROMPTS)]
    first, following, small = [], [], []
    for index in range(PROMPTS):
        first.append(prompt(index, 0))
        following.append(prompt(index, 260))
        small.append(prompt(index, 100))
    clicks = _clicks(model, files)
    first_ms, next_ms, small_ms = (
        1000 * float(np.median(one[WARM_UP:])) for one in (first, following, small)
    )
    return {
        "tiny_first_prompt_ms": round(first_ms, 1),
        "tiny_next_prompt_ms": round(next_ms, 1),
        "tiny_small_box_ms": round(small_ms, 1),
        "tiny_click_ms": round(clicks, 1),
        "second_prompt_speedup": round(first_ms / next_ms, 2),
        "tiny_bundle_mb": round(_bundle_mb(), 2),
    }


def _clicks(model: "MedSAM3", files: list[bytes]) -> float:
    """Milliseconds of a click on an encoded image, the median of five clicks on each."""
    from medsam3_model.click_answers import ObjectPrompt, answer_object
    from medsam3_model.images.reading import read_image

    spent = []
    for content in files:
        pixels = read_image(content)
        image = model.encode_image(pixels)
        kept: dict[str, np.ndarray] = {}
        memory = SimpleNamespace(get=kept.get, put=kept.__setitem__)
        parts: dict[Any, Any] = {}

        def closer(
            part: "Window", pixels: np.ndarray = pixels, parts: dict[Any, Any] = parts
        ) -> "ImageEmbedding":
            if part not in parts:
                parts[part] = model.encode_image(pixels[part[1] : part[3], part[0] : part[2]])
            return parts[part]

        for count in range(1, 6):
            points = np.array([[256, 256], [230, 256], [256, 230], [280, 256], [256, 280]])
            drawn = points[:count].astype(np.float32)
            nothing = np.zeros((0, 512, 512), np.bool_)
            started = time.perf_counter()
            prompt = ObjectPrompt(drawn, [1] * count, None, nothing)
            answer_object(model.tracker, image, prompt, closer, memory)
            spent.append(time.perf_counter() - started)
    return 1000 * float(np.median(spent[WARM_UP:]))


def _bundle_mb() -> float:
    """Size of the files that ship with the package, 10^6 bytes."""
    from medsam3_model.checkpoints.presets import bundled_weights

    return sum(path.stat().st_size for path in bundled_weights("tiny").iterdir()) / 1e6
