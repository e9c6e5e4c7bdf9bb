"""The jobs of predictions: each takes ids of rows, claims them, and may be called twice."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from redis.exceptions import RedisError
from sqlalchemy import case, select, update
from sqlalchemy.exc import InterfaceError, OperationalError

from backend.database import retried
from backend.errors import (
    BackendError,
    ImageUnavailableError,
    LabelStudioUnavailableError,
    QueueError,
    StorageUnavailableError,
    unforeseen,
)
from backend.labeling.config import parse_label_config
from backend.predictions.agent_runs import enqueue_run, request_run
from backend.predictions.leased_rows import claim, ours, put_back, renew
from backend.predictions.requests import (
    answer_message,
    enqueue_chunks,
    enqueue_pushes,
    needed_later,
)
from backend.processes.counters import WorkStage
from backend.processes.leases import renewing
from backend.processes.memory import OUT_OF_MEMORY, ran_out_of_memory
from backend.processes.queues import QueueName, urgent_job_waits, wake
from backend.processes.stopping import stopping
from backend.services import Services, current_services
from backend.tables import (
    Delivery,
    LabelConfigText,
    Suggestion,
    SuggestionState,
    new_id,
    now,
    table_of,
)

if TYPE_CHECKING:
    from backend.predictions.inference import Inference, TaskPrediction

log = logging.getLogger(__name__)

_SUGGESTIONS = table_of(Suggestion)
# How long a task waits when a server that it needs cannot be reached, before it is tried again.
RETRY_LATER_S = 30
# The database or Redis is away, or was a moment ago: any other task would have met it, too.
_AWAY = (OperationalError, InterfaceError, RedisError, QueueError)
_UNAVAILABLE = (LabelStudioUnavailableError, ImageUnavailableError, StorageUnavailableError)
_AWAY_SHORTLY = "the database or Redis was away for a moment: ask again"


def predict_chunk(ids: Sequence[str]) -> None:
    """Predict the rows that nobody else is working on; store each result as it comes."""
    from backend.predictions.inference import current_inference

    services = current_services()
    rows = claim(services, Suggestion, ids)
    inference = current_inference()
    finished: list[Suggestion] = []
    left: list[Suggestion] = []

    def predict(row: Suggestion) -> None:
        gives_way = bool(finished) and not row.interactive and _somebody_waits(services)
        if gives_way or stopping.is_set():
            put_back(services, Suggestion, row, wait_s=0)
            left.append(row)
        elif _predict_row(services, inference, row):
            finished.append(row)

    still_here = partial(renew, services, Suggestion, rows)
    with renewing(still_here, services.settings.lease_s / 3):
        inference.lanes.each(predict, rows)
    # First of all: somebody waits for the answer, nobody for the rest.
    _wake(services, [row for row in finished if not row.interactive])
    # Before the rows go on: who waits until they are pushed reads counts that include them.
    inference.publish_counts()
    prompts = {row.id for row in rows if row.interactive}
    _after(services, [id_ for id_ in ids if id_ not in prompts])
    _hand_on(services, left)


def _somebody_waits(services: Services) -> bool:
    """Whether an annotator's prompt is next: it waits for a task or two, not for a whole chunk."""
    with suppress(RedisError):
        return urgent_job_waits(services.redis, QueueName.GPU)
    return False


def _hand_on(services: Services, rows: Sequence[Suggestion]) -> None:
    """Queue what is left of a chunk; recovery would find it later."""
    try:
        for interactive in (True, False):
            ids = [row.id for row in rows if row.interactive == interactive]
            # A name of its own: RQ forgets a finished job by its id, and this one may be the same.
            enqueue_chunks(services, ids, f"left-{new_id()}", interactive=interactive)
    except QueueError as error:
        log.warning("what is left could not be queued (%s); recovery finds it", error)


def push_chunk(ids: Sequence[str]) -> None:
    """Bring finished rows to Label Studio through its API."""
    from backend.predictions.pushing import push

    push(current_services(), ids)


def _predict_row(services: Services, inference: "Inference", row: Suggestion) -> bool:
    """Predict a row and store what came of it; False when it is to be tried again later."""
    from medsam3_model.errors import MedSAM3Error

    is_look = row.delivery == Delivery.LOOK
    run_id: str | None = None
    inference.times.observe(WorkStage.WAIT, (now() - row.created_at).total_seconds())
    try:
        xml = _label_config(services, row.config_hash)
        outcome = inference.look(row) if is_look else inference.predict(row, xml)
        if outcome.answered and row.delivery != Delivery.PREVIEW:
            config = parse_label_config(xml)
            # Before the prediction is stored: whoever does this again finds the same run.
            run_id = request_run(services, row, config, outcome.answered, outcome.instruction)
    except (*_UNAVAILABLE, *_AWAY) as error:
        if _may_wait(row, error):
            _wait(services, row, error)
            return False
        # The text of what a driver says may hold anything.
        _fail(services, row, _AWAY_SHORTLY if isinstance(error, _AWAY) else str(error))
    except (BackendError, MedSAM3Error) as error:
        log.warning("task %s of project %s failed: %s", row.task_id, row.project_id, error)
        _fail(services, row, str(error))
    except Exception as error:
        if ran_out_of_memory(error):
            log.warning("task %s of project %s: memory ran out", row.task_id, row.project_id)
            _fail(services, row, OUT_OF_MEMORY)
            return True
        # One bad task must not take its neighbours along. The text of an unforeseen error may
        # hold anything, so only its type leaves the worker; the traceback is in the worker's log.
        log.exception("task %s of project %s failed", row.task_id, row.project_id)
        reason = unforeseen(error)
        _fail(services, row, reason)
    else:
        if row.interactive and not is_look:
            # An annotator waits: the answer goes out before it is stored.
            prediction = {
                "result": outcome.regions,
                "score": outcome.score,
                "model_version": row.model_version,
            }
            _wake(services, [row], answer_message(row.task_id, prediction))
        _store_outcome(services, row, outcome, run_id)
        if is_look:
            _wake(services, [row])
    return True


def _store_outcome(
    services: Services, row: Suggestion, outcome: "TaskPrediction", run_id: str | None
) -> None:
    _store(
        services,
        row,
        state=SuggestionState.DONE,
        result=outcome.regions,
        score=outcome.score,
        image_hash=outcome.image_hash,
        model_s=outcome.model_s,
    )
    if run_id is not None:
        # Its row is there, and the prediction that it begins with.
        enqueue_run(services, run_id)


def _may_wait(row: Suggestion, error: Exception) -> bool:
    """Whether a task is tried again later: an annotator is told at once, and asks again."""
    if row.interactive:
        return False
    if not isinstance(error, ImageUnavailableError) or row.waits_since is None:
        return True
    return (now() - row.waits_since).total_seconds() < error.PATIENCE_S


def _wait(services: Services, row: Suggestion, error: Exception) -> None:
    """Put a task back for a while, with the reason."""
    reason = _AWAY_SHORTLY if isinstance(error, _AWAY) else str(error)
    log.warning("task %s waits: %s (%s)", row.task_id, reason, type(error).__name__)
    is_image = isinstance(error, ImageUnavailableError)
    put_back(
        services,
        Suggestion,
        row,
        wait_s=RETRY_LATER_S,
        error=f"waits: {reason}",
        waits_since=(row.waits_since or now()) if is_image else row.waits_since,
    )


def _fail(services: Services, row: Suggestion, reason: str) -> None:
    if row.interactive:
        _wake(services, [row], answer_message(row.task_id, None, reason))
    _store(services, row, state=SuggestionState.FAILED, error=reason)


# Labeling configs by their hash, so one never changes; a worker serves a handful of projects.
_label_configs: dict[str, str] = {}


def _label_config(services: Services, config_hash: str) -> str:
    if config_hash not in _label_configs:
        with services.database.reading() as session:
            _label_configs[config_hash] = session.get_one(LabelConfigText, config_hash).xml
    return _label_configs[config_hash]


@retried
def _store(services: Services, row: Suggestion, **values: object) -> None:
    """Store what became of a row, in one transaction."""
    if row.interactive:
        # Its answer has just gone out, unless the request had given up before.
        reached = Delivery.DELIVERED if values["state"] == SuggestionState.DONE else Delivery.NONE
        delivery = _SUGGESTIONS.c.delivery
        values["delivery"] = case((delivery == Delivery.REPLY, reached), else_=delivery)
    with services.database.transaction() as connection:
        # Not if the lease ran out meanwhile and another worker has the row, or finished it.
        connection.execute(
            update(_SUGGESTIONS)
            .where(ours(Suggestion, row))
            .values(
                finished_at=now(),
                lease_until=None,
                waits_since=None,
                # Who looks at a preview needs its image, and removes the row.
                task_data=row.task_data
                if row.delivery == Delivery.PREVIEW
                else needed_later(row.task_data),
                context=None,
                **{"error": None, **values},
            )
        )


def _wake(services: Services, rows: Sequence[Suggestion], message: str = "") -> None:
    """Wake the requests that asked for the rows; one that no longer waits does not mind."""
    request_ids = sorted({row.request_id for row in rows if row.request_id})
    if not request_ids:
        return
    try:
        wake(services.redis, request_ids, message)
    except RedisError as error:
        log.warning("nobody could be woken (%s); waiting requests look for themselves", error)


@retried
def _after(services: Services, ids: Sequence[str]) -> None:
    """Have pushed what nobody waits for any more; of prompts' answers nothing ever is."""
    if not ids:
        return
    # Read after the results are stored: a request that gave up before has handed its rows over,
    # one that gives up later pushes what it finds done.
    columns = _SUGGESTIONS.c
    with services.database.transaction() as connection:
        rows = connection.execute(
            select(columns.id, columns.state, columns.delivery)
            .where(columns.id.in_(list(ids)))
            .order_by(columns.task_id)
        ).all()
        connection.execute(
            update(_SUGGESTIONS)
            .where(
                columns.id.in_(list(ids)),
                columns.state == SuggestionState.FAILED,
                columns.delivery == Delivery.PUSH,
            )
            .values(delivery=Delivery.NONE, active_key=None)
        )
    enqueue_pushes(
        services,
        [
            row.id
            for row in rows
            if row.state == SuggestionState.DONE and row.delivery == Delivery.PUSH
        ],
    )
