"""Agent runs: which predictions a language model looks at, their rows, and what a day may cost.

A run's row is there before its job. The prediction that it begins with is delivered as always, so
whatever becomes of the run, the task has one.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from backend.agent.consent import check_consent
from backend.database import insert_or_ignore, now_in, retried
from backend.errors import AgentConsentError, AgentError, QueueError
from backend.labeling.config import LabelConfig
from backend.processes.queues import Handler, QueueName, enqueue, waiting_row_ids
from backend.services import Services
from backend.tables import AgentRun, Suggestion, SuggestionState, TrainingPolicy, new_id

log = logging.getLogger(__name__)

# A row this young may belong to a worker that has not queued its job yet.
SETTLING_S = 5.0
UNFINISHED = (SuggestionState.QUEUED, SuggestionState.RUNNING)


@dataclass(frozen=True)
class AgentQuestion:
    """One label on one page, as an agent is asked for it.

    Attributes:
        label: the value that regions carry.
        phrase: that the model is asked with.
        image: name of the `<Image>`; `page` of a multi-page one, or None.
        reference: the image's address; kept only while the run is under way.
        threshold: lowest score of the label, or None for the model's own.
        confidence: of the model's own answer, 0 to 1.
    """

    label: str
    phrase: str
    image: str
    page: int | None
    reference: str
    threshold: float | None
    confidence: float


def request_run(
    services: Services,
    row: Suggestion,
    config: LabelConfig,
    answered: Sequence[AgentQuestion],
    instruction: str = "",
) -> str | None:
    """Write down that an agent is to look at a prediction, if it may and if that pays.

    Args:
        services: database and settings.
        row: the prediction.
        config: its labeling config.
        answered: what it answers.
        instruction: what an annotator typed; then it always pays.

    Returns:
        The run's id, of which a job is to be queued; None where there is no run.
    """
    settings = services.settings
    # Without the key nothing could be brought to Label Studio later.
    may_answer = row.task_id is not None and settings.label_studio_api_key is not None
    if not answered or settings.agent_url is None or not may_answer:
        return None
    questions = list(answered)
    if not instruction:
        wanted = _labels(services, row.project_id, config)
        below = settings.agent_below
        questions = [
            q for q in answered if q.label in wanted and (q.confidence < below or below == 1)
        ]
        if not questions:
            return None
    try:
        check_consent(settings)
    except AgentConsentError as error:
        log.warning("no agent looks at task %s: %s", row.task_id, error)
        return None
    return _insert(services, row, questions, instruction)


@retried
def _insert(
    services: Services, row: Suggestion, questions: Sequence[AgentQuestion], instruction: str
) -> str:
    run = {
        "id": new_id(),
        "suggestion_id": row.id,
        "project_id": row.project_id,
        "task_id": row.task_id,
        "config_hash": row.config_hash,
        "model_version": row.model_version,
        "instruction": instruction,
        "questions": [asdict(question) for question in questions],
    }
    with services.database.session() as session:
        insert_or_ignore(session, AgentRun, run | {"created_at": now_in(session)})
        mine = select(AgentRun.id).where(AgentRun.suggestion_id == row.id)
        return session.scalars(mine).one()


def enqueue_run(services: Services, run_id: str, attempts: int = 0) -> None:
    """Queue a run's job; where Redis is away, `recover_runs` does it later."""
    try:
        # With the attempts in its name the job is another one than the one that died.
        job_id = f"agent-{run_id}-{attempts}"
        enqueue(services.redis, QueueName.AGENT, Handler.AGENT, [run_id], job_id=job_id)
    except QueueError as error:
        log.warning("%s", error)


def recover_runs(services: Services) -> int:
    """Queue again the runs that a killed worker or an emptied Redis left.

    Raises:
        QueueError: Redis cannot be reached; nothing is lost, the next call does it.
    """
    _give_up(services)
    with services.database.reading() as session:
        moment = now_in(session)
        due = or_(AgentRun.lease_until.is_(None), AgentRun.lease_until < moment)
        settled = AgentRun.created_at < moment - timedelta(seconds=SETTLING_S)
        abandoned = (AgentRun.state == SuggestionState.RUNNING) & (AgentRun.lease_until < moment)
        forgotten = (AgentRun.state == SuggestionState.QUEUED) & due & settled
        runs = session.execute(
            select(AgentRun.id, AgentRun.attempts)
            .where(or_(abandoned, forgotten))
            .order_by(AgentRun.created_at)
            .limit(1000)
        ).all()
    if not runs:
        return 0
    waiting = waiting_row_ids(services.redis, QueueName.AGENT)
    runs = [run for run in runs if run.id not in waiting]
    for run in runs:
        enqueue_run(services, run.id, run.attempts)
    return len(runs)


def _give_up(services: Services) -> None:
    """End the runs that took their worker down too often; the model's own prediction stands."""
    limit = services.settings.max_attempts
    with services.database.session() as session:
        moment = now_in(session)
        session.execute(
            update(AgentRun)
            .where(
                AgentRun.state == SuggestionState.RUNNING,
                AgentRun.lease_until < moment,
                AgentRun.attempts >= limit,
            )
            .values(
                state=SuggestionState.FAILED,
                finished_at=moment,
                error=f"the agent's worker died {limit} times on this task",
            )
        )


def check_budget(session: Session, services: Services, project_id: int) -> None:
    """Whether a project's agent may ask once more today.

    Raises:
        AgentError: the requests or tokens of the day are used up.
    """
    settings = services.settings
    midnight = now_in(session).replace(hour=0, minute=0, second=0, microsecond=0)
    requests, tokens = session.execute(
        select(
            func.coalesce(func.sum(AgentRun.requests), 0),
            func.coalesce(func.sum(AgentRun.prompt_tokens + AgentRun.completion_tokens), 0),
        ).where(AgentRun.project_id == project_id, AgentRun.asked_at >= midnight)
    ).one()
    if requests >= settings.agent_requests_per_day:
        raise AgentError(
            f"the project's requests of today are used up ({requests}, "
            "MEDSAM3_AGENT_REQUESTS_PER_DAY)"
        )
    if tokens >= settings.agent_tokens_per_day:
        raise AgentError(
            f"the project's tokens of today are used up ({tokens}, MEDSAM3_AGENT_TOKENS_PER_DAY)"
        )


def _labels(services: Services, project_id: int, config: LabelConfig) -> frozenset[str]:
    """The labels that an agent looks at: the project's word, else the labeling config's."""
    with services.database.reading() as session:
        policy = session.get(TrainingPolicy, project_id)
    if policy is None or policy.agent is None:
        return config.agent_labels
    return frozenset(label.value for label in config.labels) if policy.agent else frozenset()
