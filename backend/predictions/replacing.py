"""Replacing: an agent's answer takes the place of the prediction that it began with.

Label Studio's prediction is changed where it is, so a task never holds two of ours, never none,
and an editor that shows the old one can still submit what was made of it. Done twice, it is the
same. The earlier prediction must have arrived before: what is still on its way would come beside.
"""

import logging

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.database import retried
from backend.label_studio.client import LabelStudio, Prediction
from backend.predictions.requests import prediction_of
from backend.services import Services
from backend.tables import AgentRun, Delivery, Suggestion, SuggestionState

log = logging.getLogger(__name__)

# Until it is looked again whether the earlier prediction has arrived.
WAIT_S = 5
_ON_THE_WAY = (Delivery.REPLY, Delivery.PUSH, Delivery.PUSHING, Delivery.ANSWERED)


def replaced(services: Services, client: LabelStudio, row: Suggestion) -> Delivery:
    """Put an agent's answer in the place of the task's earlier prediction of the same version.

    Returns:
        DELIVERED; NONE where somebody annotated the task meanwhile, and the answer was not asked
        for by an instruction; PUSHING where the earlier prediction is still on its way.

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
    with services.database.reading() as session:
        run = session.get(AgentRun, row.agent_run_id)
    if (run is None or not run.instruction) and client.is_annotated(row.task_id):
        log.info("task %s was annotated before the agent had an answer", row.task_id)
        return Delivery.NONE
    answer = prediction_of(row)
    if stored:
        newest = max(stored, key=lambda prediction: prediction.id)
        client.update_prediction(
            newest.id, row.task_id, result=answer["result"], score=answer["score"]
        )
    else:
        client.push_predictions(row.project_id, [{"task": row.task_id, **answer}])
    return Delivery.DELIVERED


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
    return True
