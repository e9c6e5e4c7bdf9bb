"""The job of queue `agent`: a language model guides one task, and what it did is written down.

After each of its actions the row holds everything so far. A worker that takes over a killed one's
run repeats the recorded actions without asking again, and goes on from there.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from backend.agent.chat import ChatClient
from backend.agent.loop import Limits, LoopResult, PartnerView, Question, run_loop
from backend.agent.partner import ChatPartner
from backend.agent.stored import action_json, action_of_json, mask_json, mask_of_json
from backend.agent.tools import Action
from backend.database import insert_or_ignore, now_in, retried
from backend.errors import (
    AgentInterruptedError,
    BackendError,
    LabelStudioUnavailableError,
    unforeseen,
)
from backend.label_studio.client import LabelStudio
from backend.label_studio.images import FetchedImages, decode
from backend.labeling.concepts import concept_of_label
from backend.labeling.config import parse_label_config
from backend.labeling.regions import InstanceMask, label_values, regions_for
from backend.predictions.agent_looks import QueuedSegmenter
from backend.predictions.agent_runs import UNFINISHED, AgentQuestion, check_budget
from backend.predictions.leased_rows import claim, ours, put_back, renew
from backend.predictions.requests import enqueue_pushes, needed_later
from backend.processes.leases import renewing
from backend.processes.stopping import stopping
from backend.services import Services, current_services
from backend.tables import (
    AgentPicture,
    AgentRun,
    Delivery,
    LabelConfigText,
    Suggestion,
    SuggestionState,
    now,
)

log = logging.getLogger(__name__)

# How long a run waits for Label Studio, and for the prediction that it begins with.
_RETRY_LATER_S = 30
_PREDICTION_S = 2


def guide(ids: Sequence[str]) -> None:
    """Let the agent's server guide the runs that nobody else is working on."""
    services = current_services()
    for run in claim(services, AgentRun, ids):
        with renewing(partial(renew, services, AgentRun, [run]), services.settings.lease_s / 3):
            _guide(services, run)


def _guide(services: Services, run: AgentRun) -> None:
    from medsam3_model.errors import MedSAM3Error

    with services.database.reading() as session:
        begins_with = session.get(Suggestion, run.suggestion_id)
    if begins_with is not None and begins_with.state in UNFINISHED:
        put_back(services, AgentRun, run, wait_s=_PREDICTION_S)
        return
    try:
        if begins_with is None or begins_with.state != SuggestionState.DONE:
            raise BackendError("the prediction that the agent was to begin with is not there")
        _Guided(services, run).finish(begins_with)
    except AgentInterruptedError as error:
        log.info("the agent's run for task %s goes on later: %s", run.task_id, error)
        put_back(services, AgentRun, run, wait_s=0)
    except LabelStudioUnavailableError as error:
        log.warning("the agent's run for task %s waits: %s", run.task_id, error)
        put_back(services, AgentRun, run, wait_s=_RETRY_LATER_S)
    except (BackendError, MedSAM3Error) as error:
        log.warning("the agent's run for task %s failed: %s", run.task_id, error)
        _fail(services, run, str(error))
    except Exception as error:
        # The text of an unforeseen error may hold anything, so only its type is stored.
        log.exception("the agent's run for task %s failed", run.task_id)
        reason = unforeseen(error)
        _fail(services, run, reason)


class _Guided:
    """One run: its questions, one after the other, within the time of one task."""

    def __init__(self, services: Services, run: AgentRun) -> None:
        self._services, self._settings, self._run = services, services.settings, run
        self._before_s, self._started = run.seconds, time.monotonic()
        with services.database.reading() as session:
            xml = session.get_one(LabelConfigText, run.config_hash).xml
        self._config = parse_label_config(xml)

    def finish(self, begins_with: Suggestion) -> None:
        """Ask every question that is not answered yet, and hand over what the agent changed."""
        with LabelStudio.from_settings(self._settings) as client:
            files = FetchedImages(client, self._settings)
            for index, stored in enumerate(self._run.questions):
                if index < len(self._run.outcomes):
                    continue
                question = AgentQuestion(**stored)
                content, image_hash = files.get(
                    question.reference, project_id=self._run.project_id, task_id=self._run.task_id
                )
                pixels = decode(content, self._settings, task_id=self._run.task_id)
                if image_hash not in self._run.image_hashes:
                    self._run.image_hashes = [*self._run.image_hashes, image_hash]
                self._run.outcomes = [*self._run.outcomes, self._outcome(index, question, pixels)]
                self._save()
        self._hand_over(begins_with)

    def _outcome(
        self, index: int, question: AgentQuestion, pixels: NDArray[np.uint8]
    ) -> dict[str, Any]:
        settings = self._settings
        left_s = max(0.0, settings.agent_task_s - self._seconds())
        height, width = pixels.shape[:2]
        segmenter = QueuedSegmenter(
            self._services, self._run, index, question, (height, width), settings.agent_task_s
        )
        asked = Question(question.phrase, question.label, self._run.instruction)
        limits = Limits(settings.agent_rounds, left_s, settings.agent_request_timeout_s)
        client = ChatClient(settings)
        try:
            partner = _RecordedPartner(self, index, ChatPartner(client, pixels, settings))
            result = run_loop(segmenter, partner, asked, limits)
        finally:
            client.close()
        return _outcome_json(question, result)

    def known_actions(self, index: int) -> list[Action]:
        """What was decided for a question before this worker took the run."""
        return [
            action_of_json(exchange["action"])
            for exchange in self._run.exchanges
            if exchange["question"] == index and exchange["action"] is not None
        ]

    def before_asking(self) -> None:
        """Stop where the worker has to, or where the project's day is used up.

        Raises:
            AgentInterruptedError, AgentError: accordingly.
        """
        if stopping.is_set():
            raise AgentInterruptedError("the agent's worker was told to stop")
        with self._services.database.reading() as session:
            check_budget(session, self._services, self._run.project_id)

    def record(self, index: int, partner: ChatPartner, seen: int, action: Action | None) -> None:
        """Write down what was asked and answered since `seen` exchanges."""
        exchanges = partner.exchanges[seen:]
        stored = [{"question": index, "action": None, **asdict(one)} for one in exchanges]
        if stored and action is not None:
            stored[-1]["action"] = action_json(action)
        run = self._run
        run.exchanges = [*run.exchanges, *stored]
        run.requests += sum(one.requests for one in exchanges)
        run.prompt_tokens += sum(one.prompt_tokens for one in exchanges)
        run.completion_tokens += sum(one.completion_tokens for one in exchanges)
        run.asked_at = now()
        self._save()
        if self._settings.agent_keep_pictures:
            self._keep(partner.take_pictures())

    def _keep(self, pictures: Mapping[str, bytes]) -> None:
        rows = [
            {"run_id": self._run.id, "sha256": sha256, "jpeg": jpeg}
            for sha256, jpeg in pictures.items()
        ]
        if rows:
            with self._services.database.session() as session:
                insert_or_ignore(session, AgentPicture, rows)

    def _seconds(self) -> float:
        return self._before_s + time.monotonic() - self._started

    def _save(self) -> None:
        run = self._run
        run.seconds = self._seconds()
        _store(
            self._services,
            run,
            exchanges=run.exchanges,
            outcomes=run.outcomes,
            image_hashes=run.image_hashes,
            requests=run.requests,
            prompt_tokens=run.prompt_tokens,
            completion_tokens=run.completion_tokens,
            seconds=run.seconds,
            asked_at=run.asked_at,
        )

    def _hand_over(self, begins_with: Suggestion) -> None:
        run = self._run
        run.seconds = self._seconds()
        changed = [
            (AgentQuestion(**question), outcome)
            for question, outcome in zip(run.questions, run.outcomes, strict=True)
            if outcome["by_agent"]
        ]
        prediction = None
        if changed:
            base = begins_with if not run.instruction else self._newest_prediction()
            regions = list((base.result if base is not None else None) or [])
            for question, outcome in changed:
                regions = _replaced(regions, question, self._regions(question, outcome))
            labels = base.labels if base is not None else None
            if labels is not None:
                labels = sorted({*labels, *(question.label for question, _ in changed)})
            prediction = {
                "id": run.id,
                "agent_run_id": run.id,
                "project_id": run.project_id,
                "task_id": run.task_id,
                "config_hash": run.config_hash,
                "task_data": needed_later(begins_with.task_data),
                "labels": labels,
                "model_version": run.model_version,
                "state": SuggestionState.DONE,
                "delivery": Delivery.PUSH,
                "result": regions,
                "score": (base or begins_with).score,
                "image_hash": begins_with.image_hash,
                "finished_at": now(),
            }
        _end(self._services, run, prediction, cost_of(self._services, run))
        if prediction is not None:
            enqueue_pushes(self._services, [run.id])

    def _newest_prediction(self) -> Suggestion | None:
        newest = (
            select(Suggestion)
            .where(
                Suggestion.project_id == self._run.project_id,
                Suggestion.task_id == self._run.task_id,
                Suggestion.model_version == self._run.model_version,
                Suggestion.interactive.is_(False),
                Suggestion.state == SuggestionState.DONE,
            )
            .order_by(Suggestion.finished_at.desc())
            .limit(1)
        )
        with self._services.database.reading() as session:
            return session.scalars(newest).first()

    def _regions(self, question: AgentQuestion, outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
        concept = concept_of_label(self._config, question.label)
        if concept is None:
            return []
        instances = [InstanceMask(mask_of_json(m), m["score"]) for m in outcome["masks"]]
        regions: list[dict[str, Any]] = []
        for instance in instances:
            height, width = instance.mask.shape
            regions += regions_for(
                concept,
                [instance],
                width=width,
                height=height,
                item_index=question.page,
                controls=concept.controls_of(question.image),
            )
        return regions


class _RecordedPartner:
    """Repeats what is written down already, then asks, and writes down what is decided."""

    def __init__(self, guided: _Guided, index: int, partner: ChatPartner) -> None:
        self._guided, self._index, self._partner = guided, index, partner
        self._known = guided.known_actions(index)

    def act(self, view: PartnerView, timeout_s: float) -> Action:
        """The next action."""
        if self._known:
            return self._known.pop(0)
        self._guided.before_asking()
        seen = len(self._partner.exchanges)
        action: Action | None = None
        try:
            action = self._partner.act(view, timeout_s)
        finally:
            self._guided.record(self._index, self._partner, seen, action)
        return action


def cost_of(services: Services, run: AgentRun) -> float | None:
    """What a run cost, where prices are set."""
    settings = services.settings
    prices = (settings.agent_price_prompt, settings.agent_price_completion)
    if prices == (None, None):
        return None
    prompt, completion = (price or 0.0 for price in prices)
    return (run.prompt_tokens * prompt + run.completion_tokens * completion) / 1e6


def _outcome_json(question: AgentQuestion, result: LoopResult) -> dict[str, Any]:
    chosen = result.masks if result.by_agent else ()
    return {
        "label": question.label,
        "page": question.page,
        "ending": str(result.ending),
        "reason": result.reason,
        "by_agent": result.by_agent,
        "rounds": result.rounds,
        "log": list(result.log),
        "masks": [{**mask_json(c.mask), "score": min(1.0, c.found.score)} for c in chosen],
    }


def _replaced(
    regions: Sequence[Mapping[str, Any]],
    question: AgentQuestion,
    new: Sequence[Mapping[str, Any]],
) -> list[Any]:
    """Regions of a prediction, those of one label on one page replaced with others."""

    def is_asked(region: Mapping[str, Any]) -> bool:
        here = (region["to_name"], region.get("item_index")) == (question.image, question.page)
        return here and question.label in label_values(region)

    ids = {region["id"] for region in regions if is_asked(region)}
    kept = [region for region in regions if region["id"] not in ids]
    return [*new, *kept]


@retried
def _store(services: Services, run: AgentRun, **values: object) -> None:
    with services.database.session() as session:
        _check_ours(session, run, values)


def _check_ours(session: Session, run: AgentRun, values: Mapping[str, Any]) -> None:
    kept = session.execute(
        update(AgentRun).where(ours(AgentRun, run)).values(**values).returning(AgentRun.id)
    ).all()
    if not kept:
        raise AgentInterruptedError("another worker has taken the run")


@retried
def _end(
    services: Services, run: AgentRun, prediction: Mapping[str, Any] | None, cost: float | None
) -> None:
    """Finish a run and write down the prediction that it brings, in one transaction."""
    with services.database.session() as session:
        values = {
            "state": SuggestionState.DONE,
            "lease_until": None,
            "finished_at": now_in(session),
            "questions": _without_addresses(run),
            "outcomes": [{**one, "masks": len(one["masks"])} for one in run.outcomes],
            "seconds": run.seconds,
            "cost": cost,
            "prediction_id": prediction["id"] if prediction is not None else None,
        }
        _check_ours(session, run, values)
        if prediction is not None:
            moment = now_in(session)
            insert_or_ignore(session, Suggestion, {**prediction, "created_at": moment})
        _remove_looks(session, run)


@retried
def _fail(services: Services, run: AgentRun, reason: str) -> None:
    with services.database.session() as session:
        session.execute(
            update(AgentRun)
            .where(ours(AgentRun, run))
            .values(
                state=SuggestionState.FAILED,
                lease_until=None,
                finished_at=now_in(session),
                questions=_without_addresses(run),
                outcomes=[{**one, "masks": len(one["masks"])} for one in run.outcomes],
                error=reason,
                cost=cost_of(services, run),
            )
        )
        _remove_looks(session, run)


def _without_addresses(run: AgentRun) -> list[Any]:
    """A finished run's questions: addresses of images may hold a signature, or a name."""
    return [question | {"reference": ""} for question in run.questions]


def _remove_looks(session: Session, run: AgentRun) -> None:
    session.execute(
        delete(Suggestion).where(
            Suggestion.agent_run_id == run.id, Suggestion.delivery == Delivery.LOOK
        )
    )
