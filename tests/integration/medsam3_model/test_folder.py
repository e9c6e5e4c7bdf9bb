"""Fine-tuning on a folder, from the command line: a real step of the bundled model."""

from pathlib import Path

import pytest

from medsam3_model.checkpoints.detectors import load_detector
from medsam3_model.training import folder
from tests.support.discs import folder_of_discs


def test_the_command_writes_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of_discs(tmp_path / "discs", 4)
    out = tmp_path / "new.safetensors"
    command = ["--data", str(data), "--out", str(out), "--steps", "1", "--name", "discs"]
    folder.main([*command, "--prompt", "optic disc"])
    found = load_detector(out)
    assert (found.name, found.base) == ("discs", "tiny")
    assert capsys.readouterr().out.startswith(f"{out}: version discs-")
