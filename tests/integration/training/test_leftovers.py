"""What killed trainers leave of runs that ended."""

import os

from backend.services import Services
from backend.training.tables import RunState, TrainingRun, Trigger
from backend.training.trainer import remove_leftovers


def test_folders_of_ended_runs_go_when_they_are_old(services: Services) -> None:
    folder = services.settings.training_dir / "runs"
    with services.database.session() as session:
        for name in RunState:
            session.add(
                TrainingRun(id=name, project_id=1, trigger=Trigger.API, options={}, state=name)
            )
        young = TrainingRun(
            id="young", project_id=1, trigger=Trigger.API, options={}, state=RunState.FAILED
        )
        session.add(young)
    for name in (*RunState, "unknown", "young"):
        (folder / name).mkdir(parents=True)
        (folder / name / "detector.safetensors").touch()
        if name != "young":
            os.utime(folder / name, (0, 0))
    remove_leftovers(services)
    assert {path.name for path in folder.iterdir()} == {"queued", "running", "young"}
