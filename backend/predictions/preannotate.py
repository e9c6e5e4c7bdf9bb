"""Pre-annotation: a project's tasks get a prediction of the version in service.

The command asks Label Studio for the tasks itself; the console has an ingest worker ask, so the web
process knows no Label Studio. Either way every task has its row before its first job runs.
"""

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, and_, select, update
from sqlalchemy.orm import Session

from backend.database import chunked, now_in
from backend.errors import BackendError, QueueError
from backend.labeling.config import quoted
from backend.models import versions
from backend.people import audit
from backend.predictions.asked_labels import check_labels, without_labels
from backend.predictions.requests import latest_first, request_pushes
from backend.processes.counters import read_counters
from backend.processes.queues import Handler, QueueName, enqueue
from backend.services import Services, current_services
from backend.tables import Delivery, Suggestion, SuggestionState

log = logging.getLogger(__name__)

POLL_S = 0.5
# How often a project's pre-annotation was cancelled: what was asked for before that ends.
_CANCELLED_KEY = "medsam3:preannotation-cancelled:{}"
# Label Studio answers page by page, and a project may have any number of them.
_NO_END = -1


@dataclass(frozen=True)
class PreannotateOptions:
    """Which of the tasks without a prediction of the version in service to predict.

    Attributes:
        limit: the first so many, by id; None: all.
        unlabelled: only tasks without annotations.
        labels: only regions of these labels, by value; also for tasks whose prediction was made
            without them, and what it has of other labels stays. Empty: all labels.

    Raises:
        BackendError: the limit is no number of tasks.
    """

    limit: int | None = None
    unlabelled: bool = False
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.limit is not None and self.limit < 1:
            raise BackendError("The limit is a number of tasks from 1; leave it out for all tasks.")
        object.__setattr__(self, "labels", tuple(dict.fromkeys(self.labels)))

    def __str__(self) -> str:
        which = "unlabelled tasks" if self.unlabelled else "tasks"
        which = f"all {which}" if self.limit is None else f"the first {self.limit} {which}"
        return f"{which}, only {quoted(self.labels)}" if self.labels else which


EVERYTHING = PreannotateOptions()


@dataclass(frozen=True)
class PreannotationProgress:
    """How far a project is, in tasks: the other numbers add up to `total` at the end."""

    total: int
    predicted: int
    failed: int
    cancelled: int = 0

    @property
    def done(self) -> int:
        """Tasks that are not under way any more."""
        return self.predicted + self.failed + self.cancelled


@dataclass(frozen=True)
class PreannotateReport:
    """What came of it.

    Attributes:
        errors: a task's id → the sentence that says why it failed.
        embeddings_kept: images, and parts of images, that all workers did not encode meanwhile,
            because a cache had their embeddings; None: Redis did not say.
        embeddings_made: those that they encoded.
    """

    model_version: str
    progress: PreannotationProgress
    errors: dict[int, str]
    embeddings_kept: int | None = None
    embeddings_made: int | None = None


def preannotate(
    services: Services,
    project_id: int,
    options: PreannotateOptions = EVERYTHING,
    *,
    on_progress: Callable[[PreannotationProgress], None] = lambda progress: None,
    timeout_s: float | None = None,
) -> PreannotateReport:
    """Have tasks without a prediction of the version in service predicted and pushed.

    Asked for some labels only, it is the tasks without a prediction of these.

    The rows are in the database before the first job runs, so the command may be interrupted: the
    workers go on, and running it again adds nothing twice.

    Args:
        services: database and Redis.
        project_id: Label Studio's project.
        options: which tasks.
        on_progress: called about twice a second.
        timeout_s: stop waiting (not working) after this long; None waits until all is done.

    Raises:
        LabelStudioError: the project or its tasks cannot be read.
        BackendError: `timeout_s` went by, or the project has no such label.
    """
    version = versions.in_service(services, project_id)
    ids: list[str] = []
    cancelled_before = _times_cancelled(services.redis, project_id)
    counted = _counters(services)
    count = _Count(services)
    for batch in _ask(services, project_id, options, cancelled_before, is_recorded=False):
        ids += batch
        count.add(batch)
        on_progress(count.now())
    deadline = time.monotonic() + timeout_s if timeout_s is not None else None
    while (progress := count.now()).done < progress.total:
        on_progress(progress)
        if deadline is not None and time.monotonic() > deadline:
            raise BackendError(
                f"{progress.total - progress.done} of {progress.total} tasks are not predicted "
                "yet; is a GPU worker running (`medsam3 doctor`)? They stay queued."
            )
        time.sleep(POLL_S)
    on_progress(progress)
    kept = made = None
    if counted is not None and (counts := _counters(services)) is not None:
        kept, made = counts[0] - counted[0], counts[1] - counted[1]
    return PreannotateReport(version, progress, _errors(services, ids), kept, made)


def _counters(services: Services) -> tuple[int, int] | None:
    """Embeddings that caches had, and those that were made, so far; None: Redis is away."""
    try:
        counts = read_counters(services.redis)
    except RedisError:
        return None
    kept = sum(counts.get(f"embedding_{where}_hits", 0) for where in ("memory", "disk"))
    return int(kept), int(counts.get("embedding_misses", 0))


def request_preannotation(
    services: Services, project_id: int, options: PreannotateOptions = EVERYTHING
) -> None:
    """Have an ingest worker do what `preannotate` does, without waiting for it.

    Raises:
        QueueError: Redis cannot be reached; nothing is asked for.
    """
    cancelled_before = _times_cancelled(services.redis, project_id)
    text = json.dumps(asdict(options))
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    with services.database.session() as session:
        _record(session, services, project_id, options)
        # In the transaction: where Redis is away, nothing was asked for and no entry says so.
        enqueue(
            services.redis,
            QueueName.INGEST,
            Handler.PREANNOTATE,
            [str(project_id), text, str(cancelled_before)],
            job_id=f"preannotate-{project_id}-{name}-{cancelled_before}",
            timeout_s=_NO_END,
        )


def start_preannotation(arguments: Sequence[str]) -> None:
    """Handler on queue `ingest`: the project, the options as JSON, cancellations until then."""
    project_id, options, cancelled_before = arguments
    count = sum(
        len(batch)
        for batch in _ask(
            current_services(),
            int(project_id),
            PreannotateOptions(**json.loads(options)),
            int(cancelled_before),
            is_recorded=True,
        )
    )
    log.info("pre-annotation of project %s: %s tasks", project_id, count)


def cancel(services: Services, project_id: int) -> int:
    """End a project's pre-annotation: what waits is cancelled, what is under way finishes.

    That is also what a promotion asked for, and what Label Studio asked for in vain so far. An
    annotator's prompts, the rest of stacks and an agent's looks go on.

    Returns:
        How many waiting tasks were cancelled.

    Raises:
        QueueError: Redis cannot be reached; nothing is cancelled.
    """
    try:
        # First: whoever is asking Label Studio for tasks hears of it after the batch at hand.
        services.redis.incr(_CANCELLED_KEY.format(project_id))
    except RedisError as error:
        raise QueueError(
            f"Redis does not answer ({type(error).__name__}); nothing is cancelled: try again."
        ) from error
    with services.database.session() as session:
        count = _cancel_rows(session, Suggestion.project_id == project_id)
        audit.record(
            session,
            audit.AuditedAction.CANCEL_PREANNOTATION,
            project_id=project_id,
            subject=f"{count} waiting task{'' if count == 1 else 's'}",
        )
    return count


def waits() -> ColumnElement[bool]:
    """The condition of rows of pre-annotation that wait for a worker: `cancel` cancels them."""
    return and_(
        Suggestion.state == SuggestionState.QUEUED,
        Suggestion.delivery == Delivery.PUSH,
        Suggestion.interactive.is_(False),
        # The rest of a stack says here what it is drawn from.
        Suggestion.context.is_(None),
    )


def _ask(
    services: Services,
    project_id: int,
    options: PreannotateOptions,
    cancelled_before: int,
    *,
    is_recorded: bool,
) -> Iterator[list[str]]:
    """Make rows of tasks, batch by batch, until there are no more or somebody cancels it."""
    # Only commands and workers need the client; the web process stays smaller.
    from backend.label_studio.client import LabelStudio

    if _times_cancelled(services.redis, project_id) > cancelled_before:
        return
    with LabelStudio.from_settings(services.settings) as client:
        project = client.project(project_id)
        version = versions.in_service(services, project_id)
        tasks = client.tasks_without_version(project_id, version, unlabelled=options.unlabelled)
        if options.labels:
            check_labels(project["label_config"], options.labels)
            others = client.tasks_with_version(project_id, version, unlabelled=options.unlabelled)
            tasks = chain(
                tasks, without_labels(services, project_id, version, options.labels, others)
            )
        if not is_recorded:
            with services.database.session() as session:
                _record(session, services, project_id, options)
        wanted, _ = latest_first(services, project_id, islice(tasks, options.limit))
        config = project["label_config"]
        for batch in request_pushes(services, wanted, project_id, config, options.labels):
            yield batch
            if _times_cancelled(services.redis, project_id) > cancelled_before:
                # The cancellation may have been just before the batch was written.
                with services.database.session() as session:
                    _cancel_rows(session, Suggestion.id.in_(batch))
                return


def _record(
    session: Session, services: Services, project_id: int, options: PreannotateOptions
) -> None:
    audit.record(
        session,
        audit.AuditedAction.PREANNOTATE,
        project_id=project_id,
        subject=versions.in_service(services, project_id),
        detail=str(options),
    )


def _times_cancelled(redis: Redis, project_id: int) -> int:
    """How often the project's pre-annotation was cancelled, as far as Redis remembers."""
    try:
        return int(redis.get(_CANCELLED_KEY.format(project_id)) or 0)  # type: ignore[arg-type]
    except RedisError:
        # What cannot be reached cancels nothing either.
        return 0


def _cancel_rows(session: Session, which: ColumnElement[bool]) -> int:
    """Cancel those of the rows that wait: a worker that takes one at this moment keeps it."""
    cancelled = session.scalars(
        update(Suggestion)
        .where(which, waits())
        .values(
            state=SuggestionState.CANCELLED,
            delivery=Delivery.NONE,
            finished_at=now_in(session),
            active_key=None,
            lease_until=None,
            task_data={},
        )
        .returning(Suggestion.id)
        .execution_options(synchronize_session=False)
    )
    return len(cancelled.all())


class _Count:
    """How far rows are, whose number grows: a row that has ended is not asked about again."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._under_way: dict[str, None] = {}
        self._ended: Counter[str] = Counter()

    def add(self, ids: Sequence[str]) -> None:
        """Count these rows, too."""
        self._under_way.update(dict.fromkeys(ids))

    def now(self) -> PreannotationProgress:
        """Read what has become of them.

        They are predicted about in the order in which they were asked for. So the reading ends with
        the first chunk of which nothing has ended: what comes after it is counted a little later.
        """
        with self._services.database.reading() as session:
            for chunk in chunked(self._under_way):
                ended = _ended(session, chunk)
                for id_, how in ended.items():
                    self._ended[how] += 1
                    del self._under_way[id_]
                if not ended:
                    break
        total = len(self._under_way) + self._ended.total()
        counts = (self._ended[how] for how in ("predicted", "failed", "cancelled"))
        return PreannotationProgress(total, *counts)


def _ended(session: Session, ids: list[str]) -> dict[str, str]:
    """Those of the rows that are not under way any more: `predicted`, `failed` or `cancelled`."""
    ended: dict[str, str] = {}
    rows = session.execute(
        select(
            Suggestion.id, Suggestion.state, Suggestion.delivery, Suggestion.error.is_not(None)
        ).where(Suggestion.id.in_(ids))
    )
    for id_, state, delivery, has_error in rows:
        if state == SuggestionState.CANCELLED:
            ended[id_] = "cancelled"
        elif state == SuggestionState.FAILED or (has_error and delivery == Delivery.NONE):
            ended[id_] = "failed"
        elif delivery in (Delivery.DELIVERED, Delivery.ANSWERED):
            ended[id_] = "predicted"
    return ended


def _errors(services: Services, ids: list[str]) -> dict[int, str]:
    with services.database.reading() as session:
        return {
            task_id: error
            for chunk in chunked(ids)
            for task_id, error in session.execute(
                select(Suggestion.task_id, Suggestion.error).where(
                    Suggestion.id.in_(chunk), Suggestion.error.is_not(None)
                )
            )
            if task_id is not None and error is not None
        }
