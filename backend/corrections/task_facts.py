"""What the corrections know of each task, written into the task's `meta` in Label Studio.

Label Studio's API gives a task's meta with the task and filters by it. Only keys of our own are
touched, and only tasks whose facts changed are written.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.corrections.agreement import task_dice
from backend.corrections.tables import (
    Annotation,
    OutcomeKind,
    RegionOutcome,
    Revision,
    is_correction,
)
from backend.label_studio.client import LabelStudio
from backend.services import Services

SPLIT, OUTCOME, DISAGREEMENT = "medsam3_split", "medsam3_outcome", "medsam3_disagreement"
_KEYS = frozenset({SPLIT, OUTCOME, DISAGREEMENT})

Facts = Mapping[str, str | float]


@dataclass(frozen=True)
class FactsWritten:
    """How many tasks have facts, and how many were changed in Label Studio.

    left_out: tasks whose meta is no JSON object, so that nothing can be added to it.
    """

    tasks: int
    changed: int
    left_out: tuple[int, ...] = ()


def task_facts(services: Services, project_id: int) -> dict[int, Facts]:
    """The facts of every task that somebody corrected, by its id.

    Returns:
        `medsam3_split`: "train" or "val", as every dataset version splits it. `medsam3_outcome`:
        what became of its predicted regions, "accepted, edited"; missing where there was none and
        none was added. `medsam3_disagreement`: 1 minus the mean Dice of its annotators, 0..1;
        missing where fewer than two of them can be compared.
    """
    from medsam3_model.data.samples import split_of_group

    with services.database.reading() as session:
        groups = _groups(session, project_id)
        outcomes = _outcomes(session, project_id)
    dice = task_dice(services, project_id)
    facts: dict[int, Facts] = {}
    for task_id, group in groups.items():
        found: dict[str, str | float] = {SPLIT: split_of_group(group)}
        kinds = [kind for kind in OutcomeKind if kind in outcomes[task_id]]
        if kinds:
            found[OUTCOME] = ", ".join(kinds)
        if task_id in dice:
            found[DISAGREEMENT] = round(1 - dice[task_id], 3)
        facts[task_id] = found
    return facts


def write_facts(
    services: Services,
    studio: LabelStudio,
    project_id: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> FactsWritten:
    """Write a project's facts into its tasks; facts that do not hold any more are removed.

    Args:
        services: the corrections.
        studio: Label Studio, where they go.
        project_id: one project.
        progress: called with the tasks that are looked at and all of the project's.

    Raises:
        LabelStudioError: Label Studio is away or refuses; what is written stays, and the next call
            writes the rest.
    """
    facts = task_facts(services, project_id)
    tasks = list(studio.tasks(project_id, include=("id", "meta")))
    changed, left_out = 0, []
    for done, task in enumerate(tasks, start=1):
        progress(done, len(tasks))
        before = task.get("meta") or {}
        if not isinstance(before, dict):
            left_out.append(task["id"])
            continue
        after = {key: value for key, value in before.items() if key not in _KEYS}
        after |= facts.get(task["id"], {})
        if after != before:
            studio.patch(f"/api/tasks/{task['id']}/", {"meta": after})
            changed += 1
    return FactsWritten(len(facts), changed, tuple(left_out))


def _groups(session: Session, project_id: int) -> dict[int, str]:
    """The group of every corrected task."""
    rows = session.execute(
        select(Revision.task_id, Revision.task_group)
        .join(Annotation, Annotation.revision_id == Revision.id)
        .where(Annotation.project_id == project_id, is_correction())
        .order_by(Revision.id)
    )
    return {row.task_id: row.task_group for row in rows}


def _outcomes(session: Session, project_id: int) -> dict[int, set[str]]:
    """What became of the regions of every task, in the current version of each annotation."""
    rows = session.execute(
        select(Revision.task_id, RegionOutcome.outcome)
        .join(Annotation, Annotation.revision_id == Revision.id)
        .join(RegionOutcome, RegionOutcome.revision_id == Revision.id)
        .where(Annotation.project_id == project_id, is_correction())
        .distinct()
    )
    found: dict[int, set[str]] = defaultdict(set)
    for task_id, outcome in rows:
        found[task_id].add(outcome)
    return found
