"""Checkpoints of the tiny reference model on disk, written once per run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from medsam3_model import MedSAM3


@pytest.fixture(scope="session")
def facebook_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the layout of facebook's `sam3.pt`."""
    from tests.support import sam3_reference

    return sam3_reference.write_facebook_checkpoint(tmp_path_factory.mktemp("facebook"))


@pytest.fixture(scope="session")
def adapter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA file with the layout of MedSAM3-v1's."""
    import torch

    from tests.support import sam3_reference

    path = tmp_path_factory.mktemp("adapter") / "best_lora_weights.pt"
    torch.save(sam3_reference.adapter_tensors(), path)
    return path


@pytest.fixture(scope="session")
def hugging_face_folder(
    tmp_path_factory: pytest.TempPathFactory, facebook_checkpoint: Path
) -> Path:
    """The same weights as transformers itself saves them."""
    from medsam3_model.checkpoints import loading
    from tests.support import sam3_reference

    folder = tmp_path_factory.mktemp("hugging-face") / "sam3-tiny"
    loaded = loading.load_model(facebook_checkpoint, config=sam3_reference.config())
    loaded.model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def video_model(tmp_path_factory: pytest.TempPathFactory) -> MedSAM3:
    """The model of a file as facebook's `sam3.pt`, with the tracker and its memory."""
    import torch

    from medsam3_model import MedSAM3
    from tests.support import sam3_reference

    path = tmp_path_factory.mktemp("video") / "sam3.pt"
    tensors = sam3_reference.facebook_tensors() | sam3_reference.tracker_tensors()
    torch.save({"model": tensors}, path)
    return MedSAM3.from_pretrained(path, config=sam3_reference.video_config(), device="cpu")
