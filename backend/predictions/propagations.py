"""Propagations: the wish to have a stack drawn from its corrected slices, from row to prediction.

A wish is a row first. An ingest worker reads the task and its corrections from Label Studio and
makes a prediction's row of it, which goes the way of all predictions: leases, recovery, a push.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, select, update

from backend.database import insert_or_ignore, now_in
from backend.errors import (
    BackendError,
    LabelStudioUnavailableError,
    PropagationError,
    QueueError,
    unforeseen,
)
from backend.labeling.config import ImageObject, parse_label_config
from backend.models import versions
from backend.predictions.requests import enqueue_chunks, needed_now
from backend.predictions.tables import StackPropagation
from backend.processes.queues import Handler, QueueName, enqueue, waiting_row_ids
from backend.services import Services, current_services
from backend.tables import (
    Delivery,
    LabelConfigText,
    Suggestion,
    SuggestionState,
    config_hash,
    new_id,
    now,
)

log = logging.getLogger(__name__)

EVENT = "propagate"
# A long stack takes as long as it takes; the lease tells whether its worker lives.
NO_END = -1
# A row without a prediction was not dealt with by its job after so long: it is queued again.
SETTLING_S = 30.0
# What the editor writes into `origin` of a region that somebody drew or changed.
_BY_HAND = frozenset({"manual", "prediction-changed"})


@dataclass(frozen=True)
class PropagationState:
    """How far one is.

    Attributes:
        state: waiting, running, done, failed or cancelled.
        done, total: slices that were looked at, and pages of the task.
        error: why it failed.
        delivered: the prediction is in Label Studio.
    """

    id: str
    task: int
    project: int | None
    state: str
    done: int
    total: int
    error: str | None
    delivered: bool

    @property
    def finished(self) -> bool:
        """Whether nothing more happens."""
        return self.state in ("failed", "cancelled") or (self.state == "done" and self.delivered)


def is_propagation(row: Suggestion) -> bool:
    """Whether a prediction draws the rest of a stack."""
    return not row.interactive and (row.context or {}).get("event") == EVENT


def request_propagation(
    services: Services,
    task_id: int,
    slices: Sequence[int] | None = None,
    *,
    first: int | None = None,
    last: int | None = None,
    annotation_id: int | None = None,
) -> tuple[str, bool]:
    """Have the other slices of a task drawn from corrected ones.

    Args:
        services: database and Redis.
        task_id: of a task with several pages.
        slices: the corrected slices, from 0; None: those that somebody drew on.
        first, last: where the objects end at the latest, both included.
        annotation_id: whose regions; None: the draft or annotation that was saved last.

    Returns:
        The row's id, and whether it is new: the same wish that is under way is one row.

    Raises:
        PropagationError: the numbers contradict each other.
    """
    numbers = sorted(set(slices)) if slices is not None else None
    bounds = [bound for bound in (first, last) if bound is not None]
    if numbers == [] or min([0, *(numbers or []), *bounds]) < 0:
        raise PropagationError("slices are counted from 0, and at least one is corrected")
    if first is not None and last is not None and first > last:
        raise PropagationError(f"the first slice, {first}, comes after the last one, {last}")
    wish = json.dumps([task_id, numbers, first, last, annotation_id])
    key = hashlib.sha256(wish.encode()).hexdigest()
    row: dict[str, Any] = {
        "id": new_id(),
        "active_key": key,
        "task_id": task_id,
        "slices": numbers,
        "first": first,
        "last": last,
        "annotation_id": annotation_id,
        "done": 0,
        "total": 0,
        "cancelled": False,
        "created_at": now(),
    }
    with services.database.session() as session:
        _release_finished(services, session)
        insert_or_ignore(session, StackPropagation, [row])
        id_ = session.scalars(
            select(StackPropagation.id).where(StackPropagation.active_key == key)
        ).one()
    try:
        _enqueue(services, id_)
    except QueueError as error:
        log.warning("%s", error)  # recovery queues it
    return id_, id_ == row["id"]


def _enqueue(services: Services, id_: str) -> None:
    enqueue(services.redis, QueueName.INGEST, Handler.PROPAGATE, [id_], job_id=f"propagate-{id_}")


def _release_finished(services: Services, session: Any) -> None:
    """Wishes that ended are no longer under way: the same one may be asked for again."""
    ended = select(Suggestion.id).where(
        Suggestion.id == StackPropagation.suggestion_id,
        Suggestion.state.in_((SuggestionState.DONE, SuggestionState.FAILED)),
        Suggestion.delivery.in_((Delivery.DELIVERED, Delivery.NONE)),
    )
    session.execute(
        update(StackPropagation)
        .where(StackPropagation.active_key.is_not(None), ended.exists())
        .values(active_key=None)
        .execution_options(synchronize_session=False)
    )


def cancel(services: Services, id_: str) -> PropagationState:
    """End one: at once while it waits, at its next slice while it is at work.

    Raises:
        PropagationError: there is no such propagation.
    """
    with services.database.session() as session:
        row = session.get(StackPropagation, id_, with_for_update=True)
        if row is None:
            raise PropagationError(f"there is no propagation {id_}")
        if not row.cancelled and not _state(row, _prediction(session, row)).finished:
            row.cancelled, row.active_key = True, None
            if row.suggestion_id is None:
                row.finished_at = now()
    return state_of(services, id_)


def state_of(services: Services, id_: str) -> PropagationState:
    """How far one is.

    Raises:
        PropagationError: there is no such propagation.
    """
    with services.database.reading() as session:
        row = session.get(StackPropagation, id_)
        if row is None:
            raise PropagationError(f"there is no propagation {id_}")
        return _state(row, _prediction(session, row))


def latest(services: Services, task_id: int | None, limit: int) -> list[PropagationState]:
    """Propagations, of one task or all, newest first."""
    query = select(StackPropagation).order_by(
        StackPropagation.created_at.desc(), StackPropagation.id
    )
    if task_id is not None:
        query = query.where(StackPropagation.task_id == task_id)
    with services.database.reading() as session:
        rows = session.scalars(query.limit(limit)).all()
        return [_state(row, _prediction(session, row)) for row in rows]


def _prediction(session: Any, row: StackPropagation) -> Suggestion | None:
    found: Suggestion | None = (
        session.get(Suggestion, row.suggestion_id) if row.suggestion_id else None
    )
    return found


def _state(row: StackPropagation, prediction: Suggestion | None) -> PropagationState:
    error = row.error or (prediction.error if prediction else None)
    delivered = False
    if row.cancelled:
        state = "cancelled"
    elif row.error:
        state = "failed"
    elif prediction is None or prediction.state == SuggestionState.QUEUED:
        state = "waiting"
    elif prediction.delivery == Delivery.NONE and prediction.error:
        state = "failed"
    else:
        state = str(prediction.state)
        delivered = prediction.delivery == Delivery.DELIVERED
    return PropagationState(
        row.id, row.task_id, row.project_id, state, row.done, row.total, error, delivered
    )


def start_propagations(ids: Sequence[str]) -> None:
    """Handler on queue `ingest`: make predictions' rows of wishes.

    Done twice, or by two workers, it makes one of each.
    """
    from backend.label_studio.client import LabelStudio

    services = current_services()
    with LabelStudio.from_settings(services.settings) as client:
        for id_ in ids:
            with services.database.reading() as session:
                row = session.get(StackPropagation, id_)
            if row is None or row.suggestion_id or row.finished_at:
                continue
            try:
                suggestion_id = _start(services, client, row)
            except LabelStudioUnavailableError as error:
                log.warning("the propagation of task %s waits: %s", row.task_id, error)
            except BackendError as error:
                log.warning("the propagation of task %s failed: %s", row.task_id, error)
                _fail(services, id_, str(error))
            except Exception as error:
                # The text of an unforeseen error may hold anything, so only its type is stored.
                log.exception("the propagation of task %s failed", row.task_id)
                _fail(services, id_, unforeseen(error))
            else:
                if suggestion_id:
                    enqueue_chunks(services, [suggestion_id], suggestion_id, timeout_s=NO_END)


def _fail(services: Services, id_: str, reason: str) -> None:
    services.database.update(
        StackPropagation, _unstarted(id_), error=reason, active_key=None, finished_at=now()
    )


def _unstarted(id_: str) -> ColumnElement[bool]:
    return (StackPropagation.id == id_) & StackPropagation.suggestion_id.is_(None)


def _start(services: Services, client: Any, row: StackPropagation) -> str | None:
    """The id of the prediction's row that was made, None where another worker made it."""
    task, project = _read_task(client, row)
    xml = str(project["label_config"])
    image, pages = _stack_of(xml, task["data"])
    result = _saved(task, row.annotation_id)
    corrected = row.slices or _drawn_by_hand(result, image.name)
    if beyond := [place for place in corrected if place >= pages]:
        raise PropagationError(f"there is no slice {beyond[0]}: the task has 0 to {pages - 1}")
    regions = [
        dict(region)
        for region in result
        if region.get("to_name") == image.name and (region.get("item_index") or 0) in corrected
    ]
    empty = set(corrected) - {region.get("item_index") or 0 for region in regions}
    if empty == set(corrected):
        raise PropagationError(
            f"nothing is drawn on slice {sorted(empty)[0]}: draw or correct it first, and save"
        )
    version = versions.in_service(services, int(project["id"]))
    hashed = config_hash(xml)
    suggestion_id = new_id()
    with services.database.session() as session:
        known = session.get(StackPropagation, row.id, with_for_update=True)
        if known is None or known.suggestion_id or known.finished_at:
            return None
        known.suggestion_id, known.project_id = suggestion_id, int(project["id"])
        known.total = pages
        insert_or_ignore(session, LabelConfigText, [{"hash": hashed, "xml": xml}])
        session.add(
            Suggestion(
                id=suggestion_id,
                project_id=int(project["id"]),
                task_id=row.task_id,
                config_hash=hashed,
                task_data=needed_now(task["data"], xml),
                context={
                    "event": EVENT,
                    "propagation": row.id,
                    "image": image.name,
                    "slices": list(corrected),
                    "first": row.first,
                    "last": row.last,
                    "regions": regions,
                },
                model_version=version,
                delivery=Delivery.PUSH,
                created_at=now_in(session),
            )
        )
    return suggestion_id


def _read_task(client: Any, row: StackPropagation) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The task with its annotations and drafts, and its project."""
    from backend.label_studio.client import LabelStudioError

    # Label Studio lists annotations by their ids alone; only the task itself carries their regions.
    try:
        task = client.get(f"/api/tasks/{row.task_id}", resolve_uri="false")
    except LabelStudioError as error:
        if error.status_code == 404:
            raise PropagationError(f"Label Studio has no task {row.task_id}") from None
        raise
    return task, client.project(int(task["project"]))


def _stack_of(xml: str, data: Mapping[str, Any]) -> tuple[ImageObject, int]:
    """The image with pages, and how many it has."""
    for image in parse_label_config(xml).images:
        if image.multi_page and (pages := len(image.references(data))) > 1:
            return image, pages
    raise PropagationError(
        'the task is no stack: its labeling config needs <Image valueList="$..."> and its data a '
        "list of pages"
    )


def _saved(task: Mapping[str, Any], annotation_id: int | None) -> list[Mapping[str, Any]]:
    """The regions of one annotation, or of the draft or annotation that was saved last."""
    annotations = [one for one in task.get("annotations") or [] if not one.get("was_cancelled")]
    if annotation_id is not None:
        annotations = [one for one in annotations if one.get("id") == annotation_id]
        drafts = []
    else:
        drafts = list(task.get("drafts") or [])
    saved = [one for one in (*annotations, *drafts) if one.get("result")]
    if not saved:
        raise PropagationError(
            "the task has no annotation and no draft with a region: correct a slice first"
        )
    newest = max(saved, key=lambda one: str(one.get("updated_at") or one.get("created_at") or ""))
    return [region for region in newest["result"] if isinstance(region, Mapping)]


def _drawn_by_hand(result: Sequence[Mapping[str, Any]], image: str) -> list[int]:
    drawn = {
        int(region.get("item_index") or 0)
        for region in result
        if region.get("to_name") == image and region.get("origin") in _BY_HAND
    }
    if not drawn:
        raise PropagationError(
            "no slice was drawn or corrected by hand: say which are right with --from-slice"
        )
    return sorted(drawn)


def enqueue_forgotten(services: Services) -> int:
    """Queue the wishes again that no job stands for; returns how many."""
    with services.database.reading() as session:
        before = now_in(session) - timedelta(seconds=SETTLING_S)
        ids = list(
            session.scalars(
                select(StackPropagation.id)
                .where(
                    StackPropagation.suggestion_id.is_(None),
                    StackPropagation.finished_at.is_(None),
                    StackPropagation.created_at < before,
                )
                .limit(100)
            )
        )
    if not ids:
        return 0
    waiting = waiting_row_ids(services.redis, QueueName.INGEST)
    forgotten = [id_ for id_ in ids if id_ not in waiting]
    for id_ in forgotten:
        _enqueue(services, id_)
    return len(forgotten)
