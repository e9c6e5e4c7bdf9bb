"""Prompts to the bundled model: the cost of the first on an image, and of the next on the same."""

import time

import numpy as np

PROMPTS = 40
WARM_UP = 5


def measure() -> dict[str, float]:
    """Milliseconds on a 512-pixel image, medians; and how much cheaper the second prompt is.

    As the worker does it: the file is decoded, the image embedded, the phrase (already known)
    looked up, the detector asked; the next prompt, a box, finds the embedding in memory. A small
    box has the image looked at once more, closer.
    """
    from medsam3_model import MedSAM3
    from medsam3_model.embedding_cache import EmbeddingCache, TextCache
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
            model, str(index), lambda: model.encode_image(read_image(content))
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
    first_ms, next_ms, small_ms = (
        1000 * float(np.median(one[WARM_UP:])) for one in (first, following, small)
    )
    return {
        "tiny_first_prompt_ms": round(first_ms, 1),
        "tiny_next_prompt_ms": round(next_ms, 1),
        "tiny_small_box_ms": round(small_ms, 1),
        "second_prompt_speedup": round(first_ms / next_ms, 2),
        "tiny_bundle_mb": round(_bundle_mb(), 2),
    }


def _bundle_mb() -> float:
    """Size of the files that ship with the package, 10^6 bytes."""
    from medsam3_model.checkpoints.presets import bundled_weights

    return sum(path.stat().st_size for path in bundled_weights("tiny").iterdir()) / 1e6
