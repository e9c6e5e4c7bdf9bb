"""Calibration at the end of a run: thresholds and second looks of phrases, by the spared images.

What a run does not ask about, and what too few spared images show, keeps what an earlier run found.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsam3_model.second_look import ROOMS, look_again
from medsam3_model.training.data import TrainingData, TrainingImage
from medsam3_model.training.processes import Processes
from medsam3_model.training.thresholds import (
    CANDIDATES,
    LEAST_IMAGES,
    agreement,
    agreements,
    calibrated,
)
from medsam3_model.types import Detections, ImageEmbedding, TextEmbedding, Window

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3

_Scored = list[tuple[str, dict[float, float]]]
NO_LOOK = 0.0
"""The square of a phrase without a second look."""


@dataclass(frozen=True)
class Calibration:
    """What the calibration of a run works with.

    Attributes:
        start: the version that the run started from.
        spared: images that it did not learn from.
        data: their masks, embeddings and phrases.
        processes: that share the images.
        make_way: called before each image.
    """

    start: "MedSAM3"
    spared: Sequence[TrainingImage]
    data: TrainingData
    processes: Processes
    make_way: Callable[[], None]

    def thresholds(self, model: "MedSAM3") -> dict[str, float]:
        """The lowest scores of each phrase that agree best with the spared images."""
        own = model.settings.score_threshold
        settings = replace(model.settings, score_threshold=min(own, *CANDIDATES))
        scored: _Scored = []
        for _, image in self.processes.mine(self.spared):
            self.make_way()
            truth = self.data.instances(image)
            embedding = self.data.seen_by(model, image)
            text = self.data.text(tuple(truth))
            answers = model.detect_all(embedding, text, settings=settings)
            scored += [
                (phrase, agreements(answer, layer, own))
                for (phrase, layer), answer in zip(truth.items(), answers, strict=True)
                if layer.any()
            ]
        everybodys, judged = self._gathered(scored)
        kept = {name: at for name, at in self.start.thresholds.items() if name not in judged}
        return kept | calibrated(everybodys, own)

    def second_looks(self, model: "MedSAM3") -> dict[str, float]:
        """The squares in which a second look at each phrase's object pays on the spared images.

        A phrase keeps what it had, also none, unless another square is better there.
        """
        present = Counter(
            phrase
            for image in self.spared
            for phrase, layer in self.data.instances(image).items()
            if layer.any()
        )
        scored: _Scored = []
        for _, image in self.processes.mine(self.spared):
            self.make_way()
            layers = {
                phrase: layer
                for phrase, layer in self.data.instances(image).items()
                if layer.any() and present[phrase] >= LEAST_IMAGES
            }
            if not layers:
                continue
            embedding = self.data.seen_by(model, image)
            rgb = image.read()
            answers = model.detect_all(embedding, self.data.text(tuple(layers)))
            for (phrase, layer), answer in zip(layers.items(), answers, strict=True):
                text, rooms = self.data.text([phrase]), {*ROOMS, self._before(phrase)}
                row = look_agreements(model, embedding, rgb, text, answer, layer, rooms)
                scored.append((phrase, row))
        everybodys, judged = self._gathered(scored)
        looks = dict(self.start.second_looks)
        for phrase in judged:
            rows = [scores for scores in everybodys if scores[0] == phrase]
            looks |= {
                phrase.casefold(): room for room in calibrated(rows, self._before(phrase)).values()
            }
        return {phrase: room for phrase, room in looks.items() if room != NO_LOOK}

    def _before(self, phrase: str) -> float:
        return self.start.second_look_of(phrase) or NO_LOOK

    def _gathered(self, scored: _Scored) -> tuple[_Scored, set[str]]:
        """What all processes scored, and the phrases of which that is enough to judge by."""
        everybodys = [row for part in self.processes.gather(scored) for row in part]
        counts = Counter(phrase for phrase, _ in everybodys)
        return everybodys, {phrase for phrase, count in counts.items() if count >= LEAST_IMAGES}


def look_agreements(
    model: "MedSAM3",
    image: ImageEmbedding,
    rgb: NDArray[np.uint8],
    text: TextEmbedding,
    answer: Detections,
    truth: NDArray[np.integer],
    rooms: Iterable[float] = ROOMS,
) -> dict[float, float]:
    """How well an answer agrees without and with a second look, 0 to 1, by its square.

    Args:
        model: who gave the answer.
        image: the encoded image.
        rgb: the same, uint8 (H, W, 3). What is encoded of it is not kept: where this version looks
            again, no other one does.
        text: the phrase.
        answer: to it.
        truth: instance numbers (H, W).
        rooms: sides of the squares, see `second_look`.
    """

    def encode_window(window: Window) -> ImageEmbedding:
        x0, y0, x1, y1 = window
        return model.encode_image(rgb[y0:y1, x0:x1])

    row = {NO_LOOK: agreement(answer, truth)}
    for room in set(rooms) - {NO_LOOK}:
        row[room] = agreement(look_again(model, image, text, answer, room, encode_window), truth)
    return row
