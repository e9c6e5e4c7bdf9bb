"""A CT of 512 x 512 x 300 voxels: until its first page, its slices' masks, and the memory of both.

In a process of its own, so that only the volume counts beside the model.
"""

import json
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIZE = (512, 512, 300)


def measure() -> dict[str, float]:
    """Seconds to the first page; slices a second by text, and by propagation; memory in MB."""
    said = subprocess.run(
        [sys.executable, "-m", "tests.perf.bench_volumes"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    figures: dict[str, float] = json.loads(said.stdout.splitlines()[-1])
    return figures


def _measured() -> dict[str, float]:
    from medsam3_model import MedSAM3
    from medsam3_model.images.limits import DEFAULT_LIMITS
    from medsam3_model.images.reading import read_image
    from medsam3_model.images.rendering import SourceStack, StackOptions, png
    from medsam3_model.images.stacks import find_stacks
    from medsam3_model.types import ImageEmbedding
    from medsam3_model.video.slices import CorrectedSlice
    from medsam3_model.video.stacks import propagate_stack

    model = MedSAM3.from_pretrained("tiny", device="cpu")
    text = model.encode_text(["liver"])
    model.detect_all(model.encode_image(np.zeros((512, 512, 3), np.uint8)), text)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ct.nii"
        middle = _write_ct(path)
        before = _memory_mb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        started = time.perf_counter()
        (stack,) = find_stacks(path, StackOptions(), DEFAULT_LIMITS)
        assert isinstance(stack, SourceStack)
        pages = stack.pages()
        first = next(pages)
        first_page_s = time.perf_counter() - started
        for place, page in enumerate(chain([first], pages)):
            (Path(folder) / f"{place}.png").write_bytes(png(page))
        count = stack.geometry.pages
        # What a worker does with a page: fetched, decoded, embedded; a few are kept.
        picture = lru_cache(4)(lambda place: read_image(Path(folder) / f"{place}.png"))

        @lru_cache(4)
        def encoded(place: int) -> ImageEmbedding:
            return model.encode_image(picture(place))

        started = time.perf_counter()
        for place in range(0, count, 5):
            model.detect_all(encoded(place), text)
        by_text_s = (time.perf_counter() - started) / len(range(0, count, 5))
        started = time.perf_counter()
        corrected = [CorrectedSlice(count // 2, 1, middle)]
        drawn = sum(
            1
            for _ in propagate_stack(
                model, encoded, count, corrected, texts={1: text}, pictures=picture
            )
        )
        return {
            "volume_first_page_s": round(first_page_s, 2),
            "volume_text_slices_per_s": round(1 / by_text_s, 1),
            "volume_slices_per_s": round(drawn / (time.perf_counter() - started), 1),
            "volume_rss_mb": round(_memory_mb("VmHWM") - before, 1),
        }


def _write_ct(path: Path) -> NDArray[np.bool_]:
    """An organ of 60 HU in a body of 0 HU, with noise; its mask on the middle page."""
    import nibabel

    rng = np.random.default_rng(0)
    volume = rng.normal(0, 20, SIZE).astype(np.int16)
    x, y, z = np.ogrid[: SIZE[0], : SIZE[1], : SIZE[2]]
    organ = ((x - 200) / 90) ** 2 + ((y - 260) / 70) ** 2 + ((z - 150) / 110) ** 2 < 1
    body = ((x - 256) / 220) ** 2 + ((y - 256) / 170) ** 2 < 1
    volume[~np.broadcast_to(body, SIZE)] = -1000
    volume[organ] += 60
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-0.8, -0.8, 1, 1])), path)
    return np.ascontiguousarray(organ[:, :, SIZE[2] // 2].T)


def _memory_mb(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(key)


if __name__ == "__main__":
    print(json.dumps(_measured()))
