"""A project's own choices for training: what may be chosen, checked once for API and console."""

from pydantic import Field, field_validator

from backend.people import audit
from backend.services import Services
from backend.settings import Consensus, Strategy, checked_schedule
from backend.tables import LARGEST_INTEGER, TrainingPolicy
from backend.web.requests import Body


class PolicyChoices(Body):
    """Choices of a project; None stands for the setting of the same meaning.

    Attributes: see `backend.tables.TrainingPolicy`.
    """

    after_corrections: int | None = Field(
        None, ge=0, le=LARGEST_INTEGER, description="So many start a run; 0: none by itself."
    )
    schedule: str | None = Field(
        None, max_length=100, description="A cron line, UTC; an empty text for none."
    )
    strategy: Strategy | None = Field(
        None, description="Tasks that come first, from the next promotion or `connect` on."
    )
    consensus: Consensus | None = None
    auto_promote: bool | None = None
    agent: bool | None = Field(
        None,
        description="Whether an agent looks at uncertain tasks, for all labels or for none; null: "
        'for the labels that say `mode="agent"`.',
    )
    adapter: bool | None = Field(
        None,
        description="Whether runs train an adapter of the encoder's last blocks, too; null: no.",
    )

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, value: str | None) -> str | None:
        return checked_schedule(value) if value else value


def choices_of(row: TrainingPolicy | None) -> PolicyChoices:
    """What is stored, which was checked when it came in; nothing is chosen without a row."""
    names = PolicyChoices.model_fields
    return PolicyChoices.model_construct(**{name: getattr(row, name, None) for name in names})


def choose(services: Services, project_id: int, changes: PolicyChoices) -> PolicyChoices:
    """Store the choices that were made, those that were set to None too; returns all of them."""
    with services.database.session() as session:
        row = session.get(TrainingPolicy, project_id) or TrainingPolicy(project_id=project_id)
        for name, value in changes.model_dump(exclude_unset=True).items():
            setattr(row, name, value)
        session.add(row)
        session.flush()
        audit.record(session, audit.AuditedAction.SET_POLICY, project_id=project_id)
        return choices_of(row)
