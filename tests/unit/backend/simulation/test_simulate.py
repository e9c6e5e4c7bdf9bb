"""What `medsam3 simulate` refuses to play."""

from pathlib import Path

import pytest

from backend.errors import BackendError
from backend.simulation.simulate import SimulationOptions, simulate


def test_a_strategy_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    options = SimulationOptions(data=tmp_path, strategies=("random", "diversity"))
    with pytest.raises(BackendError, match="no strategy 'diversity'; there are uncert"):
        simulate(options, tmp_path / "out", print)
