"""Replacing: an answer takes the place of the prediction that the task has of the version.

An agent's answer does, and one that was asked for some labels only: of these it brings all regions,
the others' stay. Label Studio's prediction is changed where it is, so a task never holds two of
ours, never none, and an editor that shows the old one can still submit what was made of it. Done
twice, it is the same. The earlier prediction must have arrived before: what is still on its way
would come beside.
"""

import logging
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.database import now_in, retried
from backend.label_studio.client import LabelStudio, Prediction
from backend.labeling.regions import label_values
from backend.labeling.shapes import Region
from backend.predictions.requests import prediction_of
from backend.services import Services
from backend.tables import AgentRun, Delivery, Suggestion, SuggestionState

log = logging.getLogger(__name__)

# Until it is looked again whether the earlier prediction has arrived.
WAIT_S = 5
_ON_THE_WAY = (Delivery.REPLY, Delivery.PUSH, Delivery.PUSHING, Delivery.ANSWERED)


def replaced(services: Services, client: LabelStudio, row: Suggestion) -> Delivery:
    """Put an answer in the place of the task's earlier prediction of the same version.

    Where only some labels were asked for, the row holds afterwards what the prediction does: an
    annotation begins with all of it.

    Returns:
        DELIVERED; NONE where it is an agent's answer that no instruction asked for, and somebody
        annotated the task meanwhile; PUSHING where the earlier prediction is still on its way.

    Raises:
        LabelStudioError: Label Studio refuses, or cannot be reached.
    """
    if row.task_id is None:
        return Delivery.NONE
    stored = [p for p in client.predictions(row.task_id) if p.model_version == row.model_version]
    regions = frozenset(str(region.get("id")) for region in row.result or [])
    if regions and any(prediction.region_ids == regions for prediction in stored):
        return Delivery.DELIVERED
    if _is_earlier_on_the_way(services, row, stored):
        return Delivery.PUSHING
    if row.agent_run_id is not None and _comes_too_late(services, client, row):
        log.info("task %s was annotated before the agent had an answer", row.task_id)
        return Delivery.NONE
    if not stored:
        client.push_predictions(row.project_id, [{"task": row.task_id, **prediction_of(row)}])
        return Delivery.DELIVERED
    newest = max(stored, key=lambda prediction: prediction.id)
    if row.labels is not None:
        row.result, row.score = _beside(newest, row, row.labels)
        services.database.update(
            Suggestion, Suggestion.id == row.id, result=row.result, score=row.score
        )
    answer = prediction_of(row)
    client.update_prediction(newest.id, row.task_id, result=answer["result"], score=answer["score"])
    return Delivery.DELIVERED


def _comes_too_late(services: Services, client: LabelStudio, row: Suggestion) -> bool:
    """Whether the task of an agent's answer is annotated, and nobody typed an instruction."""
    with services.database.reading() as session:
        run = session.get(AgentRun, row.agent_run_id)
    if run is not None and run.instruction:
        return False
    return row.task_id is not None and client.is_annotated(row.task_id)


def _beside(
    stored: Prediction, row: Suggestion, labels: Sequence[str]
) -> tuple[list[Region], float]:
    """The regions of `labels` from a row and all others from a prediction, and their score.

    A task is as uncertain as the least certain of its labels.
    """
    asked = {str(region["id"]) for region in row.result or [] if label_values(region) & {*labels}}
    # A tool without labels of its own has a second region of the same id that carries them.
    gone = {str(region["id"]) for region in stored.result if label_values(region) & {*labels}}
    found = [region for region in row.result or [] if str(region["id"]) in asked]
    kept = [region for region in stored.result if str(region["id"]) not in gone]
    score = row.score or 0.0
    return [*found, *kept], score if stored.score is None else min(score, stored.score)


@retried
def _is_earlier_on_the_way(services: Services, row: Suggestion, stored: list[Prediction]) -> bool:
    """Whether another prediction of the task and version may still arrive."""
    with services.database.session() as session:
        waiting = session.scalars(
            select(Suggestion)
            .where(
                Suggestion.project_id == row.project_id,
                Suggestion.task_id == row.task_id,
                Suggestion.model_version == row.model_version,
                Suggestion.interactive.is_(False),
                Suggestion.id != row.id,
                Suggestion.created_at <= row.created_at,
                Suggestion.delivery.in_(_ON_THE_WAY),
                Suggestion.state != SuggestionState.FAILED,
            )
            .with_for_update()
        ).all()
        arrived = [_has_arrived(session, earlier, stored) for earlier in waiting]
        return not all(arrived)


def _has_arrived(session: Session, earlier: Suggestion, stored: list[Prediction]) -> bool:
    """Whether an answer that went out is there; then nobody has to look after it any more."""
    regions = frozenset(str(region.get("id")) for region in earlier.result or [])
    there = any(prediction.region_ids == regions for prediction in stored)
    if earlier.delivery != Delivery.ANSWERED or not there:
        return False
    earlier.delivery, earlier.active_key, earlier.lease_until = Delivery.DELIVERED, None, None
    earlier.delivered_at = now_in(session)
    return True
