"""From a stored suggestion to its regions: the GPU worker's side of a prediction."""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from backend.errors import ImageSourceError, LabelConfigError
from backend.label_studio.client import LabelStudio
from backend.label_studio.images import fetch_image
from backend.labeling.concepts import Concept, concept_of_label, concepts_for
from backend.labeling.config import ImageObject, LabelConfig, parse_label_config
from backend.labeling.prompts import InteractivePrompt, read_context
from backend.labeling.regions import InstanceMask, regions_for, validate
from backend.models import versions
from backend.models.loading import Models
from backend.predictions import acquisition
from backend.processes.counters import add_to_counters
from backend.services import Services, current_services
from backend.tables import Suggestion

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medsam3_model import Detections, ImageEmbedding, MedSAM3
    from medsam3_model.box_answers import Window
    from medsam3_model.prompting import SpatialPrompt

log = logging.getLogger(__name__)

# An uploaded image never changes under its address; a local file may, so it is read again now
# and then.
IMAGE_TTL_S = 300.0


@dataclass(frozen=True)
class TaskPrediction:
    """What a task's prediction holds.

    Attributes:
        regions: Label Studio's region dictionaries, validated.
        score: confidence of the whole task, 0 to 1; the least confident are labelled first.
        image_hash: SHA-256 of the (first) image's file.
        model_s: seconds that the model took, decoding and encoding of the image included.
    """

    regions: list[dict[str, Any]]
    score: float
    image_hash: str
    model_s: float


@dataclass(frozen=True)
class TaskPage:
    """One image of a task: where it is, and which page of a multi-page task it is (or None)."""

    image: ImageObject
    reference: str
    item_index: int | None


class ImageBytes:
    """Fetched files, by address, within a limit of bytes and for a limited time."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._kept: OrderedDict[tuple[int, str], tuple[float, bytes, str]] = OrderedDict()

    def get(self, key: tuple[int, str], fetch: Callable[[], bytes]) -> tuple[bytes, str]:
        """The file and its SHA-256; fetched when it is not here or too old."""
        found = self._kept.pop(key, None)
        if found is not None:
            self._size -= len(found[1])
        if found is None or monotonic() - found[0] > IMAGE_TTL_S:
            content = fetch()
            found = (monotonic(), content, hashlib.sha256(content).hexdigest())
        self._kept[key] = found
        self._size += len(found[1])
        while self._size > self._max_bytes and len(self._kept) > 1:
            _, (_, dropped, _) = self._kept.popitem(last=False)
            self._size -= len(dropped)
        return found[1], found[2]


class Inference:
    """The loaded model with its caches; one per GPU worker."""

    def __init__(self, services: Services) -> None:
        from medsam3_model.embedding_cache import EmbeddingCache, TextCache

        settings = services.settings
        self._services = services
        self._client = LabelStudio.from_settings(settings)
        self._files = ImageBytes(settings.image_cache_mb * 2**20)
        self._models = Models(services)
        self._texts = TextCache()
        self._embeddings = EmbeddingCache(
            settings.embedding_dir,
            memory_bytes=settings.embedding_memory_mb * 2**20,
            disk_bytes=settings.embedding_disk_mb * 2**20,
        )
        self.model(versions.default_version(services))

    def predict(self, row: Suggestion, label_config: str) -> TaskPrediction:
        """Predict one task.

        Raises:
            BackendError, MedSAM3Error: with a sentence that says what to change.
        """
        config = parse_label_config(label_config)
        prompt = read_context(row.context, config)
        model = self.model(row.model_version)
        concepts = _concepts(config, row.task_data, prompt)
        regions: list[dict[str, Any]] = []
        confidences: list[float] = []
        hashes: list[str] = []
        found: list[Detections] = []
        mirrored: list[Callable[[], list[Detections]]] = []
        model_s = 0.0
        for page in _pages(config, row.task_data, prompt):
            wanted = [concept for concept in concepts if concept.controls_of(page.image.name)]
            if not wanted:
                continue
            content, image_hash = self._file(page, row)
            hashes.append(image_hash)
            started = perf_counter()
            embedding = self._embedding(model, content, image_hash)
            closer_look = partial(
                self._closer_look, model, content, image_hash, keep=prompt is None
            )
            answers = self._answer(model, embedding, wanted, prompt, closer_look)
            model_s += perf_counter() - started
            found += [detections for _, detections in answers]
            if prompt is None:
                acquisition.remember_vector(self._services, image_hash, embedding)
                mirrored.append(partial(self._mirrored, model, content, image_hash, wanted))
            confidences += [confidence(detections) for _, detections in answers]
            height, width = embedding.original_size
            for concept, instances in smallest_first(answers):
                regions += regions_for(
                    concept,
                    instances,
                    width=width,
                    height=height,
                    item_index=page.item_index,
                    controls=concept.controls_of(page.image.name)[: 1 if prompt else None],
                )
        validate(regions, label_config)
        if prompt is None:
            score = acquisition.score(
                self._services,
                row.project_id,
                row.task_id,
                found,
                lambda: [one for look in mirrored for one in look()],
            )
        else:
            score = fmean(confidences) if confidences else 0.0
        return TaskPrediction(regions, score, hashes[0] if hashes else "", model_s)

    def model(self, version: str) -> "MedSAM3":
        """The model of a version; encoders are loaded once for all, detectors swapped in."""
        return self._models.get(version)

    def publish_counts(self) -> None:
        """Add what the caches did since the last call to the counters behind /metrics."""
        try:
            add_to_counters(
                self._services.redis,
                {**self._embeddings.take_counts(), **self._texts.take_counts()},
            )
        except RedisError as error:
            log.warning("counters are not published (%s)", type(error).__name__)

    def _file(self, page: TaskPage, row: Suggestion) -> tuple[bytes, str]:
        return self._files.get(
            (row.project_id, page.reference),
            lambda: fetch_image(
                page.reference,
                client=self._client,
                settings=self._services.settings,
                task_id=row.task_id,
                project_id=row.project_id,
            ),
        )

    def _mirrored(
        self, model: "MedSAM3", content: bytes, image_hash: str, concepts: Sequence[Concept]
    ) -> "list[Detections]":
        """What the model finds in the mirrored image, turned back."""

        def encode(window: "Window | None" = None) -> "ImageEmbedding":
            x0, y0, x1, y1 = window or (0, 0, None, None)
            return model.encode_image(self._pixels(content)[:, ::-1][y0:y1, x0:x1].copy())

        embedding = self._embeddings.get(model, f"{image_hash}-mirrored", encode)
        return [
            replace(one, masks=one.masks[:, :, ::-1], semantic=one.semantic[:, ::-1])
            for _, one in self._answer(model, embedding, concepts, None, encode)
        ]

    def _embedding(self, model: "MedSAM3", content: bytes, image_hash: str) -> "ImageEmbedding":
        return self._embeddings.get(
            model, image_hash, lambda: model.encode_image(self._pixels(content))
        )

    def _pixels(self, content: bytes) -> "NDArray[np.uint8]":
        from medsam3_model.images.reading import ImageLimits, read_image

        settings = self._services.settings
        limits = ImageLimits(
            max_bytes=settings.max_image_mb * 2**20,
            max_pixels=int(settings.max_image_megapixels * 1e6),
        )
        return read_image(content, limits=limits)

    def _closer_look(
        self, model: "MedSAM3", content: bytes, image_hash: str, window: "Window", *, keep: bool
    ) -> "ImageEmbedding":
        """A part of the image; not kept for boxes, because nobody draws the same one twice."""
        x0, y0, x1, y1 = window

        def encode() -> "ImageEmbedding":
            return model.encode_image(self._pixels(content)[y0:y1, x0:x1])

        if not keep:
            return encode()
        return self._embeddings.get(model, f"{image_hash}-window-{x0}-{y0}-{x1}-{y1}", encode)

    def _answer(
        self,
        model: "MedSAM3",
        embedding: "ImageEmbedding",
        concepts: Sequence[Concept],
        prompt: InteractivePrompt | None,
        closer_look: "Callable[[Window], ImageEmbedding]",
    ) -> list[tuple[Concept, "Detections"]]:
        """What the model finds of each concept, thresholds of the labeling config applied."""
        from medsam3_model.prompting import segment_prompted
        from medsam3_model.small_objects import look_closer

        texts = self._texts.get(model, [concept.phrase for concept in concepts])
        if prompt is not None and (prompt.boxes or prompt.points):
            spatial = in_pixels(prompt, embedding.original_size)
            answer = segment_prompted(model, embedding, texts[0], spatial, closer_look)
            return [(concepts[0], answer)]
        wanted = [
            model.settings.score_threshold
            if concept.score_threshold is None
            else concept.score_threshold
            for concept in concepts
        ]
        settings = replace(model.settings, score_threshold=min(wanted))
        found = model.detect_all(embedding, texts, settings=settings)
        kept = [one.above(threshold) for one, threshold in zip(found, wanted, strict=True)]
        kept = look_closer(model, embedding, texts, kept, closer_look)
        return list(zip(concepts, kept, strict=True))


def _concepts(
    config: LabelConfig, task_data: Mapping[str, Any], prompt: InteractivePrompt | None
) -> Sequence[Concept]:
    """What to ask for: the drawn label's concept, else those of the task, text or config."""
    if prompt is None or prompt.texts:
        return concepts_for(config, task_data, prompt.texts if prompt else ())
    label = prompt.label or (config.labels[0].value if config.labels else "")
    concept = concept_of_label(config, label)
    if concept is None:
        raise LabelConfigError(
            f"the label {label!r} has no control that can hold a mask: add it to a <BrushLabels>"
        )
    return (concept,)


def _pages(
    config: LabelConfig, task_data: Mapping[str, Any], prompt: InteractivePrompt | None
) -> list[TaskPage]:
    """The images to look at: all of the task's, or the one that was drawn on."""
    pages = []
    for image in config.images:
        for index, reference in enumerate(image.references(task_data)):
            if prompt is not None and (image.name, index) != (
                prompt.image_name or config.images[0].name,
                prompt.item_index or 0,
            ):
                continue
            pages.append(TaskPage(image, reference, index if image.multi_page else None))
    if not pages:
        raise ImageSourceError("the page that was drawn on is not in the task")
    return pages


def in_pixels(prompt: InteractivePrompt, size: tuple[int, int]) -> "SpatialPrompt":
    """A drawn prompt, in percent of the image, as pixels; `size` is (height, width)."""
    import numpy as np

    from medsam3_model.prompting import SpatialPrompt

    height, width = size
    boxes = np.array(prompt.boxes, np.float32).reshape(-1, 4)
    points = np.array(prompt.points, np.float32).reshape(-1, 2)
    return SpatialPrompt(
        (boxes * [width, height, width, height] / 100).astype(np.float32),
        prompt.box_labels,
        (points * [width, height] / 100).astype(np.float32),
        prompt.point_labels,
    )


def smallest_first(
    answers: Sequence[tuple[Concept, "Detections"]],
) -> list[tuple[Concept, list[InstanceMask]]]:
    """The concepts' instances, small concepts before large ones.

    The editor paints the first region on top: an organ that came first would hide what is in it.
    """
    found = [(concept, instances_of(detections)) for concept, detections in answers]
    return sorted(found, key=lambda one: max((int(i.mask.sum()) for i in one[1]), default=0))


def instances_of(detections: "Detections") -> list[InstanceMask]:
    """Every instance that passed; where none did, the semantic map if the concept is there."""
    if len(detections):
        found = zip(detections.masks, detections.scores, detections.boxes, strict=True)
        return [
            InstanceMask(mask, float(score), (float(x0), float(y0), float(x1), float(y1)))
            for mask, score, (x0, y0, x1, y1) in found
        ]
    mask, source = detections.concept_mask()
    if source == "none":
        return []
    return [InstanceMask(mask, float(detections.semantic[mask].mean()))]


def confidence(detections: "Detections") -> float:
    """How sure the model is of its answer for one concept, 0 to 1, found or absent."""
    if len(detections):
        return float(detections.scores.mean())
    return max(detections.presence, 1 - detections.presence)


_current: Inference | None = None


def current_inference() -> Inference:
    """This worker's inference; the model is loaded at the first call."""
    global _current  # noqa: PLW0603 one per process
    if _current is None:
        _current = Inference(current_services())
    return _current
