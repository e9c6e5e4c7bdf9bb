"""Checkpoints of the tiny reference model on disk, written once per run."""

from pathlib import Path

import pytest


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
