"""Names of repositories on the hub, and which of their files are weights."""

import pytest

from medsam3_model.checkpoints import hub
from medsam3_model.errors import CheckpointError


@pytest.mark.parametrize("name", ["sam3", "a/b/c", "../etc", "me/", "/sam3"])
def test_what_is_no_repository_is_refused(name: str) -> None:
    assert not hub.is_repository(name)
    with pytest.raises(CheckpointError, match="is not a repository"):
        hub.download(name)


def test_repository_without_weights_is_refused() -> None:
    with pytest.raises(CheckpointError, match="neither safetensors"):
        hub.weights_patterns(["README.md", "sub/model.safetensors"])
    assert hub.weights_patterns(["sam3.pt", "notes.txt"]) == ("sam3.pt",)
