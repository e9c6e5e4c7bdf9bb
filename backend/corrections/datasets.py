"""Dataset versions: a name for an immutable list of revisions with its split.

What is exported under a name today is exported under it next year, whatever was annotated in the
meantime. Without a name the version is called after its content, so the same corrections have the
same version.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.corrections.revisions import CorrectedTask, corrected_tasks, latest_revisions
from backend.corrections.tables import DatasetItem, DatasetVersion, Revision
from backend.errors import DatasetVersionError
from backend.volumes.sources import StackSource, stack_sources


@dataclass(frozen=True)
class VersionItem:
    """A revision in a dataset version; `split` is "train" or "val"."""

    task: CorrectedTask
    split: str


@dataclass(frozen=True)
class ExportedVersion:
    """A dataset version; `forgotten` of its revisions were removed on request.

    `stacks` are the volumes and videos that tasks were made of, by the task's id.
    """

    project_id: int
    name: str
    digest: str
    forgotten: int
    items: tuple[VersionItem, ...]
    stacks: Mapping[int, StackSource] = field(default_factory=dict)


def open_version(session: Session, project_id: int, name: str | None = None) -> ExportedVersion:
    """The version of that name; made of the latest valid revisions if there is none yet.

    Args:
        session: writes.
        project_id: one project.
        name: None takes a name made from the content, such as `v-1a2b3c4d`.

    Raises:
        DatasetVersionError: the project has no correction to make a version of.
    """
    known = _find(session, project_id, name) if name else None
    if known is None:
        latest = latest_revisions(session, project_id)
        if not latest:
            raise DatasetVersionError(
                f"project {project_id} has no valid corrections: annotate some tasks, or run "
                f"`medsam3 corrections sync --project {project_id}` if webhooks were missed"
            )
        known = create_version(session, project_id, latest, name)
    items = version_items(session, known.id)
    return ExportedVersion(
        project_id=project_id,
        name=known.name,
        digest=known.digest,
        forgotten=known.forgotten,
        items=items,
        stacks=stack_sources(session, project_id, sorted({item.task.task_id for item in items})),
    )


def version_items(session: Session, dataset_id: int) -> tuple[VersionItem, ...]:
    """The revisions of a dataset version, in the order of task and annotation."""
    rows = session.execute(
        select(Revision, DatasetItem.split)
        .join(DatasetItem, DatasetItem.revision_id == Revision.id)
        .where(DatasetItem.dataset_id == dataset_id)
    ).all()
    splits = {revision.id: split for revision, split in rows}
    tasks = corrected_tasks(session, (revision for revision, _ in rows))
    return tuple(VersionItem(task, splits[task.revision_id]) for task in tasks)


def create_version(
    session: Session, project_id: int, tasks: Sequence[CorrectedTask], name: str | None = None
) -> DatasetVersion:
    """Make a dataset version of revisions; one of that name that is there stays as it is.

    A revision's split follows from its group's name alone, so a patient who is for validation
    stays there in every later version, of every project. The digest is SHA-256 over what was
    submitted and how it is split: the same in every store.

    Args:
        session: writes.
        project_id: one project.
        tasks: the revisions.
        name: None takes `v-` and the first 8 digits of the digest.
    """
    from medsam3_model.data.samples import split_of_group

    splits = {task.revision_id: split_of_group(task.group) for task in tasks}
    lines = sorted(
        (task.annotation_id, task.content_hash, splits[task.revision_id]) for task in tasks
    )
    digest = hashlib.sha256(json.dumps(lines).encode()).hexdigest()
    name = name or f"v-{digest[:8]}"
    version = _find(session, project_id, name)
    if version is None:
        version = DatasetVersion(project_id=project_id, name=name, digest=digest)
        session.add(version)
        session.flush()
        session.add_all(
            DatasetItem(dataset_id=version.id, revision_id=revision_id, split=split)
            for revision_id, split in splits.items()
        )
        session.flush()
    return version


def _find(session: Session, project_id: int, name: str) -> DatasetVersion | None:
    return session.scalar(
        select(DatasetVersion).where(
            DatasetVersion.project_id == project_id, DatasetVersion.name == name
        )
    )
