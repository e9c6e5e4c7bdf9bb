"""Pre-annotation: a project's tasks get a prediction of the version in service.

The command asks Label Studio for the tasks itself; the console has an ingest worker ask, so the web
process knows no Label Studio. Either way the wish has a row before anybody asks, and every task has
its row before its first job runs. Who dies while asking leaves a lease that ends: a worker goes on.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from itertools import chain, islice
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from backend.database import chunked, now_in
from backend.errors import (
    BackendError,
    LabelStudioAuthError,
    LabelStudioUnavailableError,
    QueueError,
)
from backend.models import versions
from backend.people import audit
from backend.predictions.asked_labels import check_labels, without_labels
from backend.predictions.leased_rows import claim, ours, put_back, renew
from backend.predictions.preannotate_options import EVERYTHING, PreannotateOptions
from backend.predictions.preview import request_sample
from backend.predictions.requests import (
    UNFINISHED,
    database_time,
    latest_first,
    request_pushes,
)
from backend.predictions.tables import Preannotation
from backend.processes.counters import read_counters
from backend.processes.leases import renewing
from backend.processes.queues import Handler, QueueName, enqueue, waiting_row_ids
from backend.processes.stopping import stopping
from backend.services import Services, current_services
from backend.tables import Delivery, Suggestion, SuggestionState

log = logging.getLogger(__name__)

POLL_S = 0.5
# How long a wish waits while Label Studio is away.
RETRY_LATER_S = 30
# A wish this young may belong to somebody who has not queued its job yet.
SETTLING_S = 5.0
# Label Studio answers page by page, and a project may have any number of them.
_NO_END = -1


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
    counted = _counters(services)
    count = _Count(services)
    with services.database.session() as session:
        wish = _add(session, services, project_id, options)
    (row,) = claim(services, Preannotation, [wish])
    with _at_work(services, row, may_wait=False):
        for batch in _ask(services, row):
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
    """Have an ingest worker do what `preannotate` does; where Redis is away, it does so later."""
    with services.database.session() as session:
        wish = _add(session, services, project_id, options)
    try:
        _enqueue(services, wish, 0)
    except QueueError as error:
        log.warning("%s", error)


def start_preannotation(ids: Sequence[str]) -> None:
    """Handler on queue `ingest`: ask for the tasks of wishes that nobody else is at work on."""
    services = current_services()
    for row in claim(services, Preannotation, ids):
        try:
            with _at_work(services, row, may_wait=True):
                count = sum(len(batch) for batch in _ask(services, row))
        except BackendError as error:
            # What becomes of the wish is in its row.
            log.warning("pre-annotation of project %s: %s", row.project_id, error)
        else:
            log.info("pre-annotation of project %s: %s tasks", row.project_id, count)


def recover_wishes(services: Services) -> int:
    """Queue again the wishes that a killed worker or an emptied Redis left; returns how many.

    Raises:
        QueueError: Redis cannot be reached; nothing is lost, the next call does it.
    """
    limit = services.settings.max_attempts
    with services.database.session() as session:
        moment = now_in(session)
        abandoned = and_(
            Preannotation.state == SuggestionState.RUNNING, Preannotation.lease_until < moment
        )
        session.execute(
            update(Preannotation)
            .where(abandoned, Preannotation.attempts >= limit)
            .values(
                state=SuggestionState.FAILED,
                finished_at=moment,
                error=f"who asked Label Studio for its tasks died {limit} times; look at the "
                "ingest workers' log and memory, then ask for the pre-annotation again",
            )
        )
        due = or_(Preannotation.lease_until.is_(None), Preannotation.lease_until < moment)
        settled = Preannotation.created_at < moment - timedelta(seconds=SETTLING_S)
        forgotten = and_(Preannotation.state == SuggestionState.QUEUED, due, settled)
        wishes = session.execute(
            select(Preannotation.id, Preannotation.attempts)
            .where(or_(abandoned, forgotten))
            .order_by(Preannotation.created_at)
            .limit(100)
        ).all()
    if not wishes:
        return 0
    waiting = waiting_row_ids(services.redis, QueueName.INGEST, [wish.id for wish in wishes])
    wishes = [wish for wish in wishes if wish.id not in waiting]
    for wish in wishes:
        _enqueue(services, wish.id, wish.attempts)
    return len(wishes)


def cancel(services: Services, project_id: int) -> int:
    """End a project's pre-annotation: what waits is cancelled, what is under way finishes.

    That is also what a promotion asked for, and what Label Studio asked for in vain so far. An
    annotator's prompts, the rest of stacks and an agent's looks go on.

    Returns:
        How many waiting tasks were cancelled.
    """
    with services.database.session() as session:
        # First: whoever is asking Label Studio for tasks hears of it after the batch at hand.
        session.execute(
            update(Preannotation)
            .where(Preannotation.project_id == project_id, Preannotation.state.in_(UNFINISHED))
            .values(state=SuggestionState.CANCELLED, finished_at=now_in(session), lease_until=None)
        )
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


def _add(session: Session, services: Services, project_id: int, options: PreannotateOptions) -> str:
    """Write a wish down, and that somebody has it; returns its id."""
    wish = Preannotation(project_id=project_id, options=asdict(options), created_at=now_in(session))
    session.add(wish)
    session.flush()
    audit.record(
        session,
        audit.AuditedAction.PREANNOTATE,
        project_id=project_id,
        subject=versions.in_service(services, project_id),
        detail=str(options),
    )
    return wish.id


def _enqueue(services: Services, wish: str, attempts: int) -> None:
    enqueue(
        services.redis,
        QueueName.INGEST,
        Handler.PREANNOTATE,
        [wish],
        # With the attempts in its name the job is another one than the one that died.
        job_id=f"preannotate-{wish}-{attempts}",
        timeout_s=_NO_END,
    )


@contextmanager
def _at_work(services: Services, row: Preannotation, *, may_wait: bool) -> Iterator[None]:
    """Hold a wish while the block asks for its tasks, and write down what becomes of it."""
    try:
        with renewing(
            partial(renew, services, Preannotation, [row]), services.settings.lease_s / 3
        ):
            yield
    except BackendError as error:
        is_away = isinstance(error, (LabelStudioUnavailableError, LabelStudioAuthError))
        if may_wait and is_away:
            put_back(services, Preannotation, row, wait_s=RETRY_LATER_S, error=f"waits: {error}")
        else:
            _end(services, row, state=SuggestionState.FAILED, error=str(error))
        raise
    except KeyboardInterrupt:
        _end(services, row, state=SuggestionState.CANCELLED)
        raise
    if stopping.is_set():
        put_back(services, Preannotation, row, wait_s=0)
    else:
        _end(services, row, state=SuggestionState.DONE, error=None)


def _end(services: Services, row: Preannotation, **values: Any) -> None:
    with services.database.session() as session:
        session.execute(
            update(Preannotation)
            .where(ours(Preannotation, row))
            .values(finished_at=now_in(session), lease_until=None, **values)
            .execution_options(synchronize_session=False)
        )


def _ask(services: Services, row: Preannotation) -> Iterator[list[str]]:
    """Make rows of tasks, batch by batch, until there are no more, or the wish is not ours."""
    # Only commands and workers need the client; the web process stays smaller.
    from backend.label_studio.client import LabelStudio
    from backend.label_studio.tabs import only_in_tab

    project_id, options = row.project_id, PreannotateOptions(**row.options)
    if options.sample:
        yield request_sample(services, project_id, options, row.id)
        return
    with LabelStudio.from_settings(services.settings) as client:
        project = client.project(project_id)
        version = versions.in_service(services, project_id)
        listed_at = database_time(services)
        tasks = client.tasks_without_version(project_id, version, unlabelled=options.unlabelled)
        if options.labels:
            check_labels(project["label_config"], options.labels)
            others = client.tasks_with_version(project_id, version, unlabelled=options.unlabelled)
            tasks = chain(
                tasks, without_labels(services, project_id, version, options.labels, others)
            )
        listed = islice(only_in_tab(client, project_id, options.tab, tasks), options.limit)
        wanted, _ = latest_first(services, project_id, listed)
        config = project["label_config"]
        for batch in request_pushes(
            services, wanted, project_id, config, options.labels, listed_at=listed_at
        ):
            yield batch
            with services.database.session() as session:
                state = session.scalar(
                    select(Preannotation.state).where(Preannotation.id == row.id)
                )
                if state == SuggestionState.CANCELLED:
                    # That may have been just before the batch was written.
                    _cancel_rows(session, Suggestion.id.in_(batch))
            if state != SuggestionState.RUNNING or stopping.is_set():
                return


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
            # Why it waited until now.
            error=None,
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
