"""Options of a training run: the settings, overruled by the project's policy."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, cast

from sqlalchemy.orm import Session

from backend.settings import Consensus, Settings
from backend.tables import TrainingPolicy


@dataclass(frozen=True)
class RunOptions:
    """The values of one training run, stored with it; see `backend.settings` for their meaning.

    adapter: whether an adapter of the encoder's last blocks learns with the detector.
    """

    steps: int = 2000
    minutes: float = 10.0
    learning_rate: float | None = None
    seed: int = 0
    replay: bool = True
    consensus: Consensus = "latest"
    gate_min_images: int = 5
    gate_tolerance: float = 0.02
    auto_promote: bool = True
    adapter: bool = False

    def as_json(self) -> dict[str, Any]:
        """For the run's row."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RunOptions":
        """From a run's row; what this program does not know is ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True)
class Policy:
    """What holds for one project: its own choices, else the settings."""

    after_corrections: int
    schedule: str | None
    consensus: Consensus
    auto_promote: bool
    adapter: bool


def policy_of(session: Session, settings: Settings, project_id: int) -> Policy:
    """The policy of a project."""
    row = session.get(TrainingPolicy, project_id) or TrainingPolicy()
    # An empty schedule means none, and 0 and False are choices, too: only None is no choice.
    return Policy(
        after_corrections=_first(row.after_corrections, settings.train_after_corrections),
        schedule=_first(row.schedule, settings.train_schedule) or None,
        consensus=cast(Consensus, row.consensus or settings.consensus),
        auto_promote=_first(row.auto_promote, settings.auto_promote),
        adapter=bool(row.adapter),
    )


def options_of(
    session: Session, settings: Settings, project_id: int, **overrides: Any
) -> RunOptions:
    """The options of a run that starts now; `overrides` that are None count as not given."""
    policy = policy_of(session, settings, project_id)
    options = RunOptions(
        steps=settings.train_steps,
        minutes=settings.train_minutes,
        learning_rate=settings.learning_rate,
        seed=settings.train_seed,
        replay=settings.train_replay,
        consensus=policy.consensus,
        gate_min_images=settings.gate_min_images,
        gate_tolerance=settings.gate_tolerance,
        auto_promote=policy.auto_promote,
        adapter=policy.adapter,
    )
    return replace(options, **{name: v for name, v in overrides.items() if v is not None})


def _first(choice: Any, default: Any) -> Any:
    return default if choice is None else choice
