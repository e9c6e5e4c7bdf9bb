"""Calibration at the end of a run: thresholds and second looks of phrases, by the spared images.

What a run does not ask about, and what too few spared images show, keeps what an earlier run found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from medsam3_model.second_look import ROOMS, look_again
from medsam3_model.training.data import TrainingData, TrainingImage
from medsam3_model.training.processes import Processes
from medsam3_model.training.thresholds import CANDIDATES, agreement, agreements, calibrated

if TYPE_CHECKING:
    from medsam3_model.predictor import MedSAM3

_Scored = list[tuple[str, dict[float, float]]]
_NO_LOOK = 0.0


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
            _, embedding = self.data.view(image, 0)
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
        """The squares in which a second look at each phrase's object pays on the spared images."""
        scored: _Scored = []
        for _, image in self.processes.mine(self.spared):
            self.make_way()
            truth = self.data.instances(image)
            _, embedding = self.data.view(image, 0)
            encode_window = partial(self.data.part, model, image)
            answers = model.detect_all(embedding, self.data.text(tuple(truth)))
            for (phrase, layer), answer in zip(truth.items(), answers, strict=True):
                if not layer.any():
                    continue
                text, row = self.data.text([phrase]), {_NO_LOOK: agreement(answer, layer)}
                for room in ROOMS:
                    again = look_again(model, embedding, text, answer, room, encode_window)
                    row[room] = agreement(again, layer)
                scored.append((phrase, row))
        everybodys, judged = self._gathered(scored)
        judged = {phrase.casefold() for phrase in judged}
        kept = {name: at for name, at in self.start.second_looks.items() if name not in judged}
        return kept | calibrated(everybodys, _NO_LOOK)

    def _gathered(self, scored: _Scored) -> tuple[_Scored, set[str]]:
        """What all processes scored, and the phrases that it is about."""
        everybodys = [row for part in self.processes.gather(scored) for row in part]
        return everybodys, {phrase for phrase, _ in everybodys}
