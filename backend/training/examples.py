"""Examples: what a run is trained on and judged by, from a dataset version, with their images.

The version is an immutable list of revisions, so what a model was trained on can be exported by its
name. Its split follows from each group's name alone (`medsam3_model.data.samples`): a patient who
is for validation stays there in every later version, of every project.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.corrections.datasets import VersionItem, create_version, version_items
from backend.corrections.mask_store import MaskStore
from backend.corrections.revisions import CorrectedTask, latest_revisions
from backend.corrections.tables import DatasetVersion
from backend.database import chunked
from backend.errors import TrainingError
from backend.label_studio.client import LabelStudio
from backend.label_studio.images import FetchedImages, decode
from backend.labeling.concepts import concepts_for
from backend.labeling.config import LabelConfig
from backend.models.encoding import EncodedImage, embedding_cache
from backend.services import Services
from backend.settings import Consensus
from backend.tables import Suggestion
from backend.training.tables import TrainingRun

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Example:
    """One page of a corrected task, as training sees it.

    Attributes:
        key: SHA-256 of the image's file, under which embeddings are cached.
        reference: the image's address in the task.
        size: (height, width) in pixels; None where the image could not be read when the correction
            was taken in.
        masks: by phrase, what each annotator drew: names of mask files, one per object; an empty
            list from one who looked and found nothing. A phrase of nobody's is not there.
    """

    key: str
    reference: str
    size: tuple[int, int] | None
    project_id: int
    task_id: int
    group: str
    split: Split
    masks: Mapping[str, tuple[tuple[str, ...], ...]]

    def layers(
        self, store: MaskStore, rule: Consensus, size: tuple[int, int]
    ) -> dict[str, NDArray[np.int32]]:
        """Instance numbers by phrase, int32 (height, width) = `size`; all 0: it is not there.

        Raises:
            MaskError: a mask file is missing or damaged.
            TrainingError: a mask has another size than the image.
        """
        return {
            phrase: _layer([[store.get(name) for name in names] for names in drawn], rule, size)
            for phrase, drawn in self.masks.items()
        }


@dataclass(frozen=True)
class TrainingSet:
    """A dataset version as a run sees it; `digest` is a hash of its content."""

    dataset_id: int
    digest: str
    examples: tuple[Example, ...]

    def of(self, split: Split) -> tuple[Example, ...]:
        """The examples of one side."""
        return tuple(example for example in self.examples if example.split == split)


class Images:
    """Pixels, masks and embeddings of examples; the embeddings' folder is the GPU workers' own.

    A file is fetched when an embedding of the image or of a view of it is missing, and kept for the
    whole run within `image_cache_mb`.
    """

    def __init__(self, services: Services) -> None:
        self._settings = services.settings
        client = LabelStudio.from_settings(services.settings)
        self._files = FetchedImages(client, services.settings, keep_s=math.inf)
        self._masks = MaskStore(services.settings.storage)
        self._sizes: dict[str, tuple[int, int]] = {}
        self.cache = embedding_cache(services.settings)

    def rgb(self, example: Example) -> NDArray[np.uint8]:
        """The image, RGB uint8 (H, W, 3).

        Raises:
            ImageSourceError, LabelStudioError: it cannot be fetched.
            ImageError: it cannot be read.
            TrainingError: it is not the size that was annotated.
        """
        content, _ = self._files.get(
            example.reference, project_id=example.project_id, task_id=example.task_id
        )
        rgb = decode(content, self._settings, task_id=example.task_id)
        height, width = rgb.shape[:2]
        drawn = any(any(masks) for masks in example.masks.values())
        if drawn and example.size not in (None, (height, width)):
            raise TrainingError(
                f"The image of task {example.task_id} has {width}×{height} pixels, another size "
                "than when it was annotated: it changed under its address. Annotate it again."
            )
        self._sizes[example.key] = (height, width)
        return rgb

    def layers(
        self, example: Example, rule: Consensus, size: tuple[int, int] | None = None
    ) -> dict[str, NDArray[np.int32]]:
        """Instance numbers by phrase, see `Example.layers`.

        Args:
            example: whose masks are read.
            rule: what several annotators' masks become.
            size: (height, width) of the image, where the caller knows it; else the recorded one.
                An image of which none is recorded is read, once.
        """
        size = size or example.size or self._sizes.get(example.key)
        if size is None:
            height, width, _ = self.rgb(example).shape
            size = (height, width)
        return example.layers(self._masks, rule, size)

    def encoded(self, example: Example) -> EncodedImage:
        """The image as the model sees it."""
        return EncodedImage(self.cache, example.key, lambda: self.rgb(example))


def take(session: Session, run: TrainingRun) -> int:
    """Make a dataset version of what the project's annotations say now; returns its id.

    Raises:
        TrainingError: there is nothing to train on.
    """
    tasks = latest_revisions(session, run.project_id, per_annotator=True)
    if not tasks:
        raise TrainingError(
            f"Project {run.project_id} has no submitted annotations to learn from: annotate some "
            "tasks, or run `medsam3 corrections sync` if webhooks were missed."
        )
    version = create_version(session, run.project_id, tasks, f"run-{run.id}")
    run.dataset_id = version.id
    return version.id


def load(session: Session, dataset_id: int, config: LabelConfig) -> TrainingSet:
    """The examples of a dataset version, in the order of tasks and pages.

    Args:
        session: reads.
        dataset_id: from `take`.
        config: the project's labeling config, which says what its labels are asked as.
    """
    version = session.get_one(DatasetVersion, dataset_id)
    by_task: dict[int, list[VersionItem]] = {}
    for item in version_items(session, dataset_id):
        by_task.setdefault(item.task.task_id, []).append(item)
    data = _task_data(session, version.project_id, by_task)
    examples: list[Example] = []
    for task_id, items in by_task.items():
        split: Split = "val" if items[0].split == "val" else "train"
        phrases = phrases_of(config, data.get(task_id, {}))
        examples += _pages([item.task for item in items], phrases, split)
    return TrainingSet(dataset_id, version.digest, tuple(examples))


def phrases_of(config: LabelConfig, task_data: Mapping[str, Any]) -> dict[str, str]:
    """What each label of a task is asked as; labels that are not asked for are not there."""
    phrases: dict[str, str] = {}
    for concept in concepts_for(config, task_data):
        phrases.setdefault(concept.label, concept.phrase)
    return phrases


def _pages(
    tasks: Sequence[CorrectedTask], phrases: Mapping[str, str], split: Split
) -> Iterable[Example]:
    """One example per page, from all annotators' revisions of one task; newest annotator last."""
    ordered = sorted(
        tasks, key=lambda task: (task.ground_truth, task.updated_at, task.annotation_id)
    )
    newest = ordered[-1]
    for index, image in enumerate(newest.images):
        masks = {
            phrase: tuple(
                tuple(
                    instance.mask_hash
                    for instance in task.instances
                    if instance.item_index == index and instance.label == label
                )
                for task in ordered
                # An annotator who saw another image under the same address says nothing of this.
                if index < len(task.images) and task.images[index].hash == image.hash
            )
            for label, phrase in phrases.items()
        }
        yield Example(
            key=image.hash,
            reference=image.reference,
            size=(image.height, image.width) if image.height and image.width else None,
            project_id=newest.project_id,
            task_id=newest.task_id,
            group=newest.group,
            split=split,
            masks=masks,
        )


def _layer(
    drawn: Sequence[Sequence[NDArray[np.bool_]]], rule: Consensus, size: tuple[int, int]
) -> NDArray[np.int32]:
    """The instance map of one phrase from the masks of each annotator."""
    from backend.training import consensus
    from medsam3_model.boxes import connected_instances

    for mask in (mask for masks in drawn for mask in masks):
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
    unions = [np.any(masks, axis=0) if masks else nothing for masks in drawn]
    combine = consensus.majority if rule == "majority" else consensus.staple
    return connected_instances(combine(unions))


def _task_data(
    session: Session, project_id: int, task_ids: Iterable[int]
) -> dict[int, Mapping[str, Any]]:
    """Each task's data as it was last predicted; for tasks that carry their own prompts."""
    newest: dict[int, Mapping[str, Any]] = {}
    for chunk in chunked(sorted(task_ids)):
        rows = session.execute(
            select(Suggestion.task_id, Suggestion.task_data)
            .where(Suggestion.project_id == project_id, Suggestion.task_id.in_(chunk))
            .order_by(Suggestion.created_at)
        )
        newest.update({task_id: data for task_id, data in rows if task_id is not None})
    return newest
