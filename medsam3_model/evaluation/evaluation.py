"""Evaluation of a model on images with masks: by text alone, and by text with boxes.

Published figures for text and box take the boxes from the true masks, and such a box alone is
worth a lot: in the modes with boxes the filled box and its inscribed ellipse are always scored
beside the model, from the very same boxes.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsam3_model.boxes import (
    BOX_ERROR,
    disturbed_boxes,
    filled_boxes_mask,
    inscribed_ellipses_mask,
)
from medsam3_model.data.masks import ConceptTruth
from medsam3_model.data.samples import Dataset, Sample
from medsam3_model.errors import DatasetError
from medsam3_model.evaluation.metrics import (
    SURFACE_TOLERANCE,
    bootstrap_mean,
    dice,
    paired_bootstrap,
    proportion,
    score_mask,
)
from medsam3_model.evaluation.report import (
    ConceptReport,
    EvaluationReport,
    FalseAlarms,
    ImageResult,
    Mode,
)
from medsam3_model.prompting import SpatialPrompt, segment_prompted
from medsam3_model.second_look import look_closer
from medsam3_model.types import Detections, ImageEmbedding, MaskRule, TextEmbedding, Window

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3


def parse_prompts(texts: Sequence[str], dataset: Dataset) -> dict[str, str]:
    """Phrases by concept, from "phrase" or "concept=phrase".

    A phrase without a concept goes to the concept of that name ("left lung" to `left_lung`), or
    to the only one there is. Without any text every concept is asked for by its own name.
    Raises `DatasetError` where a text fits no concept, or two fit the same.
    """
    if not texts:
        return {
            concept: concept if dataset.exact_names else concept.replace("_", " ")
            for concept in dataset.concepts
        }
    prompts: dict[str, str] = {}
    for text in texts:
        concept, phrase = _concept_and_phrase(text, dataset)
        if not phrase:
            raise DatasetError(f"The prompt '{text}' has no phrase. Write it as concept=phrase.")
        dataset.check_concepts([concept])
        if concept in prompts:
            raise DatasetError(f"'{concept}' has two phrases. Evaluate one after the other.")
        prompts[concept] = phrase
    return prompts


def _concept_and_phrase(text: str, dataset: Dataset) -> tuple[str, str]:
    if text in dataset.concepts:
        return text, text
    # A label may hold "=" itself: of the concepts that the text begins with, the longest counts.
    for concept in sorted(dataset.concepts, key=len, reverse=True):
        start, separator, phrase = text.partition(f"{concept}=")
        if separator and not start.strip():
            return concept, phrase.strip()
    concept, separator, phrase = (part.strip() for part in text.partition("="))
    if separator:
        return concept, phrase
    for name in (concept, concept.replace(" ", "_")):
        if name in dataset.concepts:
            return name, concept
    return (dataset.concepts[0] if len(dataset.concepts) == 1 else concept), concept


def evaluate(
    model: "MedSAM3",
    dataset: Dataset,
    prompts: Mapping[str, str],
    mode: Mode = "t",
    *,
    split: Literal["all", "val"] = "all",
    others: Sequence[Dataset] = (),
    mask: MaskRule = "instances",
    seed: int = 0,
    tolerance: float = SURFACE_TOLERANCE,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Score a model's masks against a data set's.

    Args:
        model: the model that is judged.
        dataset: images with masks.
        prompts: the phrase to ask with, by concept of the data set.
        mode: "t" asks with the phrase alone, in every image, whether the concept is in it or not.
            "ti" adds the tight boxes of all its instances (of the mask's 4-connected components
            where instances are not separated), "ti-jitter" the same boxes with each side moved by
            a normal error of 8 % of the box's size; images without the concept are left out.
        split: "val" takes the groups that `datasets.split_of_group` keeps for judging.
        others: images without any of the concepts, for false alarms (mode t); see
            `datasets.load_images`. `split` holds for them, too.
        mask: see `Detections.concept_mask`; of mode t. The masks of boxes are those of
            `prompting.segment_prompted`.
        seed: of the boxes' errors and of the bootstrap.
        tolerance: of the surface Dice, in pixels.
        progress: called with the number of images done and their total.

    Raises:
        DatasetError: a concept is not in the data set, nothing is left to evaluate, or a mask
            does not fit its image.
        ImageError: an image cannot be read.
    """
    dataset.check_concepts(prompts)
    if not prompts:
        raise DatasetError("No concept was asked for. Give at least one prompt.")
    asked = _asked(dataset, others, split, mode, set(prompts))
    if not asked:
        raise DatasetError(f"{dataset.name} has no images for split '{split}' in mode '{mode}'.")
    phrases = list(prompts.values()) if mode == "t" else []
    judge = _Judge(
        model=model,
        text=model.encode_text(phrases) if phrases else None,
        texts={c: model.encode_text([p]) for c, p in prompts.items()} if mode != "t" else {},
        concepts=tuple(prompts),
        mode=mode,
        mask=mask,
        seed=seed,
        tolerance=tolerance,
    )
    results: list[ImageResult] = []
    for done, (source, sample) in enumerate(asked, start=1):
        results += judge.image(source, sample)
        if progress is not None:
            progress(done, len(asked))
    return EvaluationReport(
        model=model.version,
        dataset=dataset.name,
        mode=mode,
        split=split,
        mask=mask,
        seed=seed,
        surface_tolerance=tolerance,
        box_error=BOX_ERROR if mode == "ti-jitter" else 0.0,
        concepts=tuple(
            summarise(concept, phrase, results, seed=seed) for concept, phrase in prompts.items()
        ),
        seconds_per_image=sum(judge.spent) / len(asked),
        images=tuple(results),
    )


def summarise(
    concept: str, phrase: str, results: Sequence[ImageResult], *, seed: int = 0
) -> ConceptReport:
    """One concept's report from its results; `results` of other concepts are left out."""
    results = [result for result in results if result.concept == concept]
    scored = [(result, result.scores) for result in results if result.scores is not None]
    groups = [result.group for result, _ in scored]
    absent = [result for result in results if not result.present]

    def mean(name: str) -> Any:
        values = [getattr(scores, name) for _, scores in scored]
        return bootstrap_mean(values, groups, seed=seed) if values else None

    boxed = [
        (result.filled_box_dice, result.ellipse_dice, scores.dice, result.group)
        for result, scores in scored
        if result.filled_box_dice is not None and result.ellipse_dice is not None
    ]
    filled, ellipse, of_model, boxed_groups = zip(*boxed, strict=True) if boxed else ((),) * 4
    with_text_alone = bool(results) and not boxed
    return ConceptReport(
        concept=concept,
        phrase=phrase,
        images=len(scored),
        absent=len(absent),
        dice=mean("dice"),
        iou=mean("iou"),
        surface_dice=mean("surface_dice"),
        hd95=mean("hd95"),
        added_path_length=mean("added_path_length"),
        presence_accuracy=proportion(
            [result.found == result.present for result in results],
            [_unique_group(result) for result in results],
        )
        if with_text_alone
        else None,
        false_alarms=_false_alarms(absent),
        filled_box=bootstrap_mean(filled, boxed_groups, seed=seed) if boxed else None,
        ellipse=bootstrap_mean(ellipse, boxed_groups, seed=seed) if boxed else None,
        over_ellipse=paired_bootstrap(of_model, ellipse, boxed_groups, seed=seed)
        if boxed
        else None,
        semantic_fallbacks=sum(result.source == "semantic" for result in results),
    )


@dataclass(frozen=True)
class _Judge:
    """Asks the model about one image after the other; `spent` collects the model's seconds."""

    model: "MedSAM3"
    text: TextEmbedding | None  # of all phrases, for one pass; None in the modes with boxes
    texts: Mapping[str, TextEmbedding]  # by concept; empty in mode t
    concepts: tuple[str, ...]
    mode: Mode
    mask: MaskRule
    seed: int
    tolerance: float
    spent: list[float] = field(default_factory=list)

    def image(self, dataset: str, sample: Sample) -> Iterator[ImageResult]:
        """One result per concept that is asked for in this image."""
        image = sample.image()
        truth = {concept: sample.read(concept) for concept in self.concepts}
        for concept, mask in truth.items():
            if mask is not None:
                sample.check_size(concept, mask, image)

        def encode_window(window: Window) -> ImageEmbedding:
            x0, y0, x1, y1 = window
            return self.model.encode_image(image[y0:y1, x0:x1])

        # The clock runs for the model alone: not for reading files, nor for scoring masks.
        with self._clock():
            embedding = self.model.encode_image(image)
        if self.text is not None:
            with self._clock():
                answers = self.model.detect_all(embedding, self.text)
                answers = look_closer(self.model, embedding, self.text, answers, encode_window)
            for concept, detections in zip(self.concepts, answers, strict=True):
                yield self._result(dataset, sample, concept, truth[concept], detections, None)
            return

        for concept, mask in truth.items():
            if mask is None:
                continue
            boxes = mask.boxes
            if self.mode == "ti-jitter":
                # Named by image and concept, so that every model is asked with the same boxes.
                key = f"{sample.name}/{concept}"
                boxes = disturbed_boxes(boxes, *image.shape[:2], key=key, seed=self.seed)
            with self._clock():
                detections = segment_prompted(
                    self.model,
                    embedding,
                    self.texts[concept],
                    SpatialPrompt(boxes, [1] * len(boxes), np.zeros((0, 2), np.float32), []),
                    encode_window,
                )
            yield self._result(dataset, sample, concept, mask, detections, boxes)

    @contextmanager
    def _clock(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent.append(time.perf_counter() - started)

    def _result(
        self,
        dataset: str,
        sample: Sample,
        concept: str,
        truth: ConceptTruth | None,
        detections: Detections,
        boxes: NDArray[np.float32] | None,
    ) -> ImageResult:
        if boxes is None:
            mask, source = detections.concept_mask(rule=self.mask)
        else:
            mask = detections.union()
            source = "instances" if mask.any() else "none"
        scores = filled = ellipse = None
        if truth is not None:
            scores = score_mask(mask, truth.mask, tolerance=self.tolerance)
            if boxes is not None:
                height, width = truth.mask.shape
                filled = dice(filled_boxes_mask(boxes, height, width), truth.mask)
                ellipse = dice(inscribed_ellipses_mask(boxes, height, width), truth.mask)
        return ImageResult(
            dataset=dataset,
            name=sample.name,
            group=sample.group,
            concept=concept,
            present=truth is not None,
            found=bool(mask.any()),
            presence=float(detections.presence),
            instances=len(detections),
            source=source,
            scores=scores,
            boxes=0 if boxes is None else len(boxes),
            filled_box_dice=filled,
            ellipse_dice=ellipse,
        )


def _asked(
    dataset: Dataset,
    others: Sequence[Dataset],
    split: Literal["all", "val"],
    mode: Mode,
    concepts: set[str],
) -> list[tuple[str, Sample]]:
    """The images to go through, each with the name of its set."""
    if split == "val":
        dataset, others = dataset.split("val"), [other.split("val") for other in others]
    if mode != "t":
        return [(dataset.name, s) for s in dataset if s.concepts & concepts]
    return [
        (f"{dataset.name}/negatives" if sample.negative else dataset.name, sample)
        for sample in dataset
    ] + [(other.name, sample) for other in others for sample in other]


def _false_alarms(absent: Sequence[ImageResult]) -> tuple[FalseAlarms, ...]:
    reports = []
    for dataset in dict.fromkeys(result.dataset for result in absent):
        asked = [result for result in absent if result.dataset == dataset]
        alarms = [result.found for result in asked]
        rate = proportion(alarms, [result.group for result in asked])
        reports.append(FalseAlarms(dataset, len(asked), sum(alarms), rate))
    return tuple(reports)


def _unique_group(result: ImageResult) -> str:
    """Two sets may both have a "patient 1" without its being the same person."""
    return f"{result.dataset.removesuffix('/negatives')}/{result.group}"
