"""Inference: from a stored suggestion to its regions, the GPU worker's side of a prediction."""

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from backend.agent.consent import check_consent
from backend.errors import ImageSourceError, LabelConfigError
from backend.label_studio.client import LabelStudio
from backend.label_studio.images import FetchedImages, decode
from backend.labeling.concepts import (
    Concept,
    concept_of_instruction,
    concept_of_label,
    concepts_for,
)
from backend.labeling.config import ImageObject, LabelConfig, parse_label_config
from backend.labeling.prompts import InteractivePrompt, read_context
from backend.labeling.regions import InstanceMask, regions_for
from backend.labeling.validation import validate
from backend.models import versions
from backend.models.encoding import EncodedImage, embedding_cache
from backend.models.loading import Models
from backend.predictions.agent_looks import answer_look
from backend.predictions.agent_runs import AgentQuestion
from backend.predictions.certainty import certainty
from backend.predictions.clicks import RedisAnswers, with_drawn_box
from backend.predictions.lanes import Lanes
from backend.predictions.minimum_volume import MinimumVolume, PageInstances, minimum_volume
from backend.predictions.propagations import is_propagation
from backend.predictions.stack_inference import (
    Progress,
    TaskStack,
    corrected_stack,
    propagated_regions,
)
from backend.processes.counters import StageTimes, WorkStage, publish
from backend.services import Services, current_services
from backend.tables import Delivery, Suggestion

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medsam3_model import Detections, ImageEmbedding, MedSAM3
    from medsam3_model.prompting import EncodeWindow, SpatialPrompt

# Share of the time that a request waits in which an answer goes on to other pages.
_TIME_TO_PROPAGATE = 0.6


@dataclass(frozen=True)
class TaskPrediction:
    """What a task's prediction holds.

    Attributes:
        regions: Label Studio's region dictionaries, validated.
        score: confidence of the whole task, 0 to 1; the least confident are labelled first.
        image_hash: SHA-256 of the (first) image's file.
        model_s: seconds that the model took, decoding and encoding of the image included.
        answered: what an agent may be asked about it; see `backend.predictions.agent_runs`.
        instruction: what an annotator typed for the agent, or nothing.
    """

    regions: list[dict[str, Any]]
    score: float
    image_hash: str
    model_s: float
    answered: tuple[AgentQuestion, ...] = ()
    instruction: str = ""


@dataclass(frozen=True)
class TaskPage:
    """One image of a task: where it is, and which page of a multi-page task it is (or None)."""

    image: ImageObject
    reference: str
    item_index: int | None


@dataclass(frozen=True)
class _PageAnswer:
    """What the model detected on one page: per concept, and as instances; see `TaskPrediction`."""

    page: TaskPage
    size: tuple[int, int]
    image_hash: str
    detections: "list[Detections]"
    found: PageInstances
    model_s: float


class Inference:
    """The loaded model with its caches; one per GPU worker.

    Attributes:
        times: how long its stages took; `publish_counts` takes them to Redis.
        lanes: in which it works on several tasks side by side.
    """

    def __init__(self, services: Services) -> None:
        from medsam3_model.embeddings.embedding_cache import TextCache

        settings = services.settings
        self._services = services
        self._files = FetchedImages(LabelStudio.from_settings(settings), settings)
        self._models = Models(services)
        self._texts = TextCache()
        self.times = StageTimes()
        self._embeddings = embedding_cache(settings)
        self.lanes = Lanes.for_model(self.model(versions.default_version(services)))

    def predict(self, row: Suggestion, label_config: str) -> TaskPrediction:
        """Predict one task.

        Raises:
            BackendError, MedSAM3Error: with a sentence that says what to change.
        """
        began = perf_counter()
        config = parse_label_config(label_config)
        if is_propagation(row):
            return self._propagate(row, config, label_config)
        prompt = read_context(row.context, config)
        if prompt is not None and row.task_id is not None:
            prompt = with_drawn_box(self._services.redis, row.project_id, row.task_id, prompt)
        if prompt is not None and prompt.instruction:
            # Said at once: nobody would ever follow the instruction.
            check_consent(self._services.settings)
        model = self.model(row.model_version)
        concepts = _concepts(config, row.task_data, prompt)
        if row.labels is not None:
            concepts = [concept for concept in concepts if concept.label in row.labels]
        minimum: dict[str, MinimumVolume] = {}
        if prompt is None:
            with self._services.database.reading() as session:
                # Before the pages: a stack that cannot be measured is refused at once.
                minimum = self._minimum_volumes(session, row, config)
        answers: list[_PageAnswer] = []
        answered: list[AgentQuestion] = []
        for page in _pages(config, row.task_data, prompt):
            asked = [concept for concept in concepts if concept.controls_of(page.image.name)]
            if asked or (prompt is not None and prompt.prewarm):
                answers.append(self._predict_page(model, row, page, asked, prompt))
                answered += _questions(page, asked, answers[-1].detections)
        regions = _regions(answers, minimum, most_controls=1 if prompt else None)
        if prompt is not None and prompt.propagate and concepts and answers:
            regions += self._on_other_pages(row, config, prompt, answers[0], began)
        validate(regions, label_config)
        detections = [concept for answer in answers for concept in answer.detections]
        if prompt is None:
            score = certainty(detections)
        else:
            score = fmean(map(confidence, detections)) if detections else 0.0
        return TaskPrediction(
            regions,
            score,
            answers[0].image_hash if answers else "",
            sum(answer.model_s for answer in answers),
            tuple(answered) if prompt is None or prompt.instruction else (),
            prompt.instruction if prompt is not None else "",
        )

    def look(self, row: Suggestion) -> TaskPrediction:
        """Answer what an agent's run asks; `regions` is what `agent_looks.answer_look` returns.

        Raises:
            BackendError, MedSAM3Error: with a sentence that says what to change.
        """
        context = row.context or {}
        image = self._image(row.project_id, context["task_id"], context["reference"])
        with self.lanes.at_model():
            started = perf_counter()
            with self.times.measured(WorkStage.DETECT, without=WorkStage.ENCODE):
                found = answer_look(self.model(row.model_version), image, context)
            return TaskPrediction(found, 0.0, image.key, perf_counter() - started)

    def model(self, version: str) -> "MedSAM3":
        """The model of a version; encoders are loaded once for all, detectors swapped in."""
        return self._models.get(version)

    def publish_counts(self) -> None:
        """Add what was counted since the last call to the counters behind /metrics."""
        counted = (self._embeddings.take_counts(), self._texts.take_counts(), self.times.take())
        publish(self._services.redis, dict(ChainMap(*counted)))

    def _predict_page(
        self,
        model: "MedSAM3",
        row: Suggestion,
        page: TaskPage,
        concepts: Sequence[Concept],
        prompt: InteractivePrompt | None,
    ) -> _PageAnswer:
        in_memory = _somebody_looks(row)
        image = self._image(row.project_id, row.task_id, page.reference, in_memory=in_memory)
        # Parts are kept unless boxes ask for them: nobody draws the same box twice.
        keep = prompt is None or bool(prompt.points)
        closer_look = partial(image.part, model, keep=keep)
        kept = RedisAnswers(self._services.redis, model.version, image.key)
        with self.lanes.at_model():
            started = perf_counter()
            whole = image.whole(model)
            with self.times.measured(WorkStage.DETECT, without=WorkStage.ENCODE):
                detections = self._detect(model, whole, concepts, prompt, closer_look, kept)
            model_s = perf_counter() - started
        found = smallest_first(zip(concepts, detections, strict=True))
        return _PageAnswer(page, whole.original_size, image.key, detections, found, model_s)

    def _minimum_volumes(
        self, session: Session, row: Suggestion, config: LabelConfig
    ) -> dict[str, MinimumVolume]:
        """What is left out of a task's stacks, by the image's name."""
        default = self._services.settings.min_volume_ml
        minima = {
            image.name: minimum_volume(
                session, row.project_id, row.task_id, image, row.task_data, config, default
            )
            for image in config.images
        }
        return {name: minimum for name, minimum in minima.items() if minimum is not None}

    def _image(
        self, project_id: int, task_id: int | None, reference: str, *, in_memory: bool = True
    ) -> EncodedImage:
        """A page, fetched; `in_memory`: kept there, file and embedding, for who comes next."""
        with self.times.measured(WorkStage.FETCH):
            content, image_hash = self._files.get(
                reference, project_id=project_id, task_id=task_id, keep=in_memory
            )
        return EncodedImage(
            self._embeddings,
            image_hash,
            lambda: decode(content, self._services.settings, task_id=task_id),
            self.times,
            in_memory=in_memory,
        )

    def _stack(self, row: Suggestion, image: ImageObject) -> TaskStack:
        """The pages of a task's image as slices."""
        references = image.references(row.task_data)
        model = self.model(row.model_version)
        return TaskStack(
            model=model,
            image=image.name,
            pages=len(references),
            read=lambda place: self._image(row.project_id, row.task_id, references[place]),
            texts=lambda phrases: self._texts.get(model, list(phrases)),
        )

    def _on_other_pages(
        self,
        row: Suggestion,
        config: LabelConfig,
        prompt: InteractivePrompt,
        answer: _PageAnswer,
        began: float,
    ) -> list[dict[str, Any]]:
        """A smart tool's answer on the stack's other pages, the nearest first, in time."""
        (image,) = [
            one for one in config.images if one.name == (prompt.image_name or config.images[0].name)
        ]
        (concept,) = _concepts(config, row.task_data, prompt)
        found = answer.detections[0]
        stack = self._stack(row, image)
        if not len(found) or stack.pages < 2:
            return []
        until = began + _TIME_TO_PROPAGATE * self._services.settings.predict_budget_s
        known = {concept: {prompt.item_index or 0: found.union()}}
        regions: list[dict[str, Any]] = []
        for _, drawn in stack.propagate(known):
            regions += stack.regions(concept, drawn, most_controls=1)
            if perf_counter() > until:
                break
        return regions

    def _propagate(self, row: Suggestion, config: LabelConfig, xml: str) -> TaskPrediction:
        """The rest of a stack, from its corrected slices."""
        context = row.context or {}
        (image,) = [image for image in config.images if image.name == context["image"]]
        stack = self._stack(row, image)
        most = self._services.settings.max_image_megapixels * 1e6
        corrected = corrected_stack(context, config, xml, row.task_data, most)
        progress = Progress(self._services, str(context["propagation"]))
        started = perf_counter()
        with self.lanes.at_model():
            regions, score = propagated_regions(stack, corrected, context, progress)
        validate(regions, xml)
        first = stack.read(min(context["slices"])).key
        return TaskPrediction(regions, score, first, perf_counter() - started)

    def _detect(
        self,
        model: "MedSAM3",
        embedding: "ImageEmbedding",
        concepts: Sequence[Concept],
        prompt: InteractivePrompt | None,
        closer_look: "EncodeWindow",
        kept: RedisAnswers,
    ) -> "list[Detections]":
        """What the model detects of each concept, thresholds of the labeling config applied."""
        from medsam3_model.prompting import segment_prompted
        from medsam3_model.proposals.everything import propose_everything
        from medsam3_model.proposals.exemplars import segment_like
        from medsam3_model.second_look import look_closer

        if not concepts:
            # The image is encoded by now, which is all that a prewarming asks for.
            if embedding.mirrored is not None:
                embedding.mirrored()
            return []
        texts = self._texts.get(model, [concept.phrase for concept in concepts])
        if prompt is not None and (prompt.boxes or prompt.points or prompt.strokes):
            spatial = in_pixels(prompt, embedding.original_size)
            if prompt.exemplar:
                boxes, labels = spatial.boxes, spatial.box_labels
                return [segment_like(model, embedding, texts[0], boxes, labels, closer_look)]
            return [segment_prompted(model, embedding, texts[0], spatial, closer_look, kept)]
        thresholds = [
            model.threshold_of(concept.phrase)
            if concept.score_threshold is None
            else concept.score_threshold
            for concept in concepts
        ]
        # One pass for all concepts, with the lowest threshold; each concept's own comes after it.
        settings = replace(model.settings, score_threshold=min(thresholds))
        detected = model.detect_all(embedding, texts, settings=settings)
        passed = [
            concept.above(threshold)
            for concept, threshold in zip(detected, thresholds, strict=True)
        ]
        answers = look_closer(model, embedding, texts, passed, closer_look)
        if any(concept.everything for concept in concepts):
            everything = propose_everything(model, embedding)
            answers = [
                everything if concept.everything else answer
                for concept, answer in zip(concepts, answers, strict=True)
            ]
        return answers


def _somebody_looks(row: Suggestion) -> bool:
    """Whether somebody may prompt on the task next; a batch must not push out what others use."""
    return row.interactive or row.delivery != Delivery.PUSH


def _regions(
    answers: Sequence[_PageAnswer],
    minimum: Mapping[str, MinimumVolume],
    most_controls: int | None,
) -> list[dict[str, Any]]:
    """Regions of all pages, without objects that are too small in three dimensions."""
    found = [answer.found for answer in answers]
    for name, volume in minimum.items():
        places = [place for place, answer in enumerate(answers) if answer.page.image.name == name]
        for place, kept in zip(places, volume.kept([found[at] for at in places]), strict=True):
            found[place] = kept
    regions: list[dict[str, Any]] = []
    for answer, concepts in zip(answers, found, strict=True):
        height, width = answer.size
        for concept, instances in concepts:
            regions += regions_for(
                concept,
                instances,
                width=width,
                height=height,
                item_index=answer.page.item_index,
                controls=concept.controls_of(answer.page.image.name)[:most_controls],
            )
    return regions


def _concepts(
    config: LabelConfig, task_data: Mapping[str, Any], prompt: InteractivePrompt | None
) -> Sequence[Concept]:
    """What to ask for: the drawn label's concept, else those of the task, text or config."""
    if prompt is not None and prompt.prewarm:
        return ()
    if prompt is not None and prompt.instruction:
        image_name = prompt.image_name or config.images[0].name
        return (concept_of_instruction(config, image_name, prompt.instruction),)
    if prompt is None or prompt.texts:
        return concepts_for(config, task_data, prompt.texts if prompt else ())
    image_name = prompt.image_name or config.images[0].name
    labels = config.labels_on(image_name)
    label = prompt.label or (config.labels[0].value if config.labels else "")
    if label not in labels and len(labels) == 1:
        (label,) = labels  # a click that says "positive" can only mean the one label
    concept = concept_of_label(config, label)
    if concept is None or label not in labels:
        raise LabelConfigError(
            f"the label {label!r} has no control that can hold a mask on the image "
            f"{image_name!r}: add it to a <BrushLabels> of that image"
        )
    return (concept,)


def _questions(
    page: TaskPage, concepts: Sequence[Concept], detections: "Sequence[Detections]"
) -> list[AgentQuestion]:
    """What an agent may be asked about a page: all but the objects without a name."""
    return [
        AgentQuestion(
            label=concept.label,
            phrase=concept.phrase,
            image=page.image.name,
            page=page.item_index,
            reference=page.reference,
            threshold=concept.score_threshold,
            confidence=confidence(detected),
        )
        for concept, detected in zip(concepts, detections, strict=False)
        if not concept.everything
    ]


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

    from medsam3_model.click_answers import STROKE_POINTS, spread_points
    from medsam3_model.prompting import SpatialPrompt

    height, width = size
    boxes = np.array(prompt.boxes, np.float32).reshape(-1, 4)
    points = np.array(prompt.points, np.float32).reshape(-1, 2) * [width, height] / 100
    labels = list(prompt.point_labels)
    strokes = []
    for drawn, inside in zip(prompt.strokes, prompt.stroke_labels, strict=True):
        stroke = _at_size(drawn, size)
        if inside:
            strokes.append(stroke)
        elif stroke.any():  # what is too much: clicks along the line say so
            points = np.vstack([points, spread_points(stroke, STROKE_POINTS)])
            labels += [0] * STROKE_POINTS
    return SpatialPrompt(
        (boxes * [width, height, width, height] / 100).astype(np.float32),
        prompt.box_labels,
        points.clip(0, [width, height]).astype(np.float32),
        labels,
        np.stack(strokes) if strokes else np.zeros((0, *size), np.bool_),
    )


def _at_size(stroke: "NDArray[np.bool_]", size: tuple[int, int]) -> "NDArray[np.bool_]":
    """A stroke at the image's own size, which the editor may have been told wrongly."""
    import numpy as np

    if stroke.shape == size:
        return stroke
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, stroke.shape, strict=True)
    )
    return stroke[rows[:, None], columns]


def smallest_first(
    answers: "Iterable[tuple[Concept, Detections]]",
) -> list[tuple[Concept, list[InstanceMask]]]:
    """The concepts' instances, small concepts before large ones.

    The editor paints the first region on top: an organ that came first would hide what is in it.
    """

    def largest(answer: tuple[Concept, list[InstanceMask]]) -> int:
        return max((int(instance.mask.sum()) for instance in answer[1]), default=0)

    instances = ((concept, instances_of(detections)) for concept, detections in answers)
    return sorted(instances, key=largest)


def instances_of(detections: "Detections") -> list[InstanceMask]:
    """Every instance that passed; where none did, the semantic map if the concept is there."""
    if len(detections):
        instances = zip(detections.masks, detections.scores, detections.boxes, strict=True)
        return [
            InstanceMask(mask, float(score), (float(x0), float(y0), float(x1), float(y1)))
            for mask, score, (x0, y0, x1, y1) in instances
        ]
    mask, source = detections.concept_mask()
    if source == "none":
        return []
    return [InstanceMask(mask, float(detections.semantic[mask].mean()))]


def confidence(detections: "Detections") -> float:
    """How sure the model is of its answer for one concept, 0 to 1, present or absent."""
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
