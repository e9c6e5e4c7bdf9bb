"""Rows of training runs, one of them at work with its curve: for pages that show them."""

from datetime import timedelta

from backend.services import Services
from backend.tables import now
from backend.training.curves import CurvePoint, add_point
from backend.training.tables import RunState, Stage, TrainingRun, Trigger

RUNNING = "running"


def add_runs(services: Services, project_id: int = 7) -> None:
    """A run at work, named `RUNNING`, and three that ended: well, badly, and cancelled."""
    ended = {
        "done": {
            "state": RunState.DONE,
            "step": 120,
            "stopped": "patience",
            "validation_dice": 0.91,
            "candidate": f"tiny-p{project_id}-new",
        },
        "failed": {
            "state": RunState.FAILED,
            "error": "All 3 annotated images belong to groups that are kept for validation",
        },
        "cancelled": {"state": RunState.CANCELLED, "step": 7},
    }
    at_work = {
        "state": RunState.RUNNING,
        "stage": Stage.TRAINING,
        "active_key": str(project_id),
        "lease_until": now() + timedelta(days=1),
        "step": 40,
        "loss": 1.234,
        "validation_dice": 0.8,
        "eta_s": 200.0,
    }
    with services.database.session() as session:
        session.add_all(
            TrainingRun(
                id=name,
                project_id=project_id,
                trigger=Trigger.SCHEDULE,
                options={},
                steps=2000,
                created_at=now() - timedelta(hours=hours),
                **values,
            )
            for hours, (name, values) in enumerate({RUNNING: at_work, **ended}.items())
        )
    for step in range(1, 41):
        dice = 0.8 - 0.3 / step if step >= 10 else None
        add_point(services.redis, RUNNING, CurvePoint(step, 1.2 + 4 / step, dice))
