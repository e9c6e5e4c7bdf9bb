"""What short runs of pre-training learn from."""

from collections.abc import Iterator

import pytest
import torch

from medsam3_model.pretraining import clicks, detector
from medsam3_model.pretraining.data import SourceImage, phantom_image


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[SourceImage]]]:
    """Two phantoms of two kinds; runs begin with few views, and torch's threads stay."""
    for module in (clicks, detector):
        monkeypatch.setattr(module, "_FIRST_VIEWS", 3)
    threads = torch.get_num_threads()
    yield {kind: [phantom_image(kind, seed) for seed in (0, 1)] for kind in ("shapes", "fundus")}
    torch.set_num_threads(threads)
