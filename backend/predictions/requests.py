"""Requests for predictions: rows first, then jobs, then a bounded wait.

A request either brings a result for every one of its tasks or none at all (Label Studio drops a
batch with holes). What it cannot bring in time, or beside a task that failed, goes out through
`backend.predictions.pushing` instead. `Suggestion.delivery` says at every moment who brings a row
to Label Studio; it changes hands only by conditional updates, so nothing is brought twice.
"""

import hashlib
import html
import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, Connection, delete, func, select, update
from sqlalchemy.orm import Session

from backend.database import chunked, insert_or_ignore, now_in, retried
from backend.errors import QueueError
from backend.labeling.concepts import PROMPT_FIELDS
from backend.labeling.prompts import is_prewarm
from backend.models import versions
from backend.processes.queues import Handler, QueueName, Waiting, enqueue, wait
from backend.services import Services
from backend.tables import (
    Delivery,
    LabelConfigText,
    Suggestion,
    SuggestionState,
    config_hash,
    new_id,
    table_of,
)

log = logging.getLogger(__name__)

_SUGGESTIONS = table_of(Suggestion)
UNFINISHED = (SuggestionState.QUEUED, SuggestionState.RUNNING)
FINISHED = tuple(state for state in SuggestionState if state not in UNFINISHED)
# Longer than any answer takes to travel: only a dead web process leaves a row waiting past it.
REPLY_GRACE_S = 30
# Label Studio stores an answer at once; after this long it is asked whether it has it.
LOOK_AFTER_S = 30
# Label Studio stores another request's answer meanwhile; then it shows what it has by now.
ARRIVES_S = 0.5
# How often a waiting request looks into the database even if nobody woke it: Redis may have
# been restarted in between, and another request may be the one that is woken.
POLL_S = 1.0
# Tasks to be pushed whose rows are written and queued together.
BATCH_TASKS = 200
# Finished rows that one job pushes.
PUSHED_TOGETHER = 25


@dataclass(frozen=True)
class PredictRequest:
    """One call of /predict.

    Attributes:
        tasks: Label Studio's tasks, of which `id` and `data` are used.
        project_id: Label Studio's project.
        label_config: the labeling config's XML.
        context: None for pre-annotation; `{"result": [...]}` from the smart tools, or
            `{"event": "prewarm"}`, which has the image encoded and answers nothing.
        labels: the label values to ask for; empty: all that the task asks for.
    """

    tasks: Sequence[Mapping[str, Any]]
    project_id: int
    label_config: str
    context: Mapping[str, Any] | None = None
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class PredictAnswer:
    """What /predict answers: one prediction per task, or none and the reasons."""

    predictions: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def predict(services: Services, request: PredictRequest) -> PredictAnswer:
    """Predict every task of a request, or arrange that its predictions are pushed later.

    Args:
        services: the process's database and Redis.
        request: what Label Studio asked.

    Returns:
        Predictions in the order of the tasks; or none, with what is known about the reasons.
    """
    if not request.tasks:
        return PredictAnswer()
    if request.context is not None:
        return _answer_prompt(services, request, request.context)
    deadline = time.monotonic() + services.settings.predict_budget_s
    # Before the rows: see `_claimable`.
    request_id, began = new_id(), database_time(services)
    ids = _create_rows(services, request, request_id)
    try:
        enqueue_chunks(services, _mine(services, request_id, ids), request_id)
        _wait(services, request_id, sorted(set(ids)), deadline)
    except (QueueError, RedisError) as error:
        log.warning("request %s: %s", request_id, error)
    return _finish(services, request, request_id, ids, began)


def _answer_prompt(
    services: Services, request: PredictRequest, context: Mapping[str, Any]
) -> PredictAnswer:
    """An annotator waits: one transaction, one message to the worker and one back."""
    if not context.get("result") and not is_prewarm(context):
        # The editor says that the prompt was deleted: the suggestion goes with it.
        version = versions.in_service(services, request.project_id)
        return PredictAnswer([{"result": [], "score": 0.0, "model_version": version}])
    budget_s = services.settings.predict_budget_s
    deadline = time.monotonic() + budget_s
    request_id = new_id()
    ids = _create_rows(services, request, request_id)
    try:
        enqueue_chunks(
            services, ids, request_id, interactive=True, waiting=Waiting(request_id, budget_s)
        )
        if len(ids) > 1:  # each wakes with an answer of its own
            _wait(services, request_id, ids, deadline)
        elif message := _answer(services, request_id, deadline):
            return PredictAnswer(**json.loads(message))
    except (QueueError, RedisError) as error:
        log.warning("request %s: %s", request_id, error)
    return _finish(services, request, request_id, ids, database_time(services))


def request_pushes(
    services: Services,
    tasks: Iterable[Mapping[str, Any]],
    project_id: int,
    label_config: str,
    labels: Sequence[str] = (),
    *,
    listed_at: datetime | None = None,
) -> Iterator[list[str]]:
    """Have tasks predicted and pushed, without waiting, batch by batch.

    Args:
        services, tasks, project_id, label_config, labels: see `PredictRequest`.
        listed_at: the moment before Label Studio was asked for tasks that lack such a prediction;
            None: they are wanted whatever they have.

    Yields:
        Ids of a batch's rows, in the order of the tasks; a task that is under way, or got what it
        lacked since it was listed, keeps its row.
    """
    remaining = iter(tasks)
    while batch := list(islice(remaining, BATCH_TASKS)):
        request = PredictRequest(batch, project_id, label_config, labels=labels)
        request_id = new_id()
        ids = _create_rows(
            services, request, request_id, delivery=Delivery.PUSH, listed_at=listed_at
        )
        try:
            enqueue_chunks(services, _mine(services, request_id, ids), request_id)
        except QueueError as error:
            log.warning("%s", error)
        yield ids


def request_previews(
    services: Services, request: PredictRequest, request_id: str | None = None
) -> list[str]:
    """Have tasks predicted for somebody who looks at the answers.

    Args:
        services, request: see `predict`.
        request_id: by which the rows are found; None: a new one.

    Returns:
        Ids of the rows, in the order of the tasks.

    Raises:
        QueueError: Redis cannot be reached; the rows are there.
    """
    ids = _create_rows(services, request, request_id or new_id(), delivery=Delivery.PREVIEW)
    # One task per job, so that several workers take part, and before the batches that wait.
    for id_ in ids:
        enqueue_chunks(services, [id_], id_, interactive=True)
    return ids


def latest_first(
    services: Services, project_id: int, tasks: Iterable[Mapping[str, Any]]
) -> tuple[Iterable[Mapping[str, Any]], int]:
    """Tasks that are predicted again, in an order in which caches are of use.

    A cache drops what was used longest ago. Gone through in the order of the first time, one that
    is too small for the project drops every image right before its turn; beginning with the task
    that was predicted last, it brings all that it holds.

    Returns:
        The tasks, those that were never predicted at the end and in their order; and how many were
        predicted before. Of a project without any prediction nothing is read ahead.
    """
    last = func.max(Suggestion.finished_at).label("finished_at")
    query = select(Suggestion.task_id, last).where(
        Suggestion.project_id == project_id,
        Suggestion.task_id.is_not(None),
        Suggestion.state == SuggestionState.DONE,
    )
    with services.database.reading() as session:
        found = session.execute(query.group_by(Suggestion.task_id))
        predicted = {row.task_id: row.finished_at for row in found}
    if not predicted:
        return tasks, 0
    before: list[Mapping[str, Any]] = []
    never: list[Mapping[str, Any]] = []
    for task in tasks:
        (before if task.get("id") in predicted else never).append(task)
    before.sort(key=lambda task: (predicted[task["id"]], task["id"]), reverse=True)
    return [*before, *never], len(before)


def enqueue_chunks(
    services: Services,
    ids: Sequence[str],
    name: str,
    *,
    interactive: bool = False,
    timeout_s: int | None = None,
    waiting: Waiting | None = None,
) -> None:
    """Put rows on the `gpu` queue, a few tasks per job; `timeout_s`, `waiting` as for `enqueue`.

    Raises:
        QueueError: Redis cannot be reached; the rows stay queued in the database.
    """
    size = services.settings.chunk_tasks
    for start in range(0, len(ids), size):
        enqueue(
            services.redis,
            QueueName.GPU,
            Handler.PREDICT,
            ids[start : start + size],
            job_id=f"predict-{name}-{start // size}",
            at_front=interactive,
            timeout_s=timeout_s,
            waiting=waiting,
        )


def answer_message(task_id: int | None, prediction: dict[str, Any] | None, error: str = "") -> str:
    """An interactive answer as the text that wakes its request: an annotator waits for it."""
    if prediction is None:
        return json.dumps({"errors": [f"task {task_id}: {error}"]})
    return json.dumps({"predictions": [prediction]})


def enqueue_pushes(services: Services, ids: Sequence[str]) -> None:
    """Have finished rows with `Delivery.PUSH` brought to Label Studio by an ingest worker."""
    for start in range(0, len(ids), PUSHED_TOGETHER):
        chunk = ids[start : start + PUSHED_TOGETHER]
        try:
            enqueue(
                services.redis, QueueName.INGEST, Handler.PUSH, chunk, job_id=f"push-{chunk[0]}"
            )
        except QueueError as error:
            log.warning("%s", error)
            return


@retried
def database_time(services: Services) -> datetime:
    """The moment by the database's clock, UTC."""
    with services.database.reading() as session:
        return now_in(session)


@retried
def _create_rows(
    services: Services,
    request: PredictRequest,
    request_id: str,
    delivery: Delivery = Delivery.REPLY,
    listed_at: datetime | None = None,
) -> list[str]:
    """Insert one row per task, or find the row of a task that is under way; ids in task order.

    A row that was delivered after `listed_at` is as good as one that is under way.
    """
    versions.default_version(services)  # read from the weights once, and not while others wait
    with services.database.transaction() as connection:
        version = versions.in_service_now(services, connection, request.project_id)
        rows = _new_rows(request, version, delivery)
        moment = now_in(connection)
        wait_s = services.settings.predict_budget_s + REPLY_GRACE_S
        until = moment + timedelta(seconds=wait_s) if delivery == Delivery.REPLY else None
        known = {"request_id": request_id, "created_at": moment, "reply_until": until}
        # In one order for all requests, or two of them would wait for each other's rows.
        ordered = sorted(rows, key=lambda row: row["active_key"] or "")
        text = {"hash": config_hash(request.label_config), "xml": request.label_config}
        insert_or_ignore(connection, LabelConfigText, text)
        insert_or_ignore(connection, Suggestion, [row | known for row in ordered])
        keys = [row["active_key"] for row in rows if row["active_key"]]
        by_key: dict[str | None, str] = {}
        for chunk in chunked(keys):
            # The row of this request, or of one that was first: the unique key decides.
            named = select(_SUGGESTIONS.c.active_key, _SUGGESTIONS.c.id)
            rows_of_keys = connection.execute(named.where(_SUGGESTIONS.c.active_key.in_(chunk)))
            by_key.update((key, id_) for key, id_ in rows_of_keys)
        if listed_at is not None:
            # Read after the insertion, which waited for whoever was about to free a key.
            by_key |= _delivered_since(connection, listed_at, rows, by_key)
    return [by_key[row["active_key"]] if row["active_key"] else row["id"] for row in rows]


def _new_rows(request: PredictRequest, version: str, delivery: Delivery) -> list[dict[str, Any]]:
    """A row for each task, with the key that all have in common who ask for the same."""
    hashed = config_hash(request.label_config)
    rows: list[dict[str, Any]] = []
    for task in request.tasks:
        data = dict(task.get("data") or {})
        key = None
        # What is being brought to Label Studio by others is no preview, and the other way round.
        is_shared = request.context is None and delivery != Delivery.PREVIEW
        if is_shared and task.get("id") is not None:
            asked = [request.project_id, task["id"], version, hashed, data]
            text = json.dumps([*asked, sorted(request.labels)] if request.labels else asked)
            key = hashlib.sha256(text.encode()).hexdigest()
        rows.append(
            {
                "id": new_id(),
                "active_key": key,
                "project_id": request.project_id,
                "task_id": task.get("id"),
                "interactive": request.context is not None,
                "config_hash": hashed,
                "task_data": needed_now(data, request.label_config),
                "context": dict(request.context) if request.context is not None else None,
                "labels": list(request.labels) or None,
                "model_version": version,
                "delivery": delivery,
            }
        )
    return rows


def _delivered_since(
    connection: Connection,
    listed_at: datetime,
    rows: Sequence[Mapping[str, Any]],
    by_key: Mapping[str | None, str],
) -> dict[str | None, str]:
    """Remove new rows of tasks whose row was delivered since; those rows' ids by their keys."""
    new = {row["task_id"]: row for row in rows if by_key.get(row["active_key"]) == row["id"]}
    found: dict[str | None, str] = {}
    removed: list[str] = []
    for chunk in chunked(new):
        first = new[chunk[0]]
        delivered = connection.execute(
            select(_SUGGESTIONS.c.id, _SUGGESTIONS.c.task_id, _SUGGESTIONS.c.labels).where(
                _SUGGESTIONS.c.project_id == first["project_id"],
                _SUGGESTIONS.c.task_id.in_(chunk),
                _SUGGESTIONS.c.delivered_at >= listed_at,
                _SUGGESTIONS.c.delivery == Delivery.DELIVERED,
                _SUGGESTIONS.c.model_version == first["model_version"],
                _SUGGESTIONS.c.config_hash == first["config_hash"],
            )
        )
        for id_, task_id, labels in delivered:
            row = new[task_id]
            if (labels or None) == row["labels"] and row["active_key"] not in found:
                found[row["active_key"]] = id_
                removed.append(row["id"])
    for chunk in chunked(removed):
        connection.execute(delete(_SUGGESTIONS).where(_SUGGESTIONS.c.id.in_(chunk)))
    return found


def _mine(services: Services, request_id: str, ids: Sequence[str]) -> list[str]:
    """Those of the rows that this request made, in their order."""
    with services.database.reading() as session:
        mine = set(
            session.scalars(select(Suggestion.id).where(Suggestion.request_id == request_id))
        )
    return [id_ for id_ in dict.fromkeys(ids) if id_ in mine]


def _answer(services: Services, request_id: str, deadline: float) -> str | None:
    """The message that wakes an interactive request, or None at the deadline."""
    while (left := deadline - time.monotonic()) > 0:
        # In short turns: a connection that is silent for long counts as broken.
        message = wait(services.redis, request_id, min(left, POLL_S))
        if message is not None:
            return message
    return None


def _wait(services: Services, request_id: str, ids: list[str], deadline: float) -> None:
    """Return when none of the rows is under way any more, or at the deadline."""
    while (left := deadline - time.monotonic()) > 0:
        wait(services.redis, request_id, min(left, POLL_S))
        if _unfinished(services, ids) == 0:
            return


def _unfinished(services: Services, ids: list[str]) -> int:
    with services.database.reading() as session:
        return sum(
            session.scalar(
                select(func.count())
                .select_from(Suggestion)
                .where(Suggestion.id.in_(chunk), Suggestion.state.in_(UNFINISHED))
            )
            or 0
            for chunk in chunked(ids)
        )


@retried
def _finish(
    services: Services, request: PredictRequest, request_id: str, ids: list[str], began: datetime
) -> PredictAnswer:
    """Take the results out, or hand the rows over to be pushed; one transaction decides."""
    to_push: list[str] = []
    answer: PredictAnswer | None = None
    # The rows are locked from here on, so a worker that finishes one of them comes before (and its
    # result goes into the answer) or after (and it sees the new delivery and has it pushed).
    with services.database.session() as session:
        rows = _load(session, set(ids))
        errors = [
            f"task {row.task_id}: {row.error or 'its pre-annotation was cancelled'}"
            for row in rows.values()
            if row.state in (SuggestionState.FAILED, SuggestionState.CANCELLED)
        ]
        late = sum(row.state in UNFINISHED for row in rows.values())
        if late:
            errors.append(f"{late} of {len(ids)} tasks are still under way and will be pushed")
        complete = len(rows) == len(set(ids)) and not errors
        if complete and all(_claimable(row, request_id, began) for row in rows.values()):
            for row in rows.values():
                # An annotator's own answer is not kept by Label Studio; of the others nobody knows
                # yet whether they arrive: the caller may be gone, or this process about to be.
                row.delivery = Delivery.DELIVERED if row.interactive else Delivery.ANSWERED
                # The key stays: who asks again before that is known gets this same prediction.
                row.lease_until = now_in(session) + timedelta(seconds=LOOK_AFTER_S)
            answer = PredictAnswer([prediction_of(rows[id_]) for id_ in ids])
        else:
            to_push = _hand_over(session, request_id, interactive=request.context is not None)
            if request.context is not None and not is_prewarm(request.context):
                end_unwanted(session, Suggestion.request_id == request_id)
    if answer is not None:
        return answer
    enqueue_pushes(services, to_push)
    if not errors:
        time.sleep(ARRIVES_S)
    return PredictAnswer(errors=errors or ["another request is bringing these predictions"])


def _load(session: Session, ids: set[str]) -> dict[str, Suggestion]:
    return {
        row.id: row
        for chunk in chunked(sorted(ids))
        for row in session.scalars(
            select(Suggestion)
            .where(Suggestion.id.in_(chunk))
            .order_by(Suggestion.id)
            .with_for_update()
        )
    }


def _claimable(row: Suggestion, request_id: str, began: datetime) -> bool:
    """Whether this request may bring the row: it owns it, or nobody brings it before a push.

    What went out as an answer before this request began did not arrive, or it would not ask. What
    went out since then is arriving: opening a task sends two requests at once, and Label Studio
    would store both answers.
    """
    if row.request_id == request_id and (row.interactive or row.delivery == Delivery.REPLY):
        return True
    if row.delivery == Delivery.ANSWERED and row.lease_until is not None:
        return row.lease_until - timedelta(seconds=LOOK_AFTER_S) <= began
    return row.delivery == Delivery.PUSH


def _hand_over(session: Session, request_id: str, *, interactive: bool) -> list[str]:
    """Give up this request's rows; returns the ids of those that can be pushed at once."""
    # Only rows that this request still owns: what another one delivered or pushes stays with it.
    mine = (Suggestion.request_id == request_id, Suggestion.delivery == Delivery.REPLY)
    failed = Suggestion.state == SuggestionState.FAILED
    gone = mine if interactive else (*mine, failed)
    # An interactive answer has nobody to go to once the editor stopped waiting.
    session.execute(update(Suggestion).where(*gone).values(delivery=Delivery.NONE, active_key=None))
    session.execute(update(Suggestion).where(*mine).values(delivery=Delivery.PUSH))
    return list(
        session.scalars(
            select(Suggestion.id).where(
                Suggestion.request_id == request_id,
                Suggestion.delivery == Delivery.PUSH,
                Suggestion.state == SuggestionState.DONE,
            )
        )
    )


def end_unwanted(session: Session, *which: ColumnElement[bool]) -> None:
    """Cancel prompts that no worker has begun and nobody waits for.

    They are at the front of the queue: predicted for nobody, they would keep those who ask again
    from their turn, who would then give up as well, and so on.
    """
    session.execute(
        update(Suggestion)
        .where(
            *which,
            Suggestion.interactive,
            Suggestion.state == SuggestionState.QUEUED,
            Suggestion.delivery == Delivery.NONE,
        )
        .values(
            state=SuggestionState.CANCELLED,
            finished_at=now_in(session),
            lease_until=None,
            context=None,
            task_data={},
            error="nobody waited for it any more when its turn came",
        )
    )


def needed_now(task_data: Mapping[str, Any], label_config: str) -> dict[str, Any]:
    """What a prediction may need of a task's data: what the labeling config names, and prompts.

    Of all other fields only the names are kept, for messages that say what a task has.
    """
    named = {html.unescape(name) for name in re.findall(r"""\$([^"'<>]+)""", label_config)}
    needed = {*PROMPT_FIELDS, *named, *(re.split(r"[.\[]", name)[0] for name in named)}
    return {name: value if name in needed else None for name, value in task_data.items()}


def needed_later(task_data: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a task's data once it is predicted: the texts that prompted it."""
    return {name: task_data[name] for name in PROMPT_FIELDS if name in task_data}


def prediction_of(row: Suggestion) -> dict[str, Any]:
    """A finished row in Label Studio's form of a prediction."""
    return {
        "result": row.result or [],
        "score": row.score or 0.0,
        "model_version": row.model_version,
    }
