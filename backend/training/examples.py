"""What a run learns from: an immutable list of revisions with a split that never moves.

A snapshot is a dataset version of the corrections, so what a model was trained on can be exported
by its name. Its split follows from each group's name alone (`medsam3_model.data.datasets`): a
patient who is for validation stays there in every later snapshot, of every project.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.corrections.revisions import CorrectedTask, corrected_tasks, latest_revisions
from backend.corrections.tables import Annotation, DatasetItem, DatasetVersion, Revision
from backend.errors import TrainingError
from backend.labeling.concepts import concepts_for
from backend.labeling.config import LabelConfig
from backend.settings import Consensus
from backend.tables import Suggestion
from backend.training.tables import TrainingRun

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backend.corrections.mask_store import MaskStore

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Example:
    """One page of a corrected task, as training sees it.

    Attributes:
        key: SHA-256 of the image's file, under which embeddings are cached.
        reference: the image's address in the task.
        masks: by phrase, what each annotator drew: names of mask files, one per object; an empty
            list from one who looked and found nothing. A phrase of nobody's is not there.
    """

    key: str
    reference: str
    project_id: int
    task_id: int
    group: str
    split: Split
    masks: Mapping[str, tuple[tuple[str, ...], ...]]

    def layers(
        self, store: "MaskStore", rule: Consensus, size: tuple[int, int]
    ) -> dict[str, "NDArray[np.int32]"]:
        """Instance numbers by phrase, int32 (height, width) = `size`; all 0: it is not there.

        Raises:
            MaskError: a mask file is missing or damaged.
            TrainingError: a mask has another size than the image.
        """
        return {
            phrase: _layer([[store.get(name) for name in one] for one in drawn], rule, size)
            for phrase, drawn in self.masks.items()
        }


@dataclass(frozen=True)
class Snapshot:
    """The examples of a run; `forgotten` revisions were removed since it was taken."""

    dataset_id: int
    digest: str
    examples: tuple[Example, ...]
    forgotten: int = 0
    concepts: tuple[str, ...] = field(default=())

    def of(self, split: Split) -> tuple[Example, ...]:
        """The examples of one side."""
        return tuple(example for example in self.examples if example.split == split)


def take(session: Session, run: TrainingRun) -> int:
    """Write down what the project's annotations say now; returns the dataset version's id.

    Raises:
        TrainingError: there is nothing to learn from.
    """
    from medsam3_model.data.datasets import split_of_group

    tasks = latest_revisions(session, run.project_id, per_annotator=True)
    if not tasks:
        raise TrainingError(
            f"Project {run.project_id} has no submitted annotations to learn from: annotate some "
            "tasks, or run `medsam3 corrections sync` if webhooks were missed."
        )
    splits = {task.revision_id: split_of_group(task.group) for task in tasks}
    lines = sorted(
        (task.annotation_id, task.content_hash, splits[task.revision_id]) for task in tasks
    )
    version = DatasetVersion(
        project_id=run.project_id,
        name=f"run-{run.id}",
        digest=hashlib.sha256(json.dumps(lines).encode()).hexdigest(),
    )
    session.add(version)
    session.flush()
    session.add_all(
        DatasetItem(dataset_id=version.id, revision_id=id_, split=split)
        for id_, split in splits.items()
    )
    run.dataset_id = version.id
    return version.id


def load(session: Session, dataset_id: int, config: LabelConfig) -> Snapshot:
    """The examples of a snapshot, in the order of tasks and pages.

    Args:
        session: reads.
        dataset_id: from `take`.
        config: the project's labeling config, which says what its labels are asked as.
    """
    version = session.get_one(DatasetVersion, dataset_id)
    found = session.execute(
        select(DatasetItem.revision_id, DatasetItem.split).where(
            DatasetItem.dataset_id == dataset_id
        )
    )
    items = {row.revision_id: row.split for row in found}
    rows = session.scalars(select(Revision).where(Revision.id.in_(list(items)))).all()
    tasks = corrected_tasks(session, rows)
    data = _task_data(session, version.project_id, {task.task_id for task in tasks})
    by_task: dict[int, list[CorrectedTask]] = {}
    for task in tasks:
        by_task.setdefault(task.task_id, []).append(task)
    examples = [
        example
        for task_id, own in by_task.items()
        for example in _pages(
            own, phrases_of(config, data.get(task_id, {})), _split(items[own[0].revision_id])
        )
    ]
    return Snapshot(
        dataset_id=dataset_id,
        digest=version.digest,
        examples=tuple(examples),
        forgotten=version.forgotten,
        concepts=tuple(sorted({phrase for one in examples for phrase in one.masks})),
    )


def new_corrections(session: Session, project_id: int) -> int:
    """How many annotations changed since the project's last snapshot was taken."""
    last = session.scalar(
        select(TrainingRun.dataset_id)
        .where(TrainingRun.project_id == project_id, TrainingRun.dataset_id.is_not(None))
        .order_by(TrainingRun.created_at.desc())
        .limit(1)
    )
    known = select(DatasetItem.revision_id).where(DatasetItem.dataset_id == (last or 0))
    return (
        session.scalar(
            select(func.count())
            .select_from(Annotation)
            .join(Revision, Revision.id == Annotation.revision_id)
            .where(
                Annotation.project_id == project_id,
                Annotation.state == "valid",
                Revision.was_cancelled.is_(False),
                Revision.from_prediction.is_(False),
                Annotation.revision_id.not_in(known),
            )
        )
        or 0
    )


def phrases_of(config: LabelConfig, task_data: Mapping[str, Any]) -> dict[str, str]:
    """What each label of a task is asked as; labels that are not asked for are not there."""
    found: dict[str, str] = {}
    for concept in concepts_for(config, task_data):
        found.setdefault(concept.label, concept.phrase)
    return found


def _pages(
    tasks: Sequence[CorrectedTask], phrases: Mapping[str, str], split: Split
) -> Iterable[Example]:
    """One example per page, from all annotators' revisions of one task; newest annotator last."""
    ordered = sorted(tasks, key=lambda one: (one.ground_truth, one.updated_at, one.annotation_id))
    newest = ordered[-1]
    for index, image in enumerate(newest.images):
        masks = {
            phrase: tuple(
                tuple(
                    one.mask_hash
                    for one in task.instances
                    if one.item_index == index and one.label == label
                )
                for task in ordered
                if index < len(task.images) and task.images[index].hash == image.hash
            )
            for label, phrase in phrases.items()
        }
        yield Example(
            key=image.hash,
            reference=image.reference,
            project_id=newest.project_id,
            task_id=newest.task_id,
            group=newest.group,
            split=split,
            masks=masks,
        )


def _layer(
    drawn: Sequence[Sequence["NDArray[np.bool_]"]], rule: Consensus, size: tuple[int, int]
) -> "NDArray[np.int32]":
    """The instance map of one phrase from the masks of each annotator."""
    import numpy as np

    from backend.training import consensus
    from medsam3_model.boxes import connected_instances

    for mask in (mask for one in drawn for mask in one):
        if mask.shape != size:
            raise TrainingError(
                f"A mask of {mask.shape[1]}×{mask.shape[0]} pixels belongs to an image of "
                f"{size[1]}×{size[0]}: the image changed under its address. Annotate it again."
            )
    if rule == "latest" or len(drawn) == 1:
        layer = np.zeros(size, np.int32)
        # Where two objects overlap the smaller one stays visible.
        for number, mask in enumerate(sorted(drawn[-1], key=np.count_nonzero, reverse=True), 1):
            layer[mask] = number
        return layer
    nothing = np.zeros(size, np.bool_)
    unions = [np.any(one, axis=0) if one else nothing for one in drawn]
    combine = consensus.majority if rule == "majority" else consensus.staple
    return connected_instances(combine(unions))


def _task_data(
    session: Session, project_id: int, task_ids: set[int]
) -> dict[int, Mapping[str, Any]]:
    """Each task's data as it was last predicted; for tasks that carry their own prompts."""
    found: dict[int, Mapping[str, Any]] = {}
    wanted = sorted(task_ids)
    for start in range(0, len(wanted), 500):
        rows = session.execute(
            select(Suggestion.task_id, Suggestion.task_data)
            .where(
                Suggestion.project_id == project_id,
                Suggestion.task_id.in_(wanted[start : start + 500]),
            )
            .order_by(Suggestion.created_at)
        )
        found.update({task_id: data for task_id, data in rows if task_id is not None})
    return found


def _split(text: str) -> Split:
    return "val" if text == "val" else "train"
