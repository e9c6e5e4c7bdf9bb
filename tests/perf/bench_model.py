"""What a prompt costs the bundled model: the first on an image, and the next on the same one."""

import time

import numpy as np

PROMPTS = 40
WARM_UP = 5


def measure() -> dict[str, float]:
    """Milliseconds on a 512-pixel image, medians; and how much cheaper the second prompt is.

    As the worker does it: the file is decoded, the image embedded, the phrase (already known)
    looked up, the detector asked; the next prompt, a box, finds the embedding in memory.
    """
    from medsam3_model import MedSAM3
    from medsam3_model.embedding_cache import EmbeddingCache, TextCache
    from medsam3_model.image_io import read_image
    from tests.integration.conftest import image_file

    model = MedSAM3.from_pretrained("tiny")
    embeddings = EmbeddingCache(None, memory_bytes=2**30, disk_bytes=0)
    texts = TextCache()

    def prompt(index: int, boxes: list[list[float]] | None) -> float:
        content = files[index]
        started = time.perf_counter()
        embedding = embeddings.get(
            model, str(index), lambda: model.encode_image(read_image(content))
        )
        model.detect(embedding, texts.get(model, ["brain"]), boxes=boxes)
        return time.perf_counter() - started

    files = [image_file(index, 512, 512) for index in range(PROMPTS)]
    first, following = [], []
    for index in range(PROMPTS):
        first.append(prompt(index, None))
        following.append(prompt(index, [[100.0 + index, 100.0, 300.0, 300.0]]))
    first_ms, next_ms = (1000 * float(np.median(one[WARM_UP:])) for one in (first, following))
    return {
        "tiny_first_prompt_ms": round(first_ms, 1),
        "tiny_next_prompt_ms": round(next_ms, 1),
        "second_prompt_speedup": round(first_ms / next_ms, 2),
    }
