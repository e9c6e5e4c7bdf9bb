"""What a prompt costs the bundled model: the first on an image, and the next on the same one."""

import time

import numpy as np

PROMPTS = 30


def measure() -> dict[str, float]:
    """Milliseconds on a 512-pixel image, medians; and how much cheaper the second prompt is."""
    from medsam3_model import MedSAM3

    model = MedSAM3.from_pretrained("tiny")
    random = np.random.default_rng(0)
    first, following = [], []
    for index in range(PROMPTS):
        image = random.integers(0, 255, (512, 512, 3), dtype=np.uint8)
        started = time.perf_counter()
        embedding = model.encode_image(image)
        model.detect(embedding, model.encode_text(["brain"]))
        first.append(time.perf_counter() - started)
        started = time.perf_counter()
        box = [[100.0 + index, 100.0, 300.0, 300.0]]
        model.detect(embedding, model.encode_text(["white matter"]), boxes=box)
        following.append(time.perf_counter() - started)
    first_ms, next_ms = (1000 * float(np.median(one)) for one in (first, following))
    return {
        "tiny_first_prompt_ms": round(first_ms, 1),
        "tiny_next_prompt_ms": round(next_ms, 1),
        "second_prompt_speedup": round(first_ms / next_ms, 2),
    }
