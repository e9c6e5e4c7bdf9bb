"""The U-Net that the simulation compares with is an extra."""

import pytest

from backend.errors import BackendError
from backend.simulation import baseline_unet


def test_without_monai_the_command_that_installs_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    baseline_unet.check_installed()
    monkeypatch.setattr(baseline_unet, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"pip install .*\[simulate\]"):
        baseline_unet.check_installed()
