"""Metrics of training, read from its rows: they say the same whichever process is asked, and after
a trainer was killed. The web application adds them by name.
"""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.training.tables import RunState, TrainingRun

# Columns of `TrainingRun` that are shown while a run is at work.
_PROGRESS = {
    "step": ("medsam3_training_step", "Steps that the run at work has taken"),
    "steps": ("medsam3_training_steps", "Steps that it takes at most"),
    "loss": ("medsam3_training_loss", "Its loss"),
    "validation_dice": (
        "medsam3_training_validation_dice",
        "Mean Dice of the images that it spares, 0 to 1",
    ),
    "eta_s": ("medsam3_training_eta_seconds", "Seconds until it has taken all its steps"),
}


def training_metrics(session: Session) -> Iterator[Metric]:
    """Runs by state, and the progress of those at work by project."""
    runs = GaugeMetricFamily("medsam3_training_runs", "Training runs by state", labels=["state"])
    counted = dict(
        session.execute(select(TrainingRun.state, func.count()).group_by(TrainingRun.state)).all()
    )
    for state in RunState:
        runs.add_metric([state], counted.get(state, 0))
    yield runs
    at_work = session.scalars(
        select(TrainingRun)
        .where(TrainingRun.state == RunState.RUNNING)
        .order_by(TrainingRun.project_id)
    ).all()
    for column, (name, meaning) in _PROGRESS.items():
        progress = GaugeMetricFamily(name, meaning, labels=["project"])
        for run in at_work:
            if (value := getattr(run, column)) is not None:
                progress.add_metric([str(run.project_id)], value)
        yield progress
