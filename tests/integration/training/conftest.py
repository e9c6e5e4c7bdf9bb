"""A small model for all tests of training, and a project whose annotator marks discs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.processes.redis_server import RedisServer
from tests.support.training_stage import TrainingStage, small_bundle, training_stage


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that is served, and trained from."""
    return small_bundle(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def stage(redis_server: RedisServer, data_dir: Path, model: Path) -> Iterator[TrainingStage]:
    """A stage whose gate is content with four images."""
    with training_stage(data_dir, model, gate_min_images=4) as opened:
        yield opened
