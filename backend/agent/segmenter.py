"""The segmenter of a loop whose model is loaded in this process."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from backend.agent.candidates import Found, FoundMask
from backend.agent.tools import Box, Point

if TYPE_CHECKING:
    from medsam3_model import Detections, ImageEmbedding, MedSAM3
    from medsam3_model.types import EncodeWindow, TextEmbedding

# Instances from this score on can be chosen, although the model itself would not answer with them.
_LOWEST_SCORE = 0.1
_MOST_WEAK = 8


class ModelSegmenter:
    """Segments one encoded image; see `backend.agent.loop.Segmenter`.

    Args:
        model: that encoded it.
        embedding: of the image.
        phrase: of the label, from which the support of every mask is taken.
        encode_window: for a closer look at small objects; without it there is none.
        score_threshold: of the label; default the model's own.
    """

    def __init__(
        self,
        model: "MedSAM3",
        embedding: "ImageEmbedding",
        phrase: str,
        encode_window: "EncodeWindow | None" = None,
        score_threshold: float | None = None,
    ) -> None:
        self._model, self._embedding = model, embedding
        self._encode_window = encode_window
        self._threshold = model.threshold_of(phrase) if score_threshold is None else score_threshold
        self._phrase = phrase
        self._text = model.encode_text([phrase])
        self._first = self._first_look()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self._embedding.original_size

    def first_look(self) -> Found:
        """What the model answers the label's phrase with, and its weaker instances."""
        own, weak = self._first
        masks = list(own.masks)
        scores = list(own.scores)
        if not masks:
            semantic, source = own.concept_mask()
            if source == "semantic":
                masks, scores = [semantic], [float(own.semantic[semantic].mean())]
        found = [self._found(m, s, own=True) for m, s in zip(masks, scores, strict=True)]
        found += [
            self._found(mask, score)
            for mask, score in zip(weak.masks, weak.scores, strict=True)
            if score <= self._threshold and mask.any()
        ][:_MOST_WEAK]
        return Found(tuple(found), float(own.presence), float(own.semantic.sum()))

    def by_phrase(self, phrase: str) -> Found:
        """Everything that a phrase names."""
        if phrase == self._phrase:
            return self.first_look()
        return self._all(self._weak(self._model.encode_text([phrase])))

    def by_boxes(self, boxes: Sequence[Box]) -> Found:
        """One object in each box."""
        height, width = self.size
        drawn = np.asarray(boxes, np.float32) * [width, height, width, height]
        return self._prompted(drawn.astype(np.float32), np.zeros((0, 2), np.float32), [])

    def by_clicks(
        self, inside: Sequence[Point], outside: Sequence[Point], near: NDArray[np.bool_]
    ) -> Found:
        """The object that clicks mean; without one inside, the middle of `near` is.

        Where the model has a tracker, clicks beside the box of `near` mend the object in it.
        """
        from medsam3_model.boxes import tight_box

        height, width = self.size
        clicks = [*(inside or [_middle(near)]), *outside]
        points = (np.asarray(clicks, np.float32) * [width, height]).astype(np.float32)
        points = np.minimum(points, [width - 0.5, height - 0.5]).astype(np.float32)
        labels = [1] * (len(clicks) - len(outside)) + [0] * len(outside)
        box = np.zeros((0, 4), np.float32) if self._model.tracker is None else tight_box(near)
        return self._prompted(box.reshape(-1, 4), points, labels)

    def _prompted(
        self, boxes: NDArray[np.float32], points: NDArray[np.float32], labels: Sequence[int]
    ) -> Found:
        from medsam3_model.prompting import SpatialPrompt, segment_prompted

        prompt = SpatialPrompt(boxes, [1] * len(boxes), points, labels)
        return self._all(
            segment_prompted(self._model, self._embedding, self._text, prompt, self._encode_window)
        )

    def _first_look(self) -> "tuple[Detections, Detections]":
        """The model's answer to the label's phrase, and the same with weaker instances."""
        from medsam3_model.second_look import look_closer

        weak = self._weak(self._text)
        own = [weak.above(self._threshold)]
        if self._encode_window is not None:
            own = look_closer(self._model, self._embedding, self._text, own, self._encode_window)
        return own[0], weak

    def _weak(self, text: "TextEmbedding") -> "Detections":
        """What the model answers a phrase with, weaker instances included."""
        from dataclasses import replace

        # What the label suggests is there in any case, however low its threshold is.
        lowest = min(_LOWEST_SCORE, self._threshold)
        settings = replace(self._model.settings, score_threshold=lowest)
        (weak,) = self._model.detect_all(self._embedding, text, settings=settings)
        return weak

    def _all(self, detections: "Detections") -> Found:
        pairs = zip(detections.masks, detections.scores, strict=True)
        found = [self._found(mask, score) for mask, score in pairs if mask.any()]
        return Found(tuple(found), float(detections.presence))

    def _found(self, mask: NDArray[np.bool_], score: float, *, own: bool = False) -> FoundMask:
        support = float(self._first[0].semantic[mask].mean())
        return FoundMask(mask, float(score), support, own)


def _middle(mask: NDArray[np.bool_]) -> Point:
    """The pixel of a mask that is nearest to its centre of gravity, as fractions."""
    rows, columns = np.nonzero(mask)
    nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    height, width = mask.shape
    return (columns[nearest] + 0.5) / width, (rows[nearest] + 0.5) / height
