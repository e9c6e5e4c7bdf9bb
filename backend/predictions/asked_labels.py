"""Predictions of some labels only: which labels can be asked for, and which tasks have them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import select

from backend.errors import BackendError, LabelConfigError
from backend.labeling.config import parse_label_config, quoted
from backend.predictions.tables import StackPropagation
from backend.services import Services
from backend.tables import Delivery, LabelConfigText, Suggestion, SuggestionState

_GONE = (SuggestionState.FAILED, SuggestionState.CANCELLED)


def check_labels(label_config: str, labels: Sequence[str]) -> None:
    """Refuse labels that a project's predictions never have.

    Raises:
        BackendError: with the labels that there are.
        LabelConfigError: the labeling config cannot be served.
    """
    there = [label.value for label in parse_label_config(label_config).labels]
    unknown = [label for label in labels if label not in there]
    if unknown:
        raise BackendError(
            f"The project has no label {quoted(unknown)} that the model is asked for; it has "
            f"{quoted(there)}."
        )


def without_labels(
    services: Services,
    project_id: int,
    version: str,
    labels: Sequence[str],
    tasks: Iterable[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Those of a project's tasks for which `version` was not asked for all of `labels`.

    A prediction of everything was asked for the labels of its own labeling config: one that was
    added later is missing in it. One that is under way counts.
    """
    asked: dict[int, set[str]] = {}
    drawn = select(StackPropagation.suggestion_id).where(
        StackPropagation.suggestion_id.is_not(None)
    )
    rows = select(Suggestion.task_id, Suggestion.labels, Suggestion.config_hash).where(
        Suggestion.project_id == project_id,
        Suggestion.task_id.is_not(None),
        Suggestion.model_version == version,
        Suggestion.interactive.is_(False),
        Suggestion.state.not_in(_GONE),
        Suggestion.delivery.not_in((Delivery.NONE, Delivery.PREVIEW)),
        Suggestion.agent_run_id.is_(None),
        Suggestion.id.not_in(drawn),
    )
    with services.database.reading() as session:
        configs: dict[str, frozenset[str]] = {}
        for task_id, some, hashed in session.execute(rows):
            if hashed not in configs:
                configs[hashed] = _labels_of(session.get_one(LabelConfigText, hashed).xml)
            asked.setdefault(task_id, set()).update(configs[hashed] if some is None else some)
    for task in tasks:
        if not asked.get(task["id"], set()).issuperset(labels):
            yield task


def _labels_of(label_config: str) -> frozenset[str]:
    try:
        return frozenset(label.value for label in parse_label_config(label_config).labels)
    except LabelConfigError:  # served by an earlier release
        return frozenset()
